"""Modules, layers, losses and initialisation, after torch.nn."""

from __future__ import annotations

from worker.nn import init
from worker.nn.flat import FlatParameters, Views
from worker.nn.layers import GELU, CrossEntropyLoss, Flatten, Linear, MSELoss, ReLU, Sequential, Sigmoid, Tanh
from worker.nn.module import Module, Parameter

__all__ = [
    "GELU",
    "CrossEntropyLoss",
    "FlatParameters",
    "Flatten",
    "Linear",
    "MSELoss",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "Views",
    "init",
]
