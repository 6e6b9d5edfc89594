"""The weights that a job must end with, whatever happens to its workers."""

from __future__ import annotations

import os

from worker.checkpoint import weights_digest
from worker.plan import even_plan
from worker.reduce.segment import DIRECTORY, Segment
from worker.replica import Replica
from worker.spec import JobSpec


def digest_of(spec: JobSpec, steps: int | None = None) -> str:
    """The weights after so many steps, or in the end, from one process that nobody disturbs: no service, no Ray."""
    path = DIRECTORY / f"backprop-undisturbed-{os.getpid()}"
    steps = spec.training.max_steps if steps is None else steps
    replica = Replica.load(spec, capacity=1)
    replica.create_segment(path, "/nonexistent")
    replica.join(path, 0)
    segment = Segment.attach(path, replica.facts.shape)
    path.unlink()
    replica.run(steps, even_plan([0], num_shards=spec.training.shards, epoch=segment.control.open_plan()))
    digest = weights_digest(segment.weights(steps))
    segment.close()
    return digest
