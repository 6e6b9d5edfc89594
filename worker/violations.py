"""What is wrong with a job spec, field by field, in words a user can act on.

Every violation says what, got and expected. Knows pydantic's error details, not the spec itself.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Violation:
    """One field at fault: `field` is its path, such as "optimizer.adam.learning_rate"."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class SpecError(ValueError):
    """A job that cannot be run as asked; `violations` names every field at fault."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = tuple(violations)


def violation_of(detail: Any, root: type[BaseModel]) -> Violation:
    """One of pydantic's error details about a `root` document, in our words: what, got, expected."""
    location = [str(part) for part in detail["loc"]]
    kind, context, got = detail["type"], detail.get("ctx", {}), shown(detail["input"])
    match kind:
        case "extra_forbidden":
            return Violation(".".join(location), _unknown_key(location, root))
        case "missing":
            return Violation(".".join(location), f"missing, expected {_expectation(location, root)}")
        case "value_error":
            message = str(context["error"])
            field, separator, rest = message.partition(": ")
            if separator and " " not in field:  # a validator across fields names the one at fault
                return Violation(".".join([*location, field]), rest)
            return Violation(".".join(location), message)
    expectations: dict[str, Callable[[], str]] = {
        "greater_than": lambda: f"a number > {_bound(context['gt'])}",
        "greater_than_equal": lambda: f"a number >= {_bound(context['ge'])}",
        "less_than": lambda: f"a number < {_bound(context['lt'])}",
        "less_than_equal": lambda: f"a number <= {_bound(context['le'])}",
        "finite_number": lambda: "a finite number",
        "float_type": lambda: "a number",
        "int_type": lambda: "a whole number",
        "int_from_float": lambda: "a whole number",
        "bool_type": lambda: "true or false",
        "string_type": lambda: "text",
        "enum": lambda: f"one of {context['expected'].replace(' or ', ', ')}",
        "tuple_type": lambda: "a list",
        "model_type": lambda: "a mapping of keys to values",
        "string_pattern_mismatch": lambda: (
            "at most 63 lower-case letters, digits, '-', '_' and '.', the first a letter or digit"
        ),
        "string_too_long": lambda: f"at most {context['max_length']} characters",
        "too_long": lambda: f"at most {context['max_length']} items",
        "string_too_short": lambda: "text that is not empty",
    }
    expected = expectations.get(kind, lambda: str(detail["msg"]))()
    return Violation(".".join(location), f"got {got}, expected {expected}")


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _part_at(location: Sequence[str], root: type[BaseModel]) -> type[BaseModel] | None:
    """The part of the spec that a path leads to."""
    part = root
    for name in location:
        field = part.model_fields.get(name)
        if field is None:
            return None
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not found:
            return None
        part = found[0]
    return part


def _unknown_key(location: Sequence[str], root: type[BaseModel]) -> str:
    part = _part_at(location[:-1], root) or root
    close = difflib.get_close_matches(location[-1], part.model_fields, n=1, cutoff=0.5)
    known = ", ".join(part.model_fields) or "none"
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key, expected one of {known}"


def _expectation(location: Sequence[str], root: type[BaseModel]) -> str:
    part = _part_at(location, root)
    return f"one of {', '.join(part.model_fields)}" if part is not None else "a value"


def shown(value: object) -> str:
    """A value as an error message shows it: short, on one line."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
