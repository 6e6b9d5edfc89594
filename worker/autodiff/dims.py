"""Dimensions and sizes as callers give them: from the end, as separate arguments or as a tuple. Knows no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, TypeGuard

Ints = int | Sequence[int]


def one_dim(name: str, rank: int, dim: int) -> int:
    """`dim` counted from 0. A scalar has a dimension 0 here, as in PyTorch. ValueError outside -rank..rank-1."""
    count = max(rank, 1)
    if not -count <= dim < count:
        raise ValueError(f"{name}: dim is {dim} but x has {rank} dimensions")
    return index(dim) % count


def some_dims(name: str, rank: int, dims: Ints) -> tuple[int, ...]:
    """`dims`, one or several, counted from 0. ValueError where two are the same."""
    given = ints(name, (dims,))
    counted = tuple(one_dim(name, rank, dim) for dim in given)
    if len(set(counted)) != len(counted):
        raise ValueError(f"{name}: dims {given} name a dimension twice")
    return counted


def ints(name: str, numbers: tuple[Ints, ...]) -> tuple[int, ...]:
    """(2, 3) from either f(2, 3) or f((2, 3)); `numbers` are f's arguments. ValueError where one is no integer."""
    several = numbers[0] if len(numbers) == 1 and is_several(numbers[0]) else numbers
    assert is_several(several)
    try:
        return tuple(index(number) for number in several)
    except TypeError:
        raise ValueError(f"{name}: got {tuple(several)}, expected integers") from None


def is_several(numbers: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(numbers, tuple | list | range)


def at(dim: int, where: int | slice) -> tuple[int | slice, ...]:
    """The index that takes `where` of dimension `dim`, and all of the others."""
    return (*(slice(None),) * dim, where)
