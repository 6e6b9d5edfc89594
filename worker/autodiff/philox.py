"""Random numbers of the forward pass, such as dropout's: a pure function of a key and of where they are drawn.

`seed` sets the key; a training step sets (seed, step, shard), so that a shard draws the same numbers wherever it is
computed. Each draw after that has a number of its own, its site. Philox (Salmon et al., 2011) maps key and site to a
stream; there is no other state, and `get_state` with `set_state` draw the same numbers again.

A batch of several parts (see parts) has a key for each: `seed_parts` sets them, and `draw` gives every part its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff import parts

Key = tuple[int, ...]
State = tuple[tuple[Key, ...], int]  # the key of each part, sites used so far

_state: ContextVar[State] = ContextVar("random_state", default=(((0,),), 0))


def seed(*key: int) -> None:
    """Starts again at the first site under a key of non-negative integers."""
    seed_parts([key])


def seed_parts(keys: Sequence[Key]) -> None:
    """Starts again at the first site under a key for each part of the batch to come."""
    _state.set((tuple(keys), 0))


def get_state() -> State:
    """The keys, and how many sites were used."""
    return _state.get()


def set_state(state: State) -> None:
    """Goes on as it went on from `state`."""
    _state.set(state)


def generator() -> np.random.Generator:
    """The stream of the next site. ValueError where there are several parts, see `draw`."""
    streams = _streams()
    if len(streams) > 1:
        raise ValueError(f"generator: the batch has {len(streams)} parts, each with a stream of its own; use draw")
    return streams[0]


def draw(make: Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
    """make(stream, shape) of the next site; of several parts one after the other, each of its share of the rows."""
    streams = _streams()
    if len(streams) == 1:
        return make(streams[0], shape)
    size = parts.size_of_part(shape[0], len(streams))
    return np.concatenate([make(stream, (size, *shape[1:])) for stream in streams])


def uniform(stream: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers from 0 up to 1, for `draw`."""
    return stream.random(shape, np.float32)


def _streams() -> list[np.random.Generator]:
    keys, site = _state.get()
    if len(keys) != parts.current.get():
        raise ValueError(f"random: got {len(keys)} keys for {parts.current.get()} parts; set one for each: seed_parts")
    _state.set((keys, site + 1))
    seeds = (np.random.SeedSequence(first, spawn_key=(*rest, site)) for first, *rest in keys)
    return [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
