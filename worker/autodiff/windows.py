"""Windows: where a kernel lies as it slides over an array. Convolution, pooling and unfold share it.

Shapes: N samples, C channels, L positions in each of R spatial dimensions, K kernel taps, O places where a window lies.
Arrays are (N, C, *L), whatever their layout in memory. This module knows no operation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Array = NDArray[Any]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Windows:
    """`out` places of a `kernel` over `size` positions, in each dimension; the first starts `before` them.

    A place is `stride` after the one before it, a tap `dilation` after the one before it.
    """

    size: Sizes
    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes
    out: Sizes

    @cached_property
    def num_taps(self) -> int:
        return math.prod(self.kernel)

    @cached_property
    def num_places(self) -> int:
        return math.prod(self.out)

    @cached_property
    def is_padded(self) -> bool:
        return self.padded_size != self.size

    @cached_property
    def padded_size(self) -> Sizes:
        """The positions and the padding around them, as far as any window reaches."""
        return tuple(
            max((self.out[d] - 1) * self.stride[d] + self.dilation[d] * (self.kernel[d] - 1) + 1, self.before[d] + size)
            for d, size in enumerate(self.size)
        )

    @cached_property
    def _inner(self) -> Any:
        """The index of the positions within the padded array."""
        return ..., *(slice(before, before + size) for before, size in zip(self.before, self.size, strict=True))

    @cached_property
    def of_image(self) -> Windows:
        """The same windows over two dimensions, where there is one: over an image of one row."""
        if len(self.size) == 2:
            return self
        one, none = (1,), (0,)
        return Windows(
            size=one + self.size,
            kernel=one + self.kernel,
            stride=one + self.stride,
            dilation=one + self.dilation,
            before=none + self.before,
            out=one + self.out,
        )

    def phases(self) -> Iterator[tuple[Any, Any, Windows]]:
        """The windows that go the other way, from `out` to `size`: convolutions of stride 1 with the kernel reversed.

        Positions that are a stride apart see the same taps, every stride-th; with a stride there are as many phases.
        For each: the index of its positions, that of its taps, and the windows; none has both a stride and a dilation.
        """
        return (
            (
                (..., *(positions for positions, _, _ in phase)),
                (..., *(taps for _, taps, _ in phase)),
                Windows(
                    size=self.out,
                    kernel=tuple(len(range(k)[taps]) for k, (_, taps, _) in zip(self.kernel, phase, strict=True)),
                    stride=(1,) * len(self.size),
                    dilation=self.dilation,
                    before=tuple(before for _, _, before in phase),
                    out=tuple(len(range(n)[positions]) for n, (positions, _, _) in zip(self.size, phase, strict=True)),
                ),
            )
            for phase in itertools.product(*(self._phases_along(d) for d in range(len(self.size))))
        )

    def _phases_along(self, d: int) -> list[tuple[slice, slice, int]]:
        """Positions, taps, and what stands before the first position, for each phase of dimension d."""
        phases = []
        for first_tap in range(self.stride[d]):
            first = (first_tap - self.before[d]) % self.stride[d]
            reach = self.dilation[d] * (len(range(first_tap, self.kernel[d], self.stride[d])) - 1)
            skipped = (first + self.before[d] - first_tap) // self.stride[d]
            taps = slice(first_tap, None, self.stride[d])
            phases.append((slice(first, None, self.stride[d]), taps, reach - skipped))
        return phases

    def padded(self, x: Array, value: float = 0.0) -> Array:
        """x (N, C, *L) with `value` around it, in the same memory layout; x itself where there is no padding."""
        if not self.is_padded:
            return x
        shape = (*x.shape[:2], *self.padded_size)
        padded = np.empty_like(x, shape=shape)
        padded[...] = value
        padded[self._inner] = x
        return padded

    def unpadded(self, padded: Array) -> Array:
        """What of a padded array is not padding; a view."""
        inner: Array = padded[self._inner]
        return inner

    def taps(self) -> Iterator[Any]:
        """For each tap of the kernel, the index of what it sees in a padded array (..., *L): (..., *out)."""
        along = [
            [slice(t * dilation, t * dilation + (out - 1) * stride + 1, stride) for t in range(kernel)]
            for kernel, stride, dilation, out in zip(self.kernel, self.stride, self.dilation, self.out, strict=True)
        ]
        return ((..., *tap) for tap in itertools.product(*along))

    def view(self, padded: Array) -> Array:
        """Every window of a padded array (N, C, *L): a read-only view (N, C, *O, *K)."""
        steps = padded.strides[2:]
        places = [step * stride for step, stride in zip(steps, self.stride, strict=True)]
        taps = [step * dilation for step, dilation in zip(steps, self.dilation, strict=True)]
        shape = (*padded.shape[:2], *self.out, *self.kernel)
        return as_strided(padded, shape, (*padded.strides[:2], *places, *taps), writeable=False)


def sizes(name: str, argument: str, value: int | Sequence[int], rank: int, *, least: int) -> Sizes:
    """`value` as one size a dimension; ValueError for another number of sizes, or one below `least`."""
    given = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(given) == 1:
        given *= rank
    if len(given) != rank:
        raise ValueError(f"{name}: {argument} is {value}, expected one number or {rank}")
    if min(given) < least:
        raise ValueError(f"{name}: {argument} is {value}, expected at least {least}")
    return given


def batched(name: str, x: Array, rank: int) -> Array:
    """x (N, C, *L) from (N, C, *L) or (C, *L) with `rank` spatial dimensions; ValueError for another rank."""
    if x.ndim not in (rank + 1, rank + 2):
        raise ValueError(f"{name}: input has shape {x.shape}, expected {rank + 2} dimensions, or {rank + 1} unbatched")
    return x if x.ndim == rank + 2 else x[None]


def channels_last(x: Array) -> Array:
    """x (N, C, *L) as a contiguous array (N, *L, C): a view, where the memory is so already."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def as_image(x: Array) -> Array:
    """x (N, C, L) or (N, C, H, W) as a contiguous image (N, 1 or H, L or W, C)."""
    last = channels_last(x)
    return last if last.ndim == 4 else last[:, None]


def channels_first(x: Array) -> Array:
    """The view (N, C, *L) of an array (N, *L, C)."""
    return np.moveaxis(x, -1, 1)
