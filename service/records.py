"""Jobs and events as JSON documents, as the store keeps them.

Additive only: a later version reads what an earlier one wrote. Knows the domain, neither SQL nor protobuf.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, astuple, fields, replace
from typing import Any

from service.jobs import (
    CheckpointCorrupt,
    CheckpointFailed,
    CheckpointSaved,
    CompilationFinished,
    CompilationStarted,
    Evaluation,
    ExactnessLost,
    Happening,
    Job,
    JobState,
    Progress,
    StateChanged,
    StateReason,
    WorkerLost,
    WorkersChanged,
    WorkerSlow,
    WorkersWanted,
)
from service.runs import StepSample
from service.start_checkpoint import StartCheckpoint
from worker.spec import JobSpec, parse_spec

HAPPENINGS: Mapping[str, type[Happening]] = {
    "state_changed": StateChanged,
    "evaluation": Evaluation,
    "checkpoint_saved": CheckpointSaved,
    "checkpoint_failed": CheckpointFailed,
    "checkpoint_corrupt": CheckpointCorrupt,
    "exactness_lost": ExactnessLost,
    "worker_lost": WorkerLost,
    "compilation_started": CompilationStarted,
    "compilation_finished": CompilationFinished,
    "workers_changed": WorkersChanged,
    "worker_slow": WorkerSlow,
    "workers_wanted": WorkersWanted,
}
SAMPLE = struct.Struct("<4d2?")  # in the order of StepSample's fields
KINDS = {kind: name for name, kind in HAPPENINGS.items()}
PARTS: Mapping[str, type[Progress | Evaluation | StartCheckpoint]] = {
    "progress": Progress,
    "evaluation": Evaluation,
    "start_checkpoint": StartCheckpoint,
}


def spec_document(spec: JobSpec) -> dict[str, Any]:
    """A spec with its defaults filled in, as a job file would say it."""
    return spec.model_dump(mode="json", exclude_none=True)


def spec_digest(spec: JobSpec, start: StartCheckpoint | None = None) -> str:
    """sha256 of the canonical form of a spec: equal for jobs that ask for the same, however they are written."""
    asked = spec_document(spec) if start is None else {"spec": spec_document(spec), "start": asdict(start)}
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def dump_job(job: Job) -> str:
    """A job as JSON; a loss may be NaN, which JSON proper has no word for and Python's does."""
    document = {field.name: getattr(job, field.name) for field in fields(job)}
    parts = {name: asdict(document[name]) for name in PARTS if document[name] is not None}
    return json.dumps(document | {"spec": spec_document(job.spec)} | parts)


def load_job(text: str) -> Job:
    """The job that `dump_job` wrote."""
    document = json.loads(text)
    parts = {name: kind(**document[name]) for name, kind in PARTS.items() if document.get(name) is not None}
    return Job(
        **document
        | {
            "spec": parse_spec(document["spec"]),
            "state": JobState(document["state"]),
            "state_reason": StateReason(document["state_reason"]),
        }
        | parts
    )


def dump_happening(happening: Happening) -> tuple[str, str]:
    """What happened as (kind, JSON)."""
    return KINDS[type(happening)], json.dumps(asdict(happening))


def dump_sample(sample: StepSample) -> bytes:
    """A step's metrics, but for its number, in 34 bytes; a NaN is one."""
    return SAMPLE.pack(*astuple(sample)[1:])


def load_sample(step: int, body: bytes) -> StepSample:
    """What `dump_sample` wrote."""
    return StepSample(step, *SAMPLE.unpack(body))


def load_happening(kind: str, text: str) -> Happening:
    """What `dump_happening` wrote."""
    happening = HAPPENINGS[kind](**json.loads(text))
    if isinstance(happening, StateChanged):
        return replace(happening, state=JobState(happening.state), reason=StateReason(happening.reason))
    return happening
