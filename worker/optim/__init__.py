"""Optimizers, their update rules, schedules of the learning rate, clipping."""

from __future__ import annotations

from worker.optim import rules, schedules
from worker.optim.clip import clip_grad_norm_, clip_grad_value_, clip_scale
from worker.optim.optimizer import SGD, Adagrad, Adam, AdamW, Lion, Momentum, Optimizer, RMSprop

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "Momentum",
    "Optimizer",
    "RMSprop",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_scale",
    "rules",
    "schedules",
]
