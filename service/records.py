"""Jobs and events as JSON documents, as the store keeps them.

Additive only: a later version reads what an earlier one wrote. Knows the domain, neither SQL nor protobuf.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
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
KINDS = {kind: name for name, kind in HAPPENINGS.items()}


def spec_document(spec: JobSpec) -> dict[str, Any]:
    """A spec with its defaults filled in, as a job file would say it."""
    return spec.model_dump(mode="json", exclude_none=True)


def spec_digest(spec: JobSpec) -> str:
    """sha256 of the canonical form of a spec: equal for jobs that ask for the same, however they are written."""
    canonical = json.dumps(spec_document(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def dump_job(job: Job) -> str:
    """A job as JSON; a loss may be NaN, which JSON proper has no word for and Python's does."""
    document = {field.name: getattr(job, field.name) for field in fields(job)}
    evaluation = None if job.evaluation is None else asdict(job.evaluation)
    return json.dumps(
        document | {"spec": spec_document(job.spec), "progress": asdict(job.progress), "evaluation": evaluation}
    )


def load_job(text: str) -> Job:
    """The job that `dump_job` wrote."""
    document = json.loads(text)
    evaluation = document["evaluation"]
    return Job(
        **document
        | {
            "spec": parse_spec(document["spec"]),
            "state": JobState(document["state"]),
            "state_reason": StateReason(document["state_reason"]),
            "progress": Progress(**document["progress"]),
            "evaluation": None if evaluation is None else Evaluation(**evaluation),
        }
    )


def dump_happening(happening: Happening) -> tuple[str, str]:
    """What happened as (kind, JSON)."""
    return KINDS[type(happening)], json.dumps(asdict(happening))


def load_happening(kind: str, text: str) -> Happening:
    """What `dump_happening` wrote."""
    happening = HAPPENINGS[kind](**json.loads(text))
    if isinstance(happening, StateChanged):
        return replace(happening, state=JobState(happening.state), reason=StateReason(happening.reason))
    return happening
