"""What a job may ask for: the one definition, for the job file, the API and the workers alike.

A `JobSpec` is complete and immutable: together with the data it decides the weights to the last bit.
Bad input raises `worker.violations.SpecError`, which names every field at fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from worker.violations import SpecError, Violation, shown, violation_of

MAX_PARAMETERS_PER_LAYER_SIDE = 1 << 20  # a weight matrix of this width squared would not fit any machine
MAX_GLOBAL_BATCH_SIZE = 1 << 20
MAX_SHARDS = 1024  # each shard has a slot in the control page
MAX_STEPS = 1_000_000_000
DEFAULT_SHARDS = 8


class Activation(StrEnum):
    """Activation functions, by their names in PyTorch."""

    RELU = "relu"
    TANH = "tanh"
    GELU = "gelu"


class Task(StrEnum):
    """What a model learns; decides its loss."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class Precision(StrEnum):
    """Number formats."""

    FP32 = "fp32"


class NonFinitePolicy(StrEnum):
    """What a NaN or an infinity in the gradient does."""

    FAIL = "fail"
    SKIP = "skip"


class Part(BaseModel):
    """A part of a job spec: unknown keys, wrong types, NaN and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        """`digits:` with nothing behind it means `digits: {}`."""
        return {} if value is None else value


class Choice(Part):
    """A part of which exactly one key is given: `{mlp: {...}}`."""

    @property
    def kind(self) -> str:
        """The key that was given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def chosen(self) -> Any:
        """The part behind that key."""
        return getattr(self, self.kind)

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Every key that may be given."""
        return tuple(cls.model_fields)

    @model_validator(mode="before")
    @classmethod
    def _null_is_chosen(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: {} if part is None else part for key, part in value.items()}
        return value

    @model_serializer(mode="plain")
    def _only_the_chosen(self) -> dict[str, Any]:
        return {self.kind: self.chosen}

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in self.kinds() if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'none'}, expected exactly one of {', '.join(self.kinds())}")
        return self


Fraction = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[int, Field(ge=1, le=MAX_PARAMETERS_PER_LAYER_SIDE)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class MlpModel(Part):
    """Linear layers with an activation between them."""

    hidden: tuple[Width, ...] = Field(default=(), strict=False, max_length=1000)
    activation: Activation = Field(default=Activation.RELU, strict=False)


class ModelSpec(Choice):
    """Exactly one kind of model."""

    mlp: MlpModel | None = None


class DigitsData(Part):
    """scikit-learn's handwritten digits, pixels scaled to [0, 1]."""

    validation_fraction: Fraction = 0.2


class SyntheticData(Part):
    """Samples drawn from a seeded rule."""

    task: Task = Field(default=Task.CLASSIFICATION, strict=False)
    samples: int = Field(default=4096, ge=2, le=100_000_000)
    features: Width = 32
    outputs: Width = 4
    noise: NonNegative = 0.1
    seed: Seed = 0
    validation_fraction: Fraction = 0.2


class ArraysData(Part):
    """A NumPy .npz file with `inputs` and `targets`."""

    path: str = Field(min_length=1, max_length=4096)
    validation_fraction: Fraction = 0.2


class DataSpec(Choice):
    """Exactly one source of data."""

    digits: DigitsData | None = None
    synthetic: SyntheticData | None = None
    arrays: ArraysData | None = None


class SgdOptimizer(Part):
    """w = w - learning_rate * (g + weight_decay*w)"""

    learning_rate: Positive = 0.01
    weight_decay: NonNegative = 0.0


class MomentumOptimizer(Part):
    """v = momentum*v - learning_rate*g; w = w + v"""

    learning_rate: Positive = 0.01
    momentum: Decay = 0.9
    weight_decay: NonNegative = 0.0


class AdamOptimizer(Part):
    """Adam (Kingma & Ba, 2015)."""

    learning_rate: Positive = 0.001
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0


class AdamwOptimizer(AdamOptimizer):
    """AdamW (Loshchilov & Hutter, 2019)."""

    weight_decay: NonNegative = 0.01


