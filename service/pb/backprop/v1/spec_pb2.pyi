from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Activation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVATION_UNSPECIFIED: _ClassVar[Activation]
    ACTIVATION_RELU: _ClassVar[Activation]
    ACTIVATION_TANH: _ClassVar[Activation]
    ACTIVATION_GELU: _ClassVar[Activation]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_REGRESSION: _ClassVar[Task]

class Tokenizer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKENIZER_UNSPECIFIED: _ClassVar[Tokenizer]
    TOKENIZER_CHAR: _ClassVar[Tokenizer]
    TOKENIZER_BYTE: _ClassVar[Tokenizer]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_FP32: _ClassVar[Precision]
    PRECISION_BF16: _ClassVar[Precision]
    PRECISION_FP16: _ClassVar[Precision]

class NonFinitePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NON_FINITE_POLICY_UNSPECIFIED: _ClassVar[NonFinitePolicy]
    NON_FINITE_POLICY_FAIL: _ClassVar[NonFinitePolicy]
    NON_FINITE_POLICY_SKIP: _ClassVar[NonFinitePolicy]
ACTIVATION_UNSPECIFIED: Activation
ACTIVATION_RELU: Activation
ACTIVATION_TANH: Activation
ACTIVATION_GELU: Activation
TASK_UNSPECIFIED: Task
TASK_CLASSIFICATION: Task
TASK_REGRESSION: Task
TOKENIZER_UNSPECIFIED: Tokenizer
TOKENIZER_CHAR: Tokenizer
TOKENIZER_BYTE: Tokenizer
PRECISION_UNSPECIFIED: Precision
PRECISION_FP32: Precision
PRECISION_BF16: Precision
PRECISION_FP16: Precision
NON_FINITE_POLICY_UNSPECIFIED: NonFinitePolicy
NON_FINITE_POLICY_FAIL: NonFinitePolicy
NON_FINITE_POLICY_SKIP: NonFinitePolicy

