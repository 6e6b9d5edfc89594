"""Tensor: an array, whether it needs a gradient, and the node of the graph that made it.

The surface is PyTorch's (https://pytorch.org/docs/stable/tensors.html), on NumPy arrays. This module is the bottom of
the package: it knows no operation and no graph. Its methods reach up to both at call time, through their modules, which
may be imported half when this one is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

import worker.autodiff.functional as F
import worker.autodiff.graph as graph
import worker.autodiff.hooks as hooks
import worker.autodiff.inplace as inplace

if TYPE_CHECKING:
    from worker.autodiff.node import Node

Array = NDArray[Any]
Dim = int | tuple[int, ...] | None
Index = Any  # int, slice, None, Ellipsis, array, Tensor, or a tuple of them


def _operation(name: str) -> Callable[..., Tensor]:
    """The method that calls functional's operation of this name with the tensor as its first argument."""

    def call(self: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        result: Tensor = getattr(F, name)(self, *arguments, **keywords)
        return result

    call.__name__ = call.__qualname__ = name
    return call


def _several(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """_operation, for one that gives several tensors."""
    return cast("Callable[..., tuple[Tensor, ...]]", _operation(name))


def _operations(names: str) -> Iterator[Callable[..., Any]]:
    return map(_operation, names.split())


def _reflected(name: str) -> Callable[..., Tensor]:
    """The method behind `number - tensor`: the tensor is the second operand."""

    def call(self: Tensor, other: Any) -> Tensor:
        result: Tensor = getattr(F, name)(other, self)
        return result

    return call


def _in_place(name: str) -> Callable[..., Tensor]:
    """The method that changes the tensor to what functional's operation of this name gives for it."""

    def call(self: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        return inplace.change(self, f"{name}_", getattr(F, name), *arguments, **keywords)

    call.__name__ = call.__qualname__ = f"{name}_"
    return call


class Tensor:
    """An n-dimensional array that operations can be differentiated through.

    `data` shares memory with an array it is given. Lists and Python floats become float32, as in `torch.tensor`;
    arrays keep their dtype (float64 for gradient checks, integers for indices).

    `grad` is None until a backward pass has reached this leaf. `slot`, where set, is the array that this leaf's
    gradient is written to (nn.FlatParameters sets it); `grad` is then a view of it. `watch` is who wants to see the
    leaf's gradient: see register_hook.
    """

    __slots__ = ("__weakref__", "data", "grad", "node", "requires_grad", "slot", "watch")

    # NumPy must leave `array * tensor` to Tensor.__rmul__.
    __array_ufunc__ = None

    data: Array
    grad: Tensor | None
    node: Node | None
    requires_grad: bool
    slot: Array | None
    watch: hooks.Watch | None

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        self.data = array if type(array) is np.ndarray else _as_array(array)
        self.grad = None
        self.node = None
        self.slot = None
        self.watch = None
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

    def clone(self) -> Tensor:
        """A copy in memory of its own, in the graph."""
        return graph.record("clone", self.data.copy(), (self, lambda g: g))

    def backward(
        self,
        gradient: Tensor | Array | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf that it depends on; see autodiff.backward.

        `gradient` is the gradient of the final result by this tensor, of its shape; a scalar needs none.
        """
        graph.backward(self, gradient, retain_graph, create_graph)

    def register_hook(self, hook: hooks.Hook) -> hooks.Handle:
        """Call hook(gradient) whenever this tensor's gradient was computed; a Tensor it returns takes its place.

        The gradient is complete, and not yet in `.grad`; the hook must not change it. `remove()` of what is returned
        ends it. RuntimeError for a tensor without a gradient.
        """
        return self._watch("register_hook").add(hook)

    def retain_grad(self) -> None:
        """Let backward fill `.grad`, as if this were a leaf (for a leaf nothing changes)."""
        watch = self._watch("retain_grad")
        if self.node is not None:
            watch.keep(self)

    def _watch(self, name: str) -> hooks.Watch:
        if not self.requires_grad:
            raise RuntimeError(f"{name}: this tensor does not require a gradient")
        source = self.node or self
        if source.watch is None:
            source.watch = hooks.Watch()
        return source.watch

    def accumulate_grad(self, gradient: Array) -> None:
        """Add an array of this shape, or of its parts (see in_parts), to `.grad`, in place where there is one."""
        if self.grad is not None:
            if (shape := self.grad.shape) != gradient.shape:
                raise RuntimeError(f"backward: got a gradient of {gradient.shape} for .grad of {shape}; set it to None")
            self.grad.data += gradient
        elif self.slot is None:
            self.grad = Tensor(np.array(gradient))  # a copy: the array may be another leaf's gradient, too
        else:
            if gradient is not self.slot:
                self.slot[...] = gradient
            self.grad = Tensor(self.slot)

    # Operators and methods. What they do is written once, in functional.

    __add__, __radd__ = _operation("add"), _reflected("add")
    __sub__, __rsub__ = _operation("sub"), _reflected("sub")
    __mul__, __rmul__ = _operation("mul"), _reflected("mul")
    __truediv__, __rtruediv__ = _operation("div"), _reflected("div")
    __floordiv__, __rfloordiv__ = _operation("floor_divide"), _reflected("floor_divide")
    __mod__, __rmod__ = _operation("remainder"), _reflected("remainder")
    __pow__, __rpow__ = _operation("pow"), _reflected("pow")
    __and__, __rand__ = _operation("bitwise_and"), _reflected("bitwise_and")
    __or__, __ror__ = _operation("bitwise_or"), _reflected("bitwise_or")
    __xor__, __rxor__ = _operation("bitwise_xor"), _reflected("bitwise_xor")
    __invert__ = _operation("bitwise_not")
    __neg__ = _operation("neg")
    __abs__ = _operation("abs")
    __matmul__ = _operation("matmul")
    __getitem__ = _operation("getitem")

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]  # element by element, as in PyTorch
        return NotImplemented if other is None else F.eq(self, other)  # type: ignore[arg-type]  # eq checks it

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return NotImplemented if other is None else F.ne(self, other)  # type: ignore[arg-type]

    __lt__, __le__, __gt__, __ge__ = _operations("lt le gt ge")
    __hash__ = object.__hash__  # a tensor is a key by identity

    # Elementwise and reductions.
    abs, acos, acosh, add, all = _operations("abs acos acosh add all")
    amax, amin, any, argmax, argmin = _operations("amax amin any argmax argmin")
    asin, asinh, atan, atan2, atanh = _operations("asin asinh atan atan2 atanh")
    bitwise_and, bitwise_not, bitwise_or, bitwise_xor = _operations("bitwise_and bitwise_not bitwise_or bitwise_xor")
    ceil, clamp, cos, cosh, cumprod = _operations("ceil clamp cos cosh cumprod")
    cumsum = _operation("cumsum")
    div = _operation("div")
    eq, erf, erfc, exp, exp2 = _operations("eq erf erfc exp exp2")
    expm1 = _operation("expm1")
    floor, floor_divide = _operations("floor floor_divide")
    ge, gt = _operations("ge gt")
    hypot = _operation("hypot")
    isfinite, isinf, isnan = _operations("isfinite isinf isnan")
    le, lerp, log, log10, log1p = _operations("le lerp log log10 log1p")
    log2, logical_and, logical_not, logical_or, logical_xor = _operations(
        "log2 logical_and logical_not logical_or logical_xor"
    )
    logsumexp, lt = _operations("logsumexp lt")
    max, maximum, mean, min, minimum = _operations("max maximum mean min minimum")
    mul = _operation("mul")
    ne, neg, norm = _operations("ne neg norm")
    pow, prod = _operations("pow prod")
    reciprocal, remainder, round, rsqrt = _operations("reciprocal remainder round rsqrt")
    sign, sin, sinh, sqrt, square = _operations("sign sin sinh sqrt square")
    std, sub, sum = _operations("std sub sum")
    tan, trunc = _operations("tan trunc")
    var = _operation("var")

    def where(self, condition: Tensor, other: Tensor | float) -> Tensor:
        return F.where(condition, self, other)

    flatten = _operation("flatten")
    log_softmax = _operation("log_softmax")
    matmul = _operation("matmul")
    permute = _operation("permute")
    relu = _operation("relu")
    reshape = _operation("reshape")
    sigmoid = _operation("sigmoid")
    softmax = _operation("softmax")
    tanh = _operation("tanh")
    transpose = _operation("transpose")

    # Shape, lookups, products.
    addmm, baddbmm, bmm, broadcast_to, contiguous, diag = _operations("addmm baddbmm bmm broadcast_to contiguous diag")
    diagonal, dot, expand, flip, gather, index_add = _operations("diagonal dot expand flip gather index_add")
    index_select, masked_fill, masked_select, mm = _operations("index_select masked_fill masked_select mm")
    movedim, mv, narrow, outer, repeat, roll = _operations("movedim mv narrow outer repeat roll")
    scatter_add, select, squeeze, swapaxes = _operations("scatter_add select squeeze swapaxes")
    take_along_dim, tile, trace, tril, triu, unflatten = _operations("take_along_dim tile trace tril triu unflatten")
    unsqueeze, view = _operations("unsqueeze view")
    chunk, split, unbind = map(_several, ("chunk", "split", "unbind"))

    def __iter__(self) -> Iterator[Tensor]:
        """The tensors self[0], self[1], …; unlike those, their gradients take one pass together."""
        return iter(self.unbind())

    # In place: the same values as without the underscore, in this tensor's memory; see inplace.
    add_ = __iadd__ = _in_place("add")
    sub_ = __isub__ = _in_place("sub")
    mul_ = __imul__ = _in_place("mul")
    div_ = __itruediv__ = _in_place("div")
    abs_ = _in_place("abs")
    clamp_ = _in_place("clamp")
    exp_ = _in_place("exp")
    log_ = _in_place("log")
    masked_fill_ = _in_place("masked_fill")
    neg_ = _in_place("neg")
    pow_ = _in_place("pow")
    relu_ = _in_place("relu")
    sigmoid_ = _in_place("sigmoid")
    sqrt_ = _in_place("sqrt")
    tanh_ = _in_place("tanh")

    def copy_(self, source: Tensor) -> Tensor:
        """Take the values of `source`, which is broadcast to this shape."""
        return inplace.change(self, "copy_", inplace.copied, source)

    def fill_(self, value: float) -> Tensor:
        return inplace.change(self, "fill_", inplace.filled, value)

    def zero_(self) -> Tensor:
        return inplace.change(self, "zero_", inplace.filled, 0)

    def __setitem__(self, index: Index, value: Tensor | float) -> None:
        inplace.set_item(self, index, value)

    @property
    def T(self) -> Tensor:
        return F.permute(self, tuple(reversed(range(self.data.ndim))))


def _as_array(value: Any) -> Array:
    """Whatever is not an array yet, as one: floating-point numbers of Python's become float32."""
    if isinstance(value, Tensor):
        raise TypeError("Tensor: got a Tensor, expected an array; use tensor.detach()")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"Tensor: got values of dtype {array.dtype}, expected numbers")
    return array if isinstance(value, np.generic | np.ndarray) or array.dtype.kind != "f" else array.astype(np.float32)
