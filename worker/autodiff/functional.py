"""Every operation, under PyTorch's name: `from worker.autodiff import functional as F`."""

from __future__ import annotations

from worker.autodiff.elementwise import (
    abs,
    add,
    div,
    exp,
    gelu,
    log,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    relu,
    sigmoid,
    sqrt,
    sub,
    tanh,
)
from worker.autodiff.linalg import linear, matmul
from worker.autodiff.losses import cross_entropy, log_softmax, mse_loss, softmax
from worker.autodiff.reductions import argmax, logsumexp, mean, sum
from worker.autodiff.shape import flatten, getitem, permute, reshape, transpose

__all__ = [
    "abs",
    "add",
    "argmax",
    "cross_entropy",
    "div",
    "exp",
    "flatten",
    "gelu",
    "getitem",
    "linear",
    "log",
    "log_softmax",
    "logsumexp",
    "matmul",
    "maximum",
    "mean",
    "minimum",
    "mse_loss",
    "mul",
    "neg",
    "permute",
    "pow",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "sqrt",
    "sub",
    "sum",
    "tanh",
    "transpose",
]
