"""The graph: `record` builds it in the forward pass, `backward` and `grad` walk it in reverse and free it.

A node holds, for each input that needs a gradient, the input's source (the node that made it, or the leaf tensor) and
the vector-Jacobian product (vjp): gradient of the output -> gradient of the input. Nodes hold no values: what a vjp
needs of the forward pass lives in its closure, and goes with it. So what a closure holds is what must not be changed in
place (see versions), and an operation says nothing about it.

Nobody mutates a gradient that they were given: vjps return new arrays, views, or the argument itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import worker.autodiff.parts as parts
import worker.autodiff.versions as versions
from worker.autodiff.kernels.float16 import apply, half, single
from worker.autodiff.modes import active, enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from worker.autodiff.node import Edge, Into, Node, Source, Vjp, together
from worker.autodiff.precision import autocast, current
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "Edge",
    "Into",
    "Node",
    "Source",
    "Vjp",
    "backward",
    "enable_grad",
    "fitted",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "record",
    "set_grad_enabled",
    "together",
    "unbroadcast",
    "walk",
]


def record(name: str, value: Any, *edges: tuple[Any, Vjp]) -> Tensor:
    """The tensor of `value`, and a node behind it if some input needs a gradient.

    Each edge is an input and its vjp; an input that is no tensor (a scalar) is left out. A vjp may return the gradient
    of the broadcast input: `backward` sums it to the input's shape.
    """
    output = Tensor(value if type(value) is np.ndarray else np.asarray(value))
    make_node = active.get()
    if make_node is not None:
        kept = tuple([(x.node or x, vjp) for x, vjp in edges if isinstance(x, Tensor) and x.requires_grad])
        if kept:
            data = output.data
            output.node = make_node(name, data.shape, data.dtype, kept)
            output.requires_grad = True
            if data.base is not None:
                output.node.is_view = _is_view(data, edges)
            if versions.rebased:
                _refuse_stale(name, edges)
    return output


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Tensor | Array | Sequence[Tensor | Array | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    *,
    on_leaf: Callable[[Tensor, Array], None] | None = None,
) -> None:
    """Differentiate `tensors`: add to `.grad` of every leaf behind them, as torch.autograd.backward.

    Leaves come as soon as their gradient is complete, the last layer's first; `on_leaf` is told each, and what was
    added, amid the pass, as hooks are. A leaf with a `slot` and no `.grad` gets its gradient written there.
    RuntimeError where the graph was freed, nothing needs a gradient, or a value that is needed was changed in place.
    """

    def take(leaf: Source, part: Array) -> None:
        assert isinstance(leaf, Tensor)
        leaf.accumulate_grad(part)
        if on_leaf is not None:
            on_leaf(leaf, part)

    walk(_seeded("backward", tensors, grad_tensors, create_graph=create_graph), take, retain_graph=bool(retain_graph))


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Array | Sequence[Tensor | Array | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of `outputs` by each of `inputs`, as torch.autograd.grad; no `.grad` is touched.

    Inputs are any tensors of the graph, not only leaves. Only what lies between is walked, and freed. An input that
    the outputs do not depend on is a RuntimeError, or with `allow_unused` gets None.
    """
    roots = _seeded("grad", outputs, grad_outputs, create_graph=create_graph)
    wanted = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for i, x in enumerate(wanted):
        if not x.requires_grad:
            raise RuntimeError(f"grad: input {i} of shape {x.shape} does not require a gradient")
    sources = [x.node or x for x in wanted]
    found: dict[Source, Array] = {}
    walk(roots, found.__setitem__, retain_graph=bool(retain_graph), targets=set(sources))
    unused = [i for i, source in enumerate(sources) if source not in found]
    if unused and not allow_unused:
        raise RuntimeError(f"grad: the outputs do not depend on input {unused[0]}; allow_unused=True gives None for it")
    return tuple(Tensor(np.array(found[source])) if source in found else None for source in sources)


