"""Products of matrices. All go to BLAS as 2-D products where they can.

Shapes: I features in, O features out, M rows, K the dimension summed over, N columns, ... leading dimensions.
"""

from __future__ import annotations

import math

import numpy as np

from worker.autodiff import kernels, parts
from worker.autodiff.arithmetic import add, mul
from worker.autodiff.graph import Into, record
from worker.autodiff.parts import part_by_part
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "addmm",
    "baddbmm",
    "bmm",
    "dot",
    "linear",
    "matmul",
    "mm",
    "mv",
    "outer",
]


MIXED = {np.dtype(np.float16), np.dtype(np.float32)}  # what may meet: float16 values and float32 weights


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) @ weight (O, I).T + bias (O,) -> (..., O)."""
    _check_linear(x, weight, bias)
    values, w = x.data, weight.data
    features_out, features_in = w.shape
    rows, leading = values.reshape(-1, features_in), values.shape[:-1]
    count = parts.current.get()
    y = kernels.matmul(rows, w.T, bias=None if bias is None else bias.data, parts=count)
    y = kernels.activation(y, rows)

    def flat(g: Array) -> Array:
        return g.reshape(-1, features_out)

    return record(
        "linear",
        y.reshape(*leading, features_out),
        (x, lambda g: kernels.matmul(flat(g), w, parts=count).reshape(*leading, features_in)),
        (weight, part_by_part(lambda g, out, x: kernels.matmul(flat(g).T, x, out), rows)),
        (bias, part_by_part(lambda g, out: kernels.column_sum(flat(g), out))),
    )


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """The matrix product, by the ranks of the operands as in PyTorch.

    (K,) @ (K,) -> (); (M, K) @ (K,) -> (M,); (K,) @ (K, N) -> (N,); (..., M, K) @ (..., K, N) -> (..., M, N), where
    leading dimensions are broadcast. ValueError where K differs, or for a scalar.
    """
    _check_matmul("matmul", x, w)
    # As matrices: a vector becomes a row or a column, and all rows of a batch share one 2-D product with a matrix.
    folded = x.ndim > 2 and w.ndim <= 2
    a = x.data.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if folded else np.atleast_2d(x.data)
    b = w.data if w.ndim > 1 else w.data[:, None]
    product = kernels.activation(kernels.matmul(a, b), a)
    rows = x.shape[:-1] if folded else product.shape[:-1] if x.ndim > 1 else product.shape[:-2]
    columns = product.shape[-1:] if w.ndim > 1 else ()
    x_shape, product_shape, w_is_vector = x.shape, product.shape, w.ndim == 1

    def x_vjp(g: Array) -> Array:
        gradient = kernels.matmul(g.reshape(product_shape), b.swapaxes(-1, -2))
        return gradient.reshape(x_shape) if folded else gradient

    def w_vjp(g: Array, out: Array | None) -> Array:
        is_matrix = out is not None and out.ndim == len(product_shape) == 2
        gradient = kernels.matmul(a.swapaxes(-1, -2), g.reshape(product_shape), out if is_matrix else None)
        return gradient[..., 0] if w_is_vector else gradient

    return record("matmul", product.reshape(rows + columns), (x, x_vjp), (w, Into(w_vjp)))


def mm(x: Tensor, mat2: Tensor) -> Tensor:
    """(M, K) @ (K, N) -> (M, N)."""
    return _product("mm", x, mat2, 2, 2)


def bmm(x: Tensor, mat2: Tensor) -> Tensor:
    """(B, M, K) @ (B, K, N) -> (B, M, N). The batch is not broadcast."""
    return _product("bmm", x, mat2, 3, 3)


def mv(x: Tensor, vec: Tensor) -> Tensor:
    """(M, K) @ (K,) -> (M,)."""
    return _product("mv", x, vec, 2, 1)


def dot(x: Tensor, other: Tensor) -> Tensor:
    """(K,) @ (K,) -> ()."""
    return _product("dot", x, other, 1, 1)


def outer(x: Tensor, vec2: Tensor) -> Tensor:
    """(M,), (N,) -> (M, N): each element of x times each of vec2."""
    _check_ranks("outer", x, vec2, 1, 1)
    a, b = x.data, vec2.data
    return record("outer", np.outer(a, b), (x, lambda g: g @ b), (vec2, lambda g: a @ g))


def addmm(x: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * (mat1 (M, K) @ mat2 (K, N)); x is broadcast to (M, N), and not looked at where beta is 0."""
    return _sum_with_product("addmm", x, _product("addmm", mat1, mat2, 2, 2), beta, alpha)


def baddbmm(x: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * (batch1 (B, M, K) @ batch2 (B, K, N)); x is broadcast, and not looked at where beta is 0."""
    return _sum_with_product("baddbmm", x, _product("baddbmm", batch1, batch2, 3, 3), beta, alpha)


def _product(name: str, x: Tensor, w: Tensor, x_rank: int, w_rank: int) -> Tensor:
    """matmul, for operands of just these ranks and with the same batch."""
    _check_ranks(name, x, w, x_rank, w_rank)
    _check_matmul(name, x, w)
    if x.shape[:-2] != w.shape[:-2]:
        raise ValueError(f"{name}: x has a batch of {x.shape[0]} but w of {w.shape[0]}")
    return matmul(x, w)


def _sum_with_product(name: str, x: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    try:
        fits = np.broadcast_shapes(x.shape, product.shape) == product.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: x has shape {x.shape}, which does not broadcast to the product's {product.shape}")
    scaled = product if alpha == 1 else mul(product, alpha)
    if not beta:
        return scaled
    return add(x if beta == 1 else mul(x, beta), scaled)


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"linear: weight has shape {weight.shape}, expected (features out, features in)")
    if not x.ndim or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x has shape {x.shape} but weight takes {weight.shape[1]} features")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias has shape {bias.shape}, expected {weight.shape[:1]}")


def _check_matmul(name: str, x: Tensor, w: Tensor) -> None:
    if not x.ndim or not w.ndim:
        raise ValueError(f"{name}: x has shape {x.shape} and w {w.shape}, expected at least one dimension each")
    rows = w.shape[-2] if w.ndim > 1 else w.shape[0]
    if x.shape[-1] != rows:
        raise ValueError(f"{name}: x has {x.shape[-1]} columns but w has {rows} rows")
    if x.dtype != w.dtype and not {x.dtype, w.dtype} <= MIXED:
        raise ValueError(f"{name}: x is {x.dtype} but w is {w.dtype}, expected one dtype")
    try:
        np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    except ValueError:
        raise ValueError(f"{name}: x has shape {x.shape} but w {w.shape}, whose batches do not broadcast") from None


def _check_ranks(name: str, x: Tensor, w: Tensor, x_rank: int, w_rank: int) -> None:
    if (x.ndim, w.ndim) != (x_rank, w_rank):
        raise ValueError(f"{name}: got shapes {x.shape} and {w.shape}, expected {x_rank} and {w_rank} dimensions")
