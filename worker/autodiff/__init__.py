"""The autodiff core: tensors, a graph, operations with their vjps. It knows arrays, and nothing of this project."""

from __future__ import annotations

from worker.autodiff import functional
from worker.autodiff.gradcheck import gradcheck
from worker.autodiff.graph import backward, enable_grad, grad, is_grad_enabled, no_grad, set_grad_enabled
from worker.autodiff.parts import in_parts
from worker.autodiff.precision import autocast
from worker.autodiff.recompute import checkpoint
from worker.autodiff.tensor import Tensor

__all__ = [
    "Tensor",
    "autocast",
    "backward",
    "checkpoint",
    "enable_grad",
    "functional",
    "grad",
    "gradcheck",
    "in_parts",
    "is_grad_enabled",
    "no_grad",
    "set_grad_enabled",
]