def walk(
    roots: Sequence[tuple[Tensor, Array]],
    take: Callable[[Source, Array], None],
    *,
    retain_graph: bool = False,
    targets: set[Source] | None = None,
) -> None:
    """The reverse pass itself, from tensors and their gradients: `take` gets each leaf with its gradient.

    No `.grad` is touched, only a free slot written. With `targets`, which may be nodes, it gets those instead; then no
    slot is written, and only what leads to them is walked. A node is ready once all its uses have contributed, so that
    ready nodes come in reverse topological order.
    """
    seeds = tuple((x.node or x, _constant(seed)) for x, seed in roots)
    root = Node("outputs", (), np.dtype(np.float32), seeds)
    uses = _count_uses(root) if targets is None else _count_uses_towards(targets, root)
    waiting: dict[Source, Array] = {}  # gradients of sources that other uses will add to
    ready: list[tuple[Node, Array]] = [(root, np.zeros((), np.float32))]
    # Inf and NaN flow through silently, as in PyTorch; the step looks at the norm.
    with np.errstate(all="ignore"), autocast(current.get()):
        while ready:
            node, gradient = ready.pop()
            current.set(node.precision)
            complete = []
            for source, vjp in _take_edges(node, uses, retain_graph=retain_graph, targets=targets):
                earlier = waiting.pop(source, None)
                if isinstance(source, Tensor):
                    part = _add_to_leaf(earlier, gradient, source, vjp, targets is None)
                else:
                    part = fitted(vjp(gradient), source.shape, source.dtype)
                    if earlier is not None:
                        part = np.asarray(apply(np.add, earlier, part))
                uses[source] -= 1
                if uses[source]:
                    waiting[source] = part
                else:
                    complete.append((source, part))
            for source, part in complete:  # behind all vjps of the node: a hook may change what these need
                if source.watch is not None:
                    part = source.watch.see(part)
                if isinstance(source, Node):
                    ready.append((source, part))
                if isinstance(source, Tensor) if targets is None else source in targets:
                    take(source, part)


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum `gradient` over the dimensions that broadcasting added or stretched, so that it gets `shape`."""
    added = gradient.ndim - len(shape)
    stretched = [added + i for i, size in enumerate(shape) if size == 1 and gradient.shape[added + i] != 1]
    summed = np.sum(gradient, axis=(*range(added), *stretched), keepdims=True)
    return np.reshape(summed, shape)


# The parts of a walk.


def _take_edges(
    node: Node, uses: dict[Source, int], *, retain_graph: bool, targets: set[Source] | None
) -> Sequence[Edge]:
    """The edges to walk; unless the graph is retained, the node is free of them then."""
    edges = node.edges or ()  # only a target may have been freed before
    wanted = edges if targets is None else [edge for edge in edges if edge[0] in uses]
    if not wanted:  # what lies behind a target stays
        return wanted
    if node.time != versions.now:
        _refuse_changed(node, wanted)
    if not retain_graph:
        node.edges = None
    return wanted


def _add_to_leaf(earlier: Array | None, gradient: Array, leaf: Tensor, vjp: Vjp, into_slot: bool) -> Array:
    """What is known of a leaf's gradient, plus what this vjp contributes.

    The leaf's slot is ours to change; no other array is, for whoever gave it may hold it still.
    """
    shape = parts.shape_of_sums(leaf.data.shape)
    direct = vjp if isinstance(vjp, Into) and (vjp.is_apart or parts.current.get() == 1) else None
    if earlier is None:
        is_free = into_slot and leaf.grad is None and leaf.watch is None  # whoever looks on may keep what they see
        part = direct.write(gradient, leaf.slot) if is_free and direct is not None else vjp(gradient)
        return fitted(part, shape, leaf.data.dtype)
    is_ours = earlier is leaf.slot
    if is_ours and direct is not None and direct.add is not None:
        return direct.add(gradient, earlier)
    part = fitted(vjp(gradient), shape, leaf.data.dtype)
    return np.asarray(np.add(earlier, part, out=earlier) if is_ours else apply(np.add, earlier, part))


def fitted(part: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A part of a gradient in the shape and dtype of what it is the gradient of."""
    if part.shape != shape:
        if parts.current.get() > 1:
            raise RuntimeError(
                f"backward: got a gradient of shape {part.shape}, expected {shape}: an operation that does not know "
                "parts sums over samples; give it the batch without in_parts"
            )
        part = unbroadcast(single(part), shape)
    if part.dtype is not dtype and part.dtype != dtype:
        part = half(part) if dtype == np.float16 else single(part).astype(dtype, copy=False)
    return part if type(part) is np.ndarray else np.asarray(part)