class OptimizerSpec(Choice):
    """Exactly one optimizer."""

    sgd: SgdOptimizer | None = None
    momentum: MomentumOptimizer | None = None
    adam: AdamOptimizer | None = None
    adamw: AdamwOptimizer | None = None


class ConstantSchedule(Part):
    """The learning rate stays as it is."""


class LinearSchedule(Part):
    """Linear warm-up, then a straight line to min_ratio at the last step."""

    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    min_ratio: Ratio = 1.0


class CosineSchedule(Part):
    """Linear warm-up, then half a cosine to min_ratio at the last step."""

    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    min_ratio: Ratio = 0.0


class ScheduleSpec(Choice):
    """Exactly one schedule."""

    constant: ConstantSchedule | None = None
    linear: LinearSchedule | None = None
    cosine: CosineSchedule | None = None


def default_shards(global_batch_size: int) -> int:
    """The largest power of two up to 8 that divides the batch."""
    shards = DEFAULT_SHARDS
    while global_batch_size % shards:
        shards //= 2
    return shards


class TrainingSpec(Part):
    """Batches, steps, clipping and the seed."""

    global_batch_size: int = Field(default=64, ge=1, le=MAX_GLOBAL_BATCH_SIZE)
    shards: int = Field(default=0, ge=1, le=MAX_SHARDS)  # 0: not given, until the validator below fills it in
    max_steps: int = Field(default=1000, ge=1, le=MAX_STEPS)
    clip_norm: Positive | None = None
    seed: Seed = 0
    precision: Precision = Field(default=Precision.FP32, strict=False)
    on_non_finite: NonFinitePolicy = Field(default=NonFinitePolicy.FAIL, strict=False)

    @model_validator(mode="after")
    def _shards_divide_the_batch(self) -> Self:
        if self.shards == 0:
            object.__setattr__(self, "shards", default_shards(self.global_batch_size))
        if self.global_batch_size % self.shards:
            raise ValueError(
                f"shards: got {self.shards}, expected a divisor of global_batch_size ({self.global_batch_size})"
            )
        return self


class EvaluationSpec(Part):
    """When to evaluate on held-out data; 0 only after the last step."""

    every_steps: int = Field(default=0, ge=0, le=MAX_STEPS)


class CheckpointSpec(Part):
    """When to write checkpoints; 0 only after the last step."""

    every_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    keep: int = Field(default=3, ge=1, le=10_000)


class WorkersSpec(Part):
    """How many workers to use."""

    min: int = Field(default=1, ge=1, le=MAX_SHARDS)
    max: int = Field(default=0, ge=1, le=MAX_SHARDS)  # 0: not given, until the validator below fills it in

    @model_validator(mode="after")
    def _max_is_at_least_min(self) -> Self:
        if self.max == 0:
            object.__setattr__(self, "max", self.min)
        if self.max < self.min:
            raise ValueError(f"max: got {self.max}, expected at least min ({self.min})")
        return self


class JobSpec(Part):
    """A training job, complete: nothing but this and its data decides the weights."""

    name: Name = "job"
    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec = OptimizerSpec(adam=AdamOptimizer())
    schedule: ScheduleSpec = ScheduleSpec(constant=ConstantSchedule())
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    workers: WorkersSpec = Field(default_factory=WorkersSpec)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.workers.max > self.training.shards:
            raise ValueError(
                f"workers.max: got {self.workers.max}, expected at most training.shards ({self.training.shards}); "
                "raise training.shards or ask for fewer workers"
            )
        warmup_steps = getattr(self.schedule.chosen, "warmup_steps", 0)
        if warmup_steps >= self.training.max_steps:
            raise ValueError(
                f"schedule.{self.schedule.kind}.warmup_steps: got {warmup_steps}, "
                f"expected less than training.max_steps ({self.training.max_steps})"
            )
        return self


def parse_spec(document: object) -> JobSpec:
    """The job spec that a decoded YAML, JSON or proto document asks for; raises SpecError."""
    if not isinstance(document, Mapping):
        raise SpecError([Violation("", f"got {shown(document)}, expected a mapping with the keys model and data")])
    try:
        return JobSpec.model_validate(document)
    except ValidationError as error:
        raise SpecError([violation_of(detail, JobSpec) for detail in error.errors(include_url=False)]) from None
