"""Versions: which memory was changed in place, and when. So backward can tell that a value which it needs is gone.

Time is a count of changes. An entry belongs to the array that owns the memory, so that all views share it, and dies
with it; within, it knows ranges of addresses, so that parameters side by side in one flat vector do not disturb each
other. Arrays say nothing themselves: only changes that are announced here are seen, which are those of Tensor's own
methods and of optimizers. What is done to `tensor.data` by NumPy is not.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

Array = NDArray[Any]
Range = tuple[int, int]  # the first address, and the one behind the last
Change = tuple[int, str]  # when, and by what

MAX_RANGES = 64  # of one owner; beyond, they are joined to one that covers all: a loop over x[i] = ... stays cheap

now = 0


class History:
    """The changes of the memory that one array owns: the latest of each range."""

    def __init__(self) -> None:
        self.changes: dict[Range, Change] = {}

    def add(self, where: Range, change: Change) -> None:
        self.changes[where] = change
        if len(self.changes) > MAX_RANGES:
            whole = min(first for first, _ in self.changes), max(last for _, last in self.changes)
            self.changes = {whole: change}

    def latest(self, where: Range, *, besides: Range | None = None) -> Change:
        """The latest change that overlaps `where`; (-1, "") where there was none. `besides` is one not to look at."""
        overlapping = (
            change
            for (first, last), change in self.changes.items()
            if first < where[1] and where[0] < last and (first, last) != besides
        )
        return max(overlapping, default=(-1, ""))


_changed: dict[int, tuple[weakref.ref[Array], History]] = {}
# Of these changes, those that the graph has recorded: other tensors with this memory know nothing of them.
rebased: dict[int, tuple[weakref.ref[Array], History]] = {}


def changed(array: Array, by: str) -> None:
    """Note that the elements of `array` have been changed in place by the operation of this name."""
    global now
    now += 1
    _note(_changed, array, by)


def rebase(array: Array, by: str) -> None:
    """Note that `array` was changed, and that the graph holds the change for one tensor only."""
    changed(array, by)
    _note(rebased, array, by)


def last_change(array: Array) -> Change:
    """When, and by what, an element of `array` was last changed; -1 for never."""
    return _latest(_changed, array)


def last_rebase(array: Array, *, besides: Array | None = None) -> Change:
    """The same for changes that the graph knows of; `besides` is a part whose changes do not count."""
    return _latest(rebased, array, besides=None if besides is None else byte_bounds(besides))


def saved_arrays(vjp: object) -> Iterator[Array]:
    """The arrays that a vjp holds: what it needs of the forward pass lives in its closure, however deep."""
    stack, seen = [vjp], set()
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, types.FunctionType):
            stack.extend(value.__defaults__ or ())
            stack.extend(_content(cell) for cell in value.__closure__ or ())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, functools.partial):
            stack.extend((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            stack.extend((value.__func__, value.__self__))
        elif hasattr(value, "saved"):  # Into, and the stub of a vjp
            stack.append(value.saved())
        elif isinstance(data := getattr(value, "data", None), np.ndarray):  # a Tensor
            yield data
        elif is_dataclass(value) and not isinstance(value, type):
            stack.extend(getattr(value, field.name) for field in fields(value))


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was not bound yet
        return None


def _owner(array: Array) -> Array:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _note(table: dict[int, tuple[weakref.ref[Array], History]], array: Array, by: str) -> None:
    owner = _owner(array)
    key = id(owner)
    if key not in table:
        table[key] = weakref.ref(owner, lambda _: table.pop(key, None)), History()
    if array.size:
        table[key][1].add(byte_bounds(array), (now, by))


def _latest(
    table: dict[int, tuple[weakref.ref[Array], History]], array: Array, *, besides: Range | None = None
) -> Change:
    entry = table.get(id(_owner(array)))
    return entry[1].latest(byte_bounds(array), besides=besides) if entry and array.size else (-1, "")
