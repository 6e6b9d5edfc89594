"""The reduce's passes over memory, compiled.

They work block by block, and a block is always computed in the same way, so that the bits of a result do not depend
on which worker owns the block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from worker.autodiff.kernels import BLOCK
from worker.autodiff.kernels.compilation import compiled
from worker.autodiff.kernels.rows import block_square_sums


@intrinsic
def _fence(typing_context: Any) -> Any:
    """A sequentially consistent memory fence."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def fence() -> None:
    """Orders this process's writes to shared memory before, and its reads after."""
    _fence()  # type: ignore[call-arg]  # the typing context is numba's to give


@compiled
def add_into(into: NDArray[np.float32], other: NDArray[np.float32]) -> None:
    """into += other, both (P,) float32, in place."""
    for i in range(into.size):
        into[i] += other[i]


@compiled
def reduce_range(
    slots: NDArray[np.float32], joins: NDArray[np.int64], first: int, last: int, squares: NDArray[np.float64]
) -> None:
    """Joins gradient slots over the parameters [first, last), in place; the sum ends in slot 0.

    slots (slots, stride) float32; joins (n, 2) int64, rows (into, other) in order; squares (blocks,) float64
    receives the sum of squares of each block of the range. `first` is a multiple of BLOCK.
    """
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        for j in range(joins.shape[0]):
            add_into(slots[joins[j, 0], start:stop], slots[joins[j, 1], start:stop])
        k = start // BLOCK
        block_square_sums(slots[0, start:stop], squares[k : k + 1])
