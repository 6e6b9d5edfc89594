"""Errors that a user of the service can meet, unaware of how they travel.

    ServiceError
    ├── InvalidRequest        a field of the request is wrong; `violations` names it
    │   └── InvalidJob        a field of the job spec is wrong
    ├── NotFound              there is no such job
    ├── AlreadyExists         the request_id already stands for another job
    ├── FailedPrecondition    right in itself, but not in this state or on this cluster
    ├── ResourceExhausted     too much of it: the queue is full
    ├── DataLoss              a file that must be there is not
    ├── Unavailable           not now: the service stops, or its disk is full; try again
    └── StartError            the service cannot start; one line for whoever started it

Each carries a `reason`, a word in UPPER_SNAKE that programs can rely on; the text may change.
"""

from __future__ import annotations

from collections.abc import Sequence

from worker.violations import Violation


class ServiceError(Exception):
    """Something that the caller is told; the text says what, got and expected."""

    def __init__(self, message: str, *, reason: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.violations = tuple(violations)


class InvalidRequest(ServiceError):
    """A field of the request is wrong."""

    def __init__(self, violations: Sequence[Violation], *, reason: str = "INVALID_REQUEST") -> None:
        super().__init__("; ".join(map(str, violations)), reason=reason, violations=violations)


class InvalidJob(InvalidRequest):
    """A field of the job spec is wrong; the violations' fields are paths in the spec."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(violations, reason="INVALID_JOB")


class NotFound(ServiceError):
    """There is no such job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}; `backprop jobs` lists what there is", reason="JOB_NOT_FOUND")


class AlreadyExists(ServiceError):
    """The request_id already stands for another job."""


class FailedPrecondition(ServiceError):
    """Right in itself, but not in this state or on this cluster."""


class ResourceExhausted(ServiceError):
    """Too much of it."""


class DataLoss(ServiceError):
    """A file that must be there is not."""


class Unavailable(ServiceError):
    """Not now; the same call may work later."""


class StartError(ServiceError):
    """The service cannot start; nothing of it is left running."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, reason=reason)
