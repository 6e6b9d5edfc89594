"""Products of matrices. All go to BLAS as 2-D products where they can.

Shapes: I features in, O features out, M rows, K the dimension summed over, N columns, ... leading dimensions.
"""

from __future__ import annotations

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.graph import Into, record
from worker.autodiff.tensor import Array, Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) @ weight (O, I).T + bias (O,) -> (..., O)."""
    _check_linear(x, weight, bias)
    w, (features_out, features_in) = weight.data, weight.shape
    rows, leading = x.data.reshape(-1, features_in), x.shape[:-1]
    y = rows @ w.T
    if bias is not None:
        kernels.add_bias(y, bias.data)

    def flat(g: Array) -> Array:
        return g.reshape(-1, features_out)

    return record(
        "linear",
        y.reshape(*leading, features_out),
        (x, lambda g: (flat(g) @ w).reshape(*leading, features_in)),
        (weight, Into(lambda g, out: np.matmul(flat(g).T, rows, out=out))),
        (bias, Into(lambda g, out: kernels.column_sum(flat(g), out))),
    )


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """The matrix product, by the ranks of the operands as in PyTorch.

    (K,) @ (K,) -> (); (M, K) @ (K,) -> (M,); (K,) @ (K, N) -> (N,); (..., M, K) @ (..., K, N) -> (..., M, N), where
    leading dimensions are broadcast. ValueError where K differs, or for a scalar.
    """
    _check_matmul(x, w)
    # As matrices: a vector becomes a row or a column, and all rows of a batch share one 2-D product with a matrix.
    folded = x.ndim > 2 and w.ndim <= 2
    a = x.data.reshape(-1, x.shape[-1]) if folded else np.atleast_2d(x.data)
    b = w.data if w.ndim > 1 else w.data[:, None]
    product = a @ b
    rows = x.shape[:-1] if folded else product.shape[:-1] if x.ndim > 1 else product.shape[:-2]
    columns = product.shape[-1:] if w.ndim > 1 else ()
    x_shape, product_shape, w_is_vector = x.shape, product.shape, w.ndim == 1

    def x_vjp(g: Array) -> Array:
        gradient = g.reshape(product_shape) @ b.swapaxes(-1, -2)
        return gradient.reshape(x_shape) if folded else gradient

    def w_vjp(g: Array, out: Array | None) -> Array:
        is_matrix = out is not None and out.ndim == len(product_shape) == 2
        gradient = np.matmul(a.swapaxes(-1, -2), g.reshape(product_shape), out=out if is_matrix else None)
        return gradient[..., 0] if w_is_vector else gradient

    return record("matmul", product.reshape(rows + columns), (x, x_vjp), (w, Into(w_vjp)))


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"linear: weight has shape {weight.shape}, expected (features out, features in)")
    if not x.ndim or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x has shape {x.shape} but weight takes {weight.shape[1]} features")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias has shape {bias.shape}, expected {weight.shape[:1]}")


def _check_matmul(x: Tensor, w: Tensor) -> None:
    if not x.ndim or not w.ndim:
        raise ValueError(f"matmul: x has shape {x.shape} and w {w.shape}, expected at least one dimension each")
    rows = w.shape[-2] if w.ndim > 1 else w.shape[0]
    if x.shape[-1] != rows:
        raise ValueError(f"matmul: x has {x.shape[-1]} columns but w has {rows} rows")
