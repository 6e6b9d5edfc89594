"""What the parts of a job spec are made of: strict records, choices between them, and numbers with bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

MAX_PARAMETERS_PER_LAYER_SIDE = 1 << 20  # a weight matrix of this width squared would not fit any machine
MAX_STEPS = 1_000_000_000


class Part(BaseModel):
    """A part of a job spec: unknown keys, wrong types, NaN and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        """`digits:` with nothing behind it means `digits: {}`."""
        return {} if value is None else value


class Choice(Part):
    """A part of which exactly one key is given: `{mlp: {...}}`. Keys in `beside` may stand beside it."""

    beside: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        """The key that was given."""
        return next(name for name in self.kinds() if getattr(self, name) is not None)

    @property
    def chosen(self) -> Any:
        """The part behind that key."""
        return getattr(self, self.kind)

    @classmethod
    def kinds(cls) -> tuple[str, ...]:
        """Every key of which one is given."""
        return tuple(name for name in cls.model_fields if name not in cls.beside)

    @model_validator(mode="before")
    @classmethod
    def _null_is_chosen(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: {} if part is None else part for key, part in value.items()}
        return value

    @model_serializer(mode="plain")
    def _only_the_chosen(self) -> dict[str, Any]:
        beside = {name: getattr(self, name) for name in self.beside if getattr(self, name) is not None}
        return {self.kind: self.chosen, **beside}

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
