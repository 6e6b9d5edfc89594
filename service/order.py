"""What a coordinator is to run, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service import limits


@dataclass(frozen=True)
class Order:
    """One run of a job. `worker_options` are Ray's, for each worker actor on the coordinator's own node."""

    job_id: str
    spec_json: str
    num_workers: int  # wanted at first
    min_workers: int  # with whom it begins
    capacity: int  # at any time
    segment: Path  # on the coordinator's own node
    checkpoints: str  # a path or a URL
    worker_options: Mapping[str, Any]
    allow_different_numerics: bool = False
    keep_seconds: float = limits.KEEP_RUN_SECONDS  # the run's result, when nobody asks for it
    node: str = "here"  # the coordinator's own, as Ray calls it
    token: bytes = field(default=b"", repr=False)  # the job's secret between nodes; none: the cluster has one node
