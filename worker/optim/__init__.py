"""Optimizers, their update rules, schedules of the learning rate, clipping."""

from __future__ import annotations

from worker.optim import rules, schedules
from worker.optim.clip import clip_grad_norm_, clip_scale
from worker.optim.optimizer import SGD, Adam, AdamW, Momentum, Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Momentum", "Optimizer", "clip_grad_norm_", "clip_scale", "rules", "schedules"]
