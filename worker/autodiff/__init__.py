"""The autodiff core: tensors, a graph, operations with their vjps. It knows arrays, and nothing of this project."""

from __future__ import annotations

from worker.autodiff import functional
from worker.autodiff.gradcheck import gradcheck
from worker.autodiff.graph import backward, is_grad_enabled, no_grad
from worker.autodiff.tensor import Tensor

__all__ = ["Tensor", "backward", "functional", "gradcheck", "is_grad_enabled", "no_grad"]
