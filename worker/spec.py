"""What a job may ask for: the one definition, for the job file, the API and the workers alike.

A `JobSpec` is complete and immutable: together with the data it decides the weights to the last bit.
Bad input raises `worker.violations.SpecError`, which names every field at fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Self

from pydantic import Field, ValidationError, model_validator

from worker.architecture import (
    Activation,
    BertModel,
    CnnModel,
    GptModel,
    MlpModel,
    ModelSpec,
    TransformerModel,
)
from worker.optimization import (
    AdagradOptimizer,
    AdamOptimizer,
    AdamwOptimizer,
    ConstantSchedule,
    CosineSchedule,
    Ema,
    LinearSchedule,
    LionOptimizer,
    MomentumOptimizer,
    OneCycleSchedule,
    OptimizerSpec,
    RmspropOptimizer,
    ScheduleSpec,
    SgdOptimizer,
    StepSchedule,
    WsdSchedule,
)
from worker.parts import (
    MAX_STEPS,
    Choice,
    Fraction,
    Name,
    NonNegative,
    Part,
    Positive,
    Seed,
    Width,
)
from worker.violations import SpecError, Violation, shown, violation_of

__all__ = [
    "DEFAULT_SHARDS",
    "MAX_GLOBAL_BATCH_SIZE",
    "MAX_SHARDS",
    "MAX_STEPS",
    "Activation",
    "AdagradOptimizer",
    "AdamOptimizer",
    "AdamwOptimizer",
    "ArraysData",
    "BertModel",
    "CheckpointSpec",
    "CnnModel",
    "ConstantSchedule",
    "CosineSchedule",
    "DataSpec",
    "DigitsData",
    "Ema",
    "EvaluationSpec",
    "GptModel",
    "JobSpec",
    "LinearSchedule",
    "LionOptimizer",
    "MlpModel",
    "ModelSpec",
    "MomentumOptimizer",
    "NonFinitePolicy",
    "OneCycleSchedule",
    "OptimizerSpec",
    "Precision",
    "RmspropOptimizer",
    "ScheduleSpec",
    "SgdOptimizer",
    "SpecError",
    "StepSchedule",
    "SyntheticData",
    "Task",
    "TextData",
    "Tokenizer",
    "TrainingSpec",
    "TransformerModel",
    "Violation",
    "WorkersSpec",
    "WsdSchedule",
    "default_shards",
    "parse_spec",
]

MAX_GLOBAL_BATCH_SIZE = 1 << 20
MAX_SHARDS = 1024  # each shard has a slot in the control page
DEFAULT_SHARDS = 8
MAX_PRIORITY = 1000


class Task(StrEnum):
    """What a model learns from rows of numbers; decides its loss."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class Tokenizer(StrEnum):
    """How text becomes tokens."""

    CHAR = "char"
    BYTE = "byte"


class Precision(StrEnum):
    """Number formats of the forward and backward pass; weights and optimizer state are float32 always."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class NonFinitePolicy(StrEnum):
    """What a NaN or an infinity in the gradient does."""

    FAIL = "fail"
    SKIP = "skip"


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


class TextData(Part):
    """A text file, or all files of a directory that match a pattern; without a path, Python's own library."""

    path: str | None = Field(default=None, min_length=1, max_length=4096)
    pattern: str = Field(default="*.py", min_length=1, max_length=1024)
    tokenizer: Tokenizer = Field(default=Tokenizer.CHAR, strict=False)
    validation_fraction: Fraction = 0.1


class DataSpec(Choice):
    """Exactly one source of data."""

    digits: DigitsData | None = None
    synthetic: SyntheticData | None = None
    arrays: ArraysData | None = None
    text: TextData | None = None


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
    clip_value: Positive | None = None
    seed: Seed = 0
    precision: Precision = Field(default=Precision.FP32, strict=False)
    gradient_checkpointing: bool = False
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
    priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.workers.max > self.training.shards:
            raise ValueError(
                f"workers.max: got {self.workers.max}, expected at most training.shards ({self.training.shards}); "
                "raise training.shards or ask for fewer workers"
            )
        takes_text = isinstance(self.model.chosen, TransformerModel)
        if takes_text != (self.data.text is not None):
            expected = "text" if takes_text else "digits, synthetic or arrays"
            raise ValueError(f"data: got {self.data.kind}, expected {expected} for the model {self.model.kind}")
        warmup_steps = getattr(self.schedule.chosen, "warmup_steps", 0)
        if warmup_steps >= self.training.max_steps:
            raise ValueError(
                f"schedule.{self.schedule.kind}.warmup_steps: got {warmup_steps}, "
                f"expected less than training.max_steps ({self.training.max_steps})"
            )
        decay_steps = getattr(self.schedule.chosen, "decay_steps", 0)
        if warmup_steps + decay_steps >= self.training.max_steps:
            raise ValueError(
                f"schedule.{self.schedule.kind}.decay_steps: got {decay_steps}, expected less than "
                f"training.max_steps - warmup_steps ({self.training.max_steps - warmup_steps})"
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
