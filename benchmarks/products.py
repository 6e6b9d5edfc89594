"""Where a step's time goes: the matrix products and convolutions of the autodiff core, counted and timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.autodiff import correlation, kernels
from worker.autodiff.kernels import fused_attention

Array = NDArray[Any]
PEAK_SIZE = 1024  # rows and columns of the product that shows what a core can do


@dataclass
class Products:
    """Seconds in products, with what they do to their operands on the way, and their floating-point operations."""

    seconds: float = 0.0
    operations: float = 0.0
    depth: int = 0  # a product within a product is part of it

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within, every product of the core is counted. Each is reached by its name in some module of the core."""
        doors = [
            (module, name, value)
            for key, module in list(sys.modules.items())
            if key.startswith("worker.autodiff")
            for name, value in list(vars(module).items())
            if any(value is product for product in OPERATIONS)
        ]
        try:
            for module, name, product in doors:
                setattr(module, name, self._timed(product, OPERATIONS[product]))
            yield
        finally:
            for module, name, product in doors:
                setattr(module, name, product)

    def _timed(self, product: Callable[..., Any], operations: Callable[..., float]) -> Callable[..., Any]:
        def call(*operands: Any, **named: Any) -> Any:
            if self.depth:
                return product(*operands, **named)
            self.depth += 1
            started = time.perf_counter()
            result = product(*operands, **named)
            self.seconds += time.perf_counter() - started
            self.depth -= 1
            self.operations += operations(result, *operands, **named)
            return result

        return call


def _attention(query: Array, key: Array, value: Array, is_causal: bool) -> float:
    """Operations of query @ key.T and of its product with value; causal ones see half of the keys."""
    pairs = float(np.prod(query.shape[:-1])) * key.shape[-2] / (2 if is_causal else 1)
    return float(2 * pairs * (query.shape[-1] + value.shape[-1]))


# (result, *arguments) -> floating-point operations. A value or gradient of an image takes a window of the weight
# (O, I, *K) for each of the other's elements. Fused attention counts with its softmax: they are one kernel.
OPERATIONS: dict[Callable[..., Any], Callable[..., float]] = {
    kernels.matmul: lambda product, a, *_, **__: 2.0 * product.size * a.shape[-1],
    correlation.forward: lambda y, x, weight, *_, **__: 2.0 * y.size * weight[0].size,
    correlation.input_gradient: lambda x, g, weight, *_, **__: 2.0 * g.size * weight[0].size,
    correlation.weight_gradient: lambda weight, x, g, *_, **__: 2.0 * g.size * weight[0].size,
    fused_attention.forward: lambda _, unit, q, k, v, *, is_causal, **__: _attention(q, k, v, is_causal),
    fused_attention.backward: lambda _, unit, g, q, k, v, *__, is_causal, **___: 2 * _attention(q, k, v, is_causal),
}


def measured_peak() -> float:
    """GFLOP/s of the best of many large products on this core, now, in the current precision."""
    a = np.random.default_rng(1).standard_normal((PEAK_SIZE, PEAK_SIZE), np.float32)
    b, out, seconds = a.copy(), np.empty_like(a), []
    for _ in range(12):
        started = time.perf_counter()
        kernels.matmul(a, b, out)
        seconds.append(time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / min(seconds) / 1e9
