"""einsum: sums of products named by their dimensions, lowered to transposes and matrix products.

The operands meet two at a time, those first whose product is smallest. Each product is one operation, and its gradients
are such products, too: for C = A·B, dA = dC·B and dB = A·dC with the labels exchanged.

A dimension's label is a letter, or where "..." stands for it, its distance from the end: -1, -2, ….
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from worker.autodiff import kernels
from worker.autodiff.diagonals import diagonal
from worker.autodiff.graph import record
from worker.autodiff.shape import movedim, reshape
from worker.autodiff.tensor import Array, Tensor

__all__ = [
    "einsum",
]

Label = str | int
Labels = tuple[Label, ...]
Sizes = dict[Label, int]


def einsum(equation: str, *operands: Tensor | Sequence[Tensor]) -> Tensor:
    """The sum over all labels that the output does not name of the product of the operands: "bij,bjk->bik".

    Without "->" the output has the dimensions of "...", then the labels that occur once, in alphabetical order. A label
    that one operand has twice takes its diagonal; "..." and sizes of 1 are broadcast.
    Source: https://pytorch.org/docs/stable/generated/torch.einsum.html
    """
    tensors = [x for group in operands for x in (group if isinstance(group, list | tuple) else (group,))]
    inputs, output = _parse(equation, [x.ndim for x in tensors])
    sizes = _sizes(equation, tensors, inputs)
    terms = [_without_repeats(*_without_ones(x, labels, sizes)) for x, labels in zip(tensors, inputs, strict=True)]
    while len(terms) > 1:
        i, j = min(combinations(range(len(terms)), 2), key=lambda pair: _growth(terms, pair, output, sizes))
        (y, y_labels), (x, x_labels) = terms.pop(j), terms.pop(i)
        needed = {*output, *(label for _, labels in terms for label in labels)}
        joint = tuple(label for label in dict.fromkeys((*x_labels, *y_labels)) if label in needed)
        final = joint if terms else tuple(label for label in output if label in joint)
        terms.append((_contracted(x, x_labels, y, y_labels, final), final))
    ((x, labels),) = terms
    return x if labels == output and len(tensors) > 1 else _arranged(x, labels, output)


def _contracted(x: Tensor, x_labels: Labels, y: Tensor, y_labels: Labels, output: Labels) -> Tensor:
    """The product of two operands, as one operation."""
    a, b = x.data, y.data
    return record(
        "einsum",
        _contract(a, x_labels, b, y_labels, output),
        (x, lambda g: _gradient(g, output, b, y_labels, x_labels, a.shape)),
        (y, lambda g: _gradient(g, output, a, x_labels, y_labels, b.shape)),
    )


def _gradient(
    g: Array, output: Labels, other: Array, other_labels: Labels, wanted: Labels, shape: tuple[int, ...]
) -> Array:
    """The gradient of the operand `wanted`: constant along what was summed over within it."""
    known = tuple(label for label in wanted if label in output or label in other_labels)
    part = _contract(g, output, other, other_labels, known)
    missing = tuple(d for d, label in enumerate(wanted) if label not in known)
    return np.broadcast_to(np.expand_dims(part, missing), shape) if missing else part


def _contract(a: Array, a_labels: Labels, b: Array, b_labels: Labels, output: Labels) -> Array:
    """The sum of a · b over the labels that are not in `output`, by a matrix product.

    With labels sorted into those of the batch B (in both and the output), of rows M (a and output), columns N (b and
    output) and of the inner dimension K (in both only): a (B, M, K) @ b (B, K, N) -> (B, M, N).
    """
    a, a_labels = _summed(a, a_labels, {*b_labels, *output})
    b, b_labels = _summed(b, b_labels, {*a_labels, *output})
    sizes: Sizes = dict(zip((*a_labels, *b_labels), (*a.shape, *b.shape), strict=True))
    batch = [label for label in a_labels if label in b_labels and label in output]
    inner = [label for label in a_labels if label in b_labels and label not in output]
    rows = [label for label in a_labels if label not in b_labels]
    columns = [label for label in b_labels if label not in a_labels]
    if inner:
        left = _matrices(a, a_labels, batch, rows, inner, sizes)
        right = _matrices(b, b_labels, batch, inner, columns, sizes)
        product = kernels.matmul(left, right)
    else:  # every element is one product
        left = _matrices(a, a_labels, batch, rows, [], sizes)
        right = _matrices(b, b_labels, batch, [], columns, sizes)
        product = left * right
    labels = [*batch, *rows, *columns]
    value: Array = product.reshape([sizes[label] for label in labels])
    return value.transpose([labels.index(label) for label in output])


def _matrices(
    a: Array, labels: Labels, batch: list[Label], rows: list[Label], columns: list[Label], sizes: Sizes
) -> Array:
    """a as matrices (B, M, N), with as many dimensions B as there are labels of the batch."""
    ordered = a.transpose([labels.index(label) for label in (*batch, *rows, *columns)])
    counts = [math.prod(sizes[label] for label in group) for group in (rows, columns)]
    return ordered.reshape([*(sizes[label] for label in batch), *counts])  # batches stay apart: to join them may copy


def _summed(a: Array, labels: Labels, needed: set[Label]) -> tuple[Array, Labels]:
    """a without the labels that nobody needs."""
    dims = tuple(d for d, label in enumerate(labels) if label not in needed)
    if not dims:
        return a, labels
    return np.asarray(np.sum(a, axis=dims)), tuple(label for label in labels if label in needed)


def _arranged(x: Tensor, labels: Labels, output: Labels) -> Tensor:
    """The one operand that is left: summed over what the output lacks, and in its order."""
    value, kept = _summed(x.data, labels, set(output))
    order = [kept.index(label) for label in output]
    inverse = np.argsort(order)
    dims = tuple(d for d, label in enumerate(labels) if label not in output)
    shape = x.shape

    def vjp(g: Array) -> Array:
        return np.broadcast_to(np.expand_dims(g.transpose(inverse), dims), shape)

    return record("einsum", value.transpose(order), (x, vjp))


def _without_ones(x: Tensor, labels: Labels, sizes: Sizes) -> tuple[Tensor, Labels]:
    """x without dimensions of size 1 that stand beside a larger one of the same label: the product broadcasts them."""
    kept = [d for d, label in enumerate(labels) if x.shape[d] == sizes[label]]
    if len(kept) == x.ndim:
        return x, labels
    return reshape(x, [x.shape[d] for d in kept]), tuple(labels[d] for d in kept)


def _without_repeats(x: Tensor, labels: Labels) -> tuple[Tensor, Labels]:
    """x with the diagonal in place of dimensions of the same label."""
    while len(set(labels)) < len(labels):
        second = next(d for d, label in enumerate(labels) if label in labels[:d])
        first = labels.index(labels[second])
        x = movedim(diagonal(x, 0, first, second), -1, first)
        labels = (*labels[:second], *labels[second + 1 :])
    return x, labels


def _growth(terms: list[tuple[Tensor, Labels]], pair: tuple[int, int], output: Labels, sizes: Sizes) -> int:
    """How many elements more there are to hold once these two have met."""
    others = [labels for k, (_, labels) in enumerate(terms) if k not in pair]
    needed = {*output, *(label for labels in others for label in labels)}
    x, y = (terms[k] for k in pair)
    return math.prod(sizes[label] for label in {*x[1], *y[1]} & needed) - x[0].numel() - y[0].numel()


def _parse(equation: str, ranks: list[int]) -> tuple[list[Labels], Labels]:
    """The labels of each operand and of the output."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ranks):
        raise ValueError(f"einsum: {equation!r} names {len(texts)} operands, got {len(ranks)}")
    inputs = [_labels(equation, text, rank) for text, rank in zip(texts, ranks, strict=True)]
    dots = tuple(sorted({label for labels in inputs for label in labels if isinstance(label, int)}))
    letters = [label for labels in inputs for label in labels if isinstance(label, str)]
    if not arrow:
        return inputs, (*dots, *sorted(label for label in letters if letters.count(label) == 1))
    before, dot, after = right.partition("...")
    output = (*before, *(dots if dot else ()), *after)
    if len(set(output)) < len(output):
        raise ValueError(f"einsum: the output of {equation!r} names a label twice")
    if unknown := set(before + after) - set(letters):
        raise ValueError(f"einsum: the output of {equation!r} names {sorted(unknown)}, which no operand has")
    return inputs, output


def _labels(equation: str, text: str, rank: int) -> Labels:
    """One operand's labels: as many as it has dimensions."""
    before, dot, after = text.partition("...")
    named = len(before) + len(after)
    if any(not (letter.isascii() and letter.isalpha()) for letter in before + after):
        raise ValueError(f"einsum: got {text!r} in {equation!r}, expected letters and at most one '...'")
    if rank < named or (rank > named and not dot):
        raise ValueError(f"einsum: {text!r} in {equation!r} names {named} dimensions, but the operand has {rank}")
    return (*before, *range(named - rank, 0), *after)


def _sizes(equation: str, tensors: list[Tensor], inputs: list[Labels]) -> Sizes:
    """Each label's size: that of all operands that have it, but for those of size 1."""
    sizes: Sizes = {}
    for x, labels in zip(tensors, inputs, strict=True):
        for label, size in zip(labels, x.shape, strict=True):
            known = sizes.get(label, 1)
            if known != 1 and size not in (1, known):
                name = f"label {label!r}" if isinstance(label, str) else "a dimension of '...'"
                raise ValueError(f"einsum: {name} has size {known} and size {size} in {equation!r}")
            sizes[label] = size if known == 1 else known
    return sizes
