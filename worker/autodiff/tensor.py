"""Tensor: an array, whether it needs a gradient, and the node of the graph that made it.

The surface is PyTorch's (https://pytorch.org/docs/stable/tensors.html), on NumPy arrays. This module is the bottom of
the package: it knows no operation and no graph. Its methods reach up to both at call time, through their modules, which
may be imported half when this one is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import worker.autodiff.functional as F
import worker.autodiff.graph as graph

if TYPE_CHECKING:
    from worker.autodiff.graph import Node

Array = NDArray[Any]
Dim = int | tuple[int, ...] | None
Index = Any  # int, slice, None, Ellipsis, array, Tensor, or a tuple of them


class Tensor:
    """An n-dimensional array that operations can be differentiated through.

    `data` shares memory with an array it is given. Lists and Python floats become float32, as in `torch.tensor`;
    arrays keep their dtype (float64 for gradient checks, integers for indices).

    `grad` is None until a backward pass has reached this leaf. `slot`, where set, is the array that this leaf's
    gradient is written to (nn.FlatParameters sets it); `grad` is then a view of it.
    """

    __slots__ = ("__weakref__", "data", "grad", "node", "requires_grad", "slot")

    # NumPy must leave `array * tensor` to Tensor.__rmul__.
    __array_ufunc__ = None

    data: Array
    grad: Tensor | None
    node: Node | None
    requires_grad: bool
    slot: Array | None

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        self.data = array if type(array) is np.ndarray else _as_array(array)
        self.grad = None
        self.node = None
        self.slot = None
        self.requires_grad = False
        if requires_grad:
            self.requires_grad_()

    # The value.

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def is_leaf(self) -> bool:
        return self.node is None

    def numel(self) -> int:
        return self.data.size

    def numpy(self) -> Array:
        """The array itself, not a copy. RuntimeError where it is part of a graph, as in PyTorch."""
        if self.requires_grad:
            raise RuntimeError("numpy: this tensor requires a gradient; use tensor.detach().numpy()")
        return self.data

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self.data.size != 1:
            raise ValueError(f"item: the tensor has {self.data.size} elements, expected 1")
        return self.data.item()

    def tolist(self) -> Any:
        return self.data.tolist()

    def __len__(self) -> int:
        if not self.data.ndim:
            raise TypeError("len: the tensor has no dimensions")
        return len(self.data)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __repr__(self) -> str:
        text = np.array2string(self.data, precision=4, separator=", ", prefix="tensor(")
        dtype = "" if self.data.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.data.dtype}"
        origin = f", made_by={self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({text}{dtype}{origin})"

    # The graph.

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Say whether backward shall compute this leaf's gradient. Changes this tensor."""
        if requires_grad and self.data.dtype.kind != "f":
            raise ValueError(f"requires_grad: only floating-point tensors have gradients, got {self.data.dtype}")
        if not requires_grad and self.node is not None:
            raise ValueError("requires_grad: the result of an operation follows its inputs; use detach()")
        self.requires_grad = requires_grad
        return self

    def detach(self) -> Tensor:
        """The same memory, outside the graph."""
        return Tensor(self.data)

    def backward(self, gradient: Tensor | Array | None = None, *, retain_graph: bool = False) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf that it depends on.

        `gradient` is the gradient of the final result by this tensor, of its shape; a scalar needs none.
        """
        for _ in graph.backward(self, gradient, retain_graph=retain_graph):
            pass

    def accumulate_grad(self, gradient: Array) -> None:
        """Add `gradient` (an array of this shape) to `.grad`, in place where there is one."""
        if self.grad is not None:
            self.grad.data += gradient
        elif self.slot is None:
            self.grad = Tensor(np.array(gradient))  # a copy: the array may be another leaf's gradient, too
        else:
            if gradient is not self.slot:
                self.slot[...] = gradient
            self.grad = Tensor(self.slot)

    # Operators. What they do is written in functional.

    def __add__(self, other: Tensor | float) -> Tensor:
        return F.add(self, other)

    def __radd__(self, other: Tensor | float) -> Tensor:
        return F.add(other, self)

    def __sub__(self, other: Tensor | float) -> Tensor:
        return F.sub(self, other)

    def __rsub__(self, other: Tensor | float) -> Tensor:
        return F.sub(other, self)

    def __mul__(self, other: Tensor | float) -> Tensor:
        return F.mul(self, other)

    def __rmul__(self, other: Tensor | float) -> Tensor:
        return F.mul(other, self)

    def __truediv__(self, other: Tensor | float) -> Tensor:
        return F.div(self, other)

    def __rtruediv__(self, other: Tensor | float) -> Tensor:
        return F.div(other, self)

    def __pow__(self, exponent: float) -> Tensor:
        return F.pow(self, exponent)

    def __neg__(self) -> Tensor:
        return F.neg(self)

    def __abs__(self) -> Tensor:
        return F.abs(self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return F.matmul(self, other)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]  # element by element, as in PyTorch
        return Tensor(np.asarray(self.data == _plain(other)))

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return Tensor(np.asarray(self.data != _plain(other)))

    def __lt__(self, other: Tensor | float) -> Tensor:
        return Tensor(np.asarray(self.data < _plain(other)))

    def __le__(self, other: Tensor | float) -> Tensor:
        return Tensor(np.asarray(self.data <= _plain(other)))

    def __gt__(self, other: Tensor | float) -> Tensor:
        return Tensor(np.asarray(self.data > _plain(other)))

    def __ge__(self, other: Tensor | float) -> Tensor:
        return Tensor(np.asarray(self.data >= _plain(other)))

    __hash__ = object.__hash__  # a tensor is a key by identity

    def __getitem__(self, index: Index) -> Tensor:
        return F.getitem(self, index)

    # Methods. What they do is written in functional.

    def exp(self) -> Tensor:
        return F.exp(self)

    def log(self) -> Tensor:
        return F.log(self)

    def sqrt(self) -> Tensor:
        return F.sqrt(self)

    def tanh(self) -> Tensor:
        return F.tanh(self)

    def sigmoid(self) -> Tensor:
        return F.sigmoid(self)

    def relu(self) -> Tensor:
        return F.relu(self)

    def abs(self) -> Tensor:
        return F.abs(self)

    def pow(self, exponent: float) -> Tensor:
        return F.pow(self, exponent)

    def sum(self, dim: Dim = None, keepdim: bool = False) -> Tensor:
        return F.sum(self, dim, keepdim)

    def mean(self, dim: Dim = None, keepdim: bool = False) -> Tensor:
        return F.mean(self, dim, keepdim)

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Tensor:
        return F.argmax(self, dim, keepdim)

    def softmax(self, dim: int) -> Tensor:
        return F.softmax(self, dim)

    def log_softmax(self, dim: int) -> Tensor:
        return F.log_softmax(self, dim)

    def matmul(self, other: Tensor) -> Tensor:
        return F.matmul(self, other)

    def reshape(self, *shape: int | tuple[int, ...]) -> Tensor:
        return F.reshape(self, *shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return F.flatten(self, start_dim, end_dim)

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        return F.transpose(self, dim0, dim1)

    def permute(self, *dims: int | tuple[int, ...]) -> Tensor:
        return F.permute(self, *dims)

    @property
    def T(self) -> Tensor:
        return F.permute(self, tuple(reversed(range(self.data.ndim))))


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _as_array(value: Any) -> Array:
    """Whatever is not an array yet, as one: floating-point numbers of Python's become float32."""
    if isinstance(value, Tensor):
        raise TypeError("Tensor: got a Tensor, expected an array; use tensor.detach()")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"Tensor: got values of dtype {array.dtype}, expected numbers")
    return array if isinstance(value, np.generic | np.ndarray) or array.dtype.kind != "f" else array.astype(np.float32)