class JobSpec(_message.Message):
    __slots__ = ("name", "model", "data", "optimizer", "schedule", "training", "evaluation", "checkpoint", "workers", "priority")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    training: TrainingSpec
    evaluation: EvaluationSpec
    checkpoint: CheckpointSpec
    workers: WorkersSpec
    priority: int
    def __init__(self, name: _Optional[str] = ..., model: _Optional[_Union[ModelSpec, _Mapping]] = ..., data: _Optional[_Union[DataSpec, _Mapping]] = ..., optimizer: _Optional[_Union[OptimizerSpec, _Mapping]] = ..., schedule: _Optional[_Union[ScheduleSpec, _Mapping]] = ..., training: _Optional[_Union[TrainingSpec, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationSpec, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointSpec, _Mapping]] = ..., workers: _Optional[_Union[WorkersSpec, _Mapping]] = ..., priority: _Optional[int] = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("mlp", "cnn", "gpt", "bert")
    MLP_FIELD_NUMBER: _ClassVar[int]
    CNN_FIELD_NUMBER: _ClassVar[int]
    GPT_FIELD_NUMBER: _ClassVar[int]
    BERT_FIELD_NUMBER: _ClassVar[int]
    mlp: MlpModel
    cnn: CnnModel
    gpt: GptModel
    bert: BertModel
    def __init__(self, mlp: _Optional[_Union[MlpModel, _Mapping]] = ..., cnn: _Optional[_Union[CnnModel, _Mapping]] = ..., gpt: _Optional[_Union[GptModel, _Mapping]] = ..., bert: _Optional[_Union[BertModel, _Mapping]] = ...) -> None: ...

class CnnModel(_message.Message):
    __slots__ = ("stages", "blocks")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedScalarFieldContainer[int]
    blocks: int
    def __init__(self, stages: _Optional[_Iterable[int]] = ..., blocks: _Optional[int] = ...) -> None: ...

class GptModel(_message.Message):
    __slots__ = ("layers", "heads", "width", "context", "dropout")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    layers: int
    heads: int
    width: int
    context: int
    dropout: float
    def __init__(self, layers: _Optional[int] = ..., heads: _Optional[int] = ..., width: _Optional[int] = ..., context: _Optional[int] = ..., dropout: _Optional[float] = ...) -> None: ...

class BertModel(_message.Message):
    __slots__ = ("layers", "heads", "width", "context", "dropout", "mask_fraction")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    MASK_FRACTION_FIELD_NUMBER: _ClassVar[int]
    layers: int
    heads: int
    width: int
    context: int
    dropout: float
    mask_fraction: float
    def __init__(self, layers: _Optional[int] = ..., heads: _Optional[int] = ..., width: _Optional[int] = ..., context: _Optional[int] = ..., dropout: _Optional[float] = ..., mask_fraction: _Optional[float] = ...) -> None: ...

class MlpModel(_message.Message):
    __slots__ = ("hidden", "activation")
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    hidden: _containers.RepeatedScalarFieldContainer[int]
    activation: Activation
    def __init__(self, hidden: _Optional[_Iterable[int]] = ..., activation: _Optional[_Union[Activation, str]] = ...) -> None: ...

class DataSpec(_message.Message):
    __slots__ = ("digits", "synthetic", "arrays", "text")
    DIGITS_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    digits: DigitsData
    synthetic: SyntheticData
    arrays: ArraysData
    text: TextData
    def __init__(self, digits: _Optional[_Union[DigitsData, _Mapping]] = ..., synthetic: _Optional[_Union[SyntheticData, _Mapping]] = ..., arrays: _Optional[_Union[ArraysData, _Mapping]] = ..., text: _Optional[_Union[TextData, _Mapping]] = ...) -> None: ...

class DigitsData(_message.Message):
    __slots__ = ("validation_fraction",)
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    validation_fraction: float
    def __init__(self, validation_fraction: _Optional[float] = ...) -> None: ...

class SyntheticData(_message.Message):
    __slots__ = ("task", "samples", "features", "outputs", "noise", "seed", "validation_fraction")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    task: Task
    samples: int
    features: int
    outputs: int
    noise: float
    seed: int
    validation_fraction: float
    def __init__(self, task: _Optional[_Union[Task, str]] = ..., samples: _Optional[int] = ..., features: _Optional[int] = ..., outputs: _Optional[int] = ..., noise: _Optional[float] = ..., seed: _Optional[int] = ..., validation_fraction: _Optional[float] = ...) -> None: ...

class ArraysData(_message.Message):
    __slots__ = ("path", "validation_fraction")
    PATH_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    path: str
    validation_fraction: float
    def __init__(self, path: _Optional[str] = ..., validation_fraction: _Optional[float] = ...) -> None: ...

class TextData(_message.Message):
    __slots__ = ("path", "pattern", "tokenizer", "validation_fraction")
    PATH_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FRACTION_FIELD_NUMBER: _ClassVar[int]
    path: str
    pattern: str
    tokenizer: Tokenizer
    validation_fraction: float
    def __init__(self, path: _Optional[str] = ..., pattern: _Optional[str] = ..., tokenizer: _Optional[_Union[Tokenizer, str]] = ..., validation_fraction: _Optional[float] = ...) -> None: ...

class OptimizerSpec(_message.Message):
    __slots__ = ("sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad", "lion", "ema")
    SGD_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    ADAM_FIELD_NUMBER: _ClassVar[int]
    ADAMW_FIELD_NUMBER: _ClassVar[int]
    RMSPROP_FIELD_NUMBER: _ClassVar[int]
    ADAGRAD_FIELD_NUMBER: _ClassVar[int]
    LION_FIELD_NUMBER: _ClassVar[int]
    EMA_FIELD_NUMBER: _ClassVar[int]
    sgd: SgdOptimizer
    momentum: MomentumOptimizer
    adam: AdamOptimizer
    adamw: AdamOptimizer
    rmsprop: RmspropOptimizer
    adagrad: AdagradOptimizer
    lion: LionOptimizer
    ema: Ema
    def __init__(self, sgd: _Optional[_Union[SgdOptimizer, _Mapping]] = ..., momentum: _Optional[_Union[MomentumOptimizer, _Mapping]] = ..., adam: _Optional[_Union[AdamOptimizer, _Mapping]] = ..., adamw: _Optional[_Union[AdamOptimizer, _Mapping]] = ..., rmsprop: _Optional[_Union[RmspropOptimizer, _Mapping]] = ..., adagrad: _Optional[_Union[AdagradOptimizer, _Mapping]] = ..., lion: _Optional[_Union[LionOptimizer, _Mapping]] = ..., ema: _Optional[_Union[Ema, _Mapping]] = ...) -> None: ...

class Ema(_message.Message):
    __slots__ = ("decay",)
    DECAY_FIELD_NUMBER: _ClassVar[int]
    decay: float
    def __init__(self, decay: _Optional[float] = ...) -> None: ...

class SgdOptimizer(_message.Message):
    __slots__ = ("learning_rate", "weight_decay", "momentum", "dampening", "nesterov")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    DAMPENING_FIELD_NUMBER: _ClassVar[int]
    NESTEROV_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    weight_decay: float
    momentum: float
    dampening: float
    nesterov: bool
    def __init__(self, learning_rate: _Optional[float] = ..., weight_decay: _Optional[float] = ..., momentum: _Optional[float] = ..., dampening: _Optional[float] = ..., nesterov: bool = ...) -> None: ...

class RmspropOptimizer(_message.Message):
    __slots__ = ("learning_rate", "alpha", "epsilon", "weight_decay", "momentum", "centered")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    CENTERED_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    alpha: float
    epsilon: float
    weight_decay: float
    momentum: float
    centered: bool
    def __init__(self, learning_rate: _Optional[float] = ..., alpha: _Optional[float] = ..., epsilon: _Optional[float] = ..., weight_decay: _Optional[float] = ..., momentum: _Optional[float] = ..., centered: bool = ...) -> None: ...

class AdagradOptimizer(_message.Message):
    __slots__ = ("learning_rate", "lr_decay", "weight_decay", "initial_accumulator_value", "epsilon")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    LR_DECAY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    INITIAL_ACCUMULATOR_VALUE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    lr_decay: float
    weight_decay: float
    initial_accumulator_value: float
    epsilon: float
    def __init__(self, learning_rate: _Optional[float] = ..., lr_decay: _Optional[float] = ..., weight_decay: _Optional[float] = ..., initial_accumulator_value: _Optional[float] = ..., epsilon: _Optional[float] = ...) -> None: ...

class LionOptimizer(_message.Message):
    __slots__ = ("learning_rate", "beta1", "beta2", "weight_decay")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    beta1: float
    beta2: float
    weight_decay: float
    def __init__(self, learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class MomentumOptimizer(_message.Message):
    __slots__ = ("learning_rate", "momentum", "weight_decay")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    momentum: float
    weight_decay: float
    def __init__(self, learning_rate: _Optional[float] = ..., momentum: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class AdamOptimizer(_message.Message):
    __slots__ = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    def __init__(self, learning_rate: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., epsilon: _Optional[float] = ..., weight_decay: _Optional[float] = ...) -> None: ...

class ScheduleSpec(_message.Message):
    __slots__ = ("constant", "linear", "cosine", "step", "wsd", "one_cycle")
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    LINEAR_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WSD_FIELD_NUMBER: _ClassVar[int]
    ONE_CYCLE_FIELD_NUMBER: _ClassVar[int]
    constant: ConstantSchedule
    linear: LinearSchedule
    cosine: CosineSchedule
    step: StepSchedule
    wsd: WsdSchedule
    one_cycle: OneCycleSchedule
    def __init__(self, constant: _Optional[_Union[ConstantSchedule, _Mapping]] = ..., linear: _Optional[_Union[LinearSchedule, _Mapping]] = ..., cosine: _Optional[_Union[CosineSchedule, _Mapping]] = ..., step: _Optional[_Union[StepSchedule, _Mapping]] = ..., wsd: _Optional[_Union[WsdSchedule, _Mapping]] = ..., one_cycle: _Optional[_Union[OneCycleSchedule, _Mapping]] = ...) -> None: ...

class StepSchedule(_message.Message):
    __slots__ = ("step_size", "gamma", "warmup_steps")
    STEP_SIZE_FIELD_NUMBER: _ClassVar[int]
    GAMMA_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    step_size: int
    gamma: float
    warmup_steps: int
    def __init__(self, step_size: _Optional[int] = ..., gamma: _Optional[float] = ..., warmup_steps: _Optional[int] = ...) -> None: ...

class WsdSchedule(_message.Message):
    __slots__ = ("decay_steps", "warmup_steps", "min_ratio")
    DECAY_STEPS_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_RATIO_FIELD_NUMBER: _ClassVar[int]
    decay_steps: int
    warmup_steps: int
    min_ratio: float
    def __init__(self, decay_steps: _Optional[int] = ..., warmup_steps: _Optional[int] = ..., min_ratio: _Optional[float] = ...) -> None: ...

class OneCycleSchedule(_message.Message):
    __slots__ = ("pct_start", "div_factor", "final_div_factor")
    PCT_START_FIELD_NUMBER: _ClassVar[int]
    DIV_FACTOR_FIELD_NUMBER: _ClassVar[int]
    FINAL_DIV_FACTOR_FIELD_NUMBER: _ClassVar[int]
    pct_start: float
    div_factor: float
    final_div_factor: float
    def __init__(self, pct_start: _Optional[float] = ..., div_factor: _Optional[float] = ..., final_div_factor: _Optional[float] = ...) -> None: ...

class ConstantSchedule(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LinearSchedule(_message.Message):
    __slots__ = ("warmup_steps", "min_ratio")
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_RATIO_FIELD_NUMBER: _ClassVar[int]
    warmup_steps: int
    min_ratio: float
    def __init__(self, warmup_steps: _Optional[int] = ..., min_ratio: _Optional[float] = ...) -> None: ...

class CosineSchedule(_message.Message):
    __slots__ = ("warmup_steps", "min_ratio")
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_RATIO_FIELD_NUMBER: _ClassVar[int]
    warmup_steps: int
    min_ratio: float
    def __init__(self, warmup_steps: _Optional[int] = ..., min_ratio: _Optional[float] = ...) -> None: ...

class TrainingSpec(_message.Message):
    __slots__ = ("global_batch_size", "shards", "max_steps", "clip_norm", "clip_value", "seed", "precision", "gradient_checkpointing", "on_non_finite")
    GLOBAL_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    CLIP_VALUE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    ON_NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    global_batch_size: int
    shards: int
    max_steps: int
    clip_norm: float
    clip_value: float
    seed: int
    precision: Precision
    gradient_checkpointing: bool
    on_non_finite: NonFinitePolicy
    def __init__(self, global_batch_size: _Optional[int] = ..., shards: _Optional[int] = ..., max_steps: _Optional[int] = ..., clip_norm: _Optional[float] = ..., clip_value: _Optional[float] = ..., seed: _Optional[int] = ..., precision: _Optional[_Union[Precision, str]] = ..., gradient_checkpointing: bool = ..., on_non_finite: _Optional[_Union[NonFinitePolicy, str]] = ...) -> None: ...

class EvaluationSpec(_message.Message):
    __slots__ = ("every_steps",)
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    def __init__(self, every_steps: _Optional[int] = ...) -> None: ...

class CheckpointSpec(_message.Message):
    __slots__ = ("every_steps", "keep")
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    every_steps: int
    keep: int
    def __init__(self, every_steps: _Optional[int] = ..., keep: _Optional[int] = ...) -> None: ...

class WorkersSpec(_message.Message):
    __slots__ = ("min", "max")
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    min: int
    max: int
    def __init__(self, min: _Optional[int] = ..., max: _Optional[int] = ...) -> None: ...
