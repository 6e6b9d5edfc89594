"""Random numbers of the forward pass, such as dropout's: a pure function of a key and of where they are drawn.

`seed` sets the key; a training step sets (seed, step, shard), so that a shard draws the same numbers wherever it is
computed. Each draw after that has a number of its own, its site. Philox (Salmon et al., 2011) maps key and site to a
stream; there is no other state, and `get_state` with `set_state` draw the same numbers again.
"""

from __future__ import annotations

from contextvars import ContextVar

import numpy as np

State = tuple[tuple[int, ...], int]  # key, sites used so far

_state: ContextVar[State] = ContextVar("random_state", default=((0,), 0))


def seed(*key: int) -> None:
    """Starts again at the first site under a key of non-negative integers."""
    _state.set((key, 0))


def get_state() -> State:
    """The key, and how many sites were used."""
    return _state.get()


def set_state(state: State) -> None:
    """Goes on as it went on from `state`."""
    _state.set(state)


def generator() -> np.random.Generator:
    """The stream of the next site."""
    key, site = _state.get()
    _state.set((key, site + 1))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key[0], spawn_key=(*key[1:], site))))
