"""Job files: YAML 1.2 or JSON on disk, a plain document in memory, and the line behind every complaint.

    examples/digits.yaml:7: optimizer.adamw.learning_rat: unknown key; did you mean learning_rate?

Knows nothing of what a job may ask for: that is `worker.spec`'s business.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase, CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from service import limits


class FieldAtFault(Protocol):
    """A violation, from wherever it comes."""

    @property
    def field(self) -> str:
        """Path of the field in the document; empty for the whole of it."""
        ...

    @property
    def description(self) -> str:
        """What is wrong with it."""
        ...


class JobFileError(Exception):
    """A job file that cannot be used; `lines` say why, each with its place."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True)
class Override:
    """Takes the place of what the file says; `origin` is what the user wrote, such as `--set a.b=c`."""

    origin: str
    path: str
    value: Any


@dataclass(frozen=True)
class JobFile:
    """What a job file says, overrides included; `lines` has the line of each key by its path."""

    name: str
    document: Any
    lines: Mapping[str, int] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()


def read(path: str, text: str, *, overrides: Iterable[Override] = (), directory: Path) -> JobFile:
    """The job file with this text and the overrides in it; a relative path to data starts from `directory`."""
    lines: dict[str, int] = {}
    document = _plain(_load(text, name=path), path=(), lines=lines, budget=_Budget(path))
    overrides = tuple(overrides)
    for override in overrides:
        document = apply(override, {} if document is None else document)
    return JobFile(path, _absolute(document, directory), lines, overrides)


def parse_override(text: str) -> Override:
    """`a.b=c`, where c is YAML: a number, a word, `[64, 64]` or `{sgd: {learning_rate: 1e-3}}`."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise JobFileError([f"--set: got {text!r}, expected KEY=VALUE such as training.max_steps=100"])
    name = f"--set {text}"
    return Override(name, path, _plain(_load(value, name=name), path=(), lines={}, budget=_Budget(name)))


def apply(override: Override, document: Any) -> Any:
    """A copy of the document with the override in it; missing parts on the way are made."""
    return _replaced(document, override.path.split("."), override)


def _replaced(document: Any, path: Sequence[str], override: Override) -> Any:
    if not path:
        return override.value
    if document is None:
        document = {}
    if not isinstance(document, dict):
        parent = ".".join(override.path.split(".")[: -len(path)])
        raise JobFileError([f"{override.origin}: {parent or 'the file'} is {document!r}, expected a mapping"])
    return document | {path[0]: _replaced(document.get(path[0]), path[1:], override)}


def explain(file: JobFile, violations: Iterable[FieldAtFault]) -> list[str]:
    """Each violation as a line that begins with where it comes from: the file and line, or the `--set`."""
    return [f"{place_of(file, violation.field)}: {_sentence(violation)}" for violation in violations]


def _sentence(violation: FieldAtFault) -> str:
    return f"{violation.field}: {violation.description}" if violation.field else violation.description


def place_of(file: JobFile, path: str) -> str:
    """Where a field was given; for a missing one, where its nearest parent was."""
    for override in reversed(file.overrides):
        if path == override.path or path.startswith(f"{override.path}."):
            return override.origin
    while path and path not in file.lines:
        path = path.rpartition(".")[0]
    return f"{file.name}:{file.lines[path]}" if path else file.name


def _load(text: str, *, name: str) -> Any:
    yaml = YAML(typ="rt")
    try:
        return yaml.load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = name if mark is None or name.startswith("--set") else f"{name}:{mark.line + 1}"
        problem = " ".join(str(error.problem or error.context or "not YAML").split())
        raise JobFileError([f"{place}: {problem}"]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise JobFileError([f"{name}: {' '.join(str(error).split())[:200] or 'nested too deep'}"]) from None


class _Budget:
    """How much one job file may hold; aliases multiply what is written."""

    def __init__(self, name: str) -> None:
        self._name, self._left = name, limits.MAX_JOB_FILE_VALUES

    def take(self, depth: int) -> None:
        """Counts one value."""
        self._left -= 1
        if self._left < 0:
            raise JobFileError([f"{self._name}: more than {limits.MAX_JOB_FILE_VALUES} values, expected a job file"])
        if depth > limits.MAX_JOB_FILE_DEPTH:
            raise JobFileError([f"{self._name}: nested deeper than {limits.MAX_JOB_FILE_DEPTH}, expected a job file"])


def _plain(value: Any, *, path: tuple[str, ...], lines: dict[str, int], budget: _Budget) -> Any:
    """What ruamel read, as Python's own types; notes the line of every key and item in `lines`."""
    budget.take(len(path))
    if isinstance(value, CommentedMap):
        inner = {}
        for key, item in value.items():
            place = (*path, str(key))
            _note(lines, place, value.lc.data, key)
            inner[str(key)] = _plain(item, path=place, lines=lines, budget=budget)
        return inner
    if isinstance(value, CommentedSeq):
        items = []
        for index, item in enumerate(value):
            place = (*path, str(index))
            _note(lines, place, value.lc.data, index)
            items.append(_plain(item, path=place, lines=lines, budget=budget))
        return items
    return _plain_scalar(value)


def _note(lines: dict[str, int], place: tuple[str, ...], positions: Any, key: Any) -> None:
    if positions and key in positions:  # a merged key has none
        lines[".".join(place)] = positions[key][0] + 1


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, TaggedScalar):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, ScalarBoolean):
        return bool(value)
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return "" if isinstance(value, CommentedBase) else str(value)


def _absolute(document: Any, directory: Path) -> Any:
    """The document with the path of its data file made absolute: the service may run in another directory."""
    match document:
        case {"data": dict(data)}:
            return document | {"data": {kind: _absolute_part(part, directory) for kind, part in data.items()}}
    return document


def _absolute_part(part: Any, directory: Path) -> Any:
    match part:
        case {"path": str(path)} if path:
            return part | {"path": str(directory / Path(path).expanduser())}
    return part