def _count_uses(root: Node) -> dict[Source, int]:
    """How many edges lead to each source behind `root`."""
    uses: dict[Source, int] = {}
    stack: list[Source] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            continue
        if node.edges is None:
            raise _freed(node)
        for source, _ in node.edges:
            if source in uses:
                uses[source] += 1
            else:
                uses[source] = 1
                stack.append(source)
    return uses


def _count_uses_towards(targets: set[Source], root: Node) -> dict[Source, int]:
    """The same for those sources only from which a target is reached."""
    users: dict[Source, list[Source]] = {root: []}
    freed: list[Node] = []
    stack: list[Source] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            continue
        if node.edges is None:
            freed.append(node)
            continue
        for source, _ in node.edges:
            if source not in users:
                users[source] = []
                stack.append(source)
            users[source].append(node)
    if freed and not targets <= users.keys():
        raise _freed(next((node for node in freed if node not in targets), freed[0]))
    uses: dict[Source, int] = {}
    stack = [target for target in targets if target in users]
    while stack:
        source = stack.pop()
        if source not in uses:
            uses[source] = len(users[source])
            stack.extend(users[source])
    return uses


def _freed(node: Node) -> RuntimeError:
    return RuntimeError(
        f"backward: the graph behind '{node.name}' was freed by an earlier backward; "
        "run the forward pass again, or give retain_graph=True the first time"
    )


def _constant(value: Array) -> Vjp:
    return lambda _: value


def _seeded(
    name: str, tensors: Tensor | Sequence[Tensor], gradients: Any, *, create_graph: bool
) -> list[tuple[Tensor, Array]]:
    """Each output with the gradient that it starts from."""
    if create_graph:
        raise NotImplementedError(f"{name}: create_graph=True: gradients of gradients are not supported")
    outputs = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if gradients is None:
        seeds = [None] * len(outputs)
    else:
        seeds = list(gradients) if isinstance(gradients, list | tuple) else [gradients]
    if len(seeds) != len(outputs):
        raise ValueError(f"{name}: got {len(seeds)} gradients for {len(outputs)} outputs")
    return [(output, _seed(name, output, seed)) for output, seed in zip(outputs, seeds, strict=True)]


def _seed(name: str, output: Tensor, gradient: Tensor | Array | None) -> Array:
    if not output.requires_grad:
        raise RuntimeError(f"{name}: no gradient is needed here; no input has requires_grad, or no_grad() was on")
    if gradient is None:
        if output.data.size != 1:
            raise RuntimeError(
                f"{name}: the output has shape {output.shape}; reduce it to a scalar, or give gradient= of that shape"
            )
        return np.ones(output.shape, output.dtype)
    seed = np.asarray(gradient.data if isinstance(gradient, Tensor) else gradient, output.dtype)
    if seed.shape != output.shape:
        raise ValueError(f"{name}: gradient has shape {seed.shape} but the output has shape {output.shape}")
    return seed


# Changes in place.


def _refuse_changed(node: Node, edges: Sequence[Edge]) -> None:
    """RuntimeError if what the vjps of this node hold was changed since the node was recorded."""
    for array in versions.saved_arrays([vjp for _, vjp in edges]):
        time, by = versions.last_change(array)
        if time > node.time:
            raise RuntimeError(
                f"backward: '{node.name}' needs a value of shape {array.shape} that '{by}' has changed in place since; "
                "change a clone() of it, or write the operation without the underscore"
            )


def _is_view(value: Array, edges: Sequence[tuple[Any, Vjp]]) -> bool:
    owner = value.base
    return any(x.data is owner or x.data.base is owner for x, _ in edges if isinstance(x, Tensor))


def _refuse_stale(name: str, edges: Sequence[tuple[Any, Vjp]]) -> None:
    """RuntimeError if an input's values were changed through another tensor, with a gradient that the input's graph
    does not know of."""
    for x, _ in edges:
        if isinstance(x, Tensor) and x.requires_grad:
            time, by = versions.last_rebase(x.data)
            if x.node is not None and time > x.node.time:
                raise stale(name, x, by)


def stale(name: str, x: Tensor, by: str) -> RuntimeError:
    return RuntimeError(
        f"{name}: an input of shape {x.shape} shares memory that '{by}' has changed in place through another tensor; "
        "use that one, or change a clone()"
    )
