"""The control plane: users, jobs, time and the network. Arrays are the worker package's business."""

__version__ = "0.1.0"
