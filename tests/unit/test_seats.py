"""Why workers died, in words that lead somewhere."""

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayError

from service.metrics import cause_of
from service.seats import cause_of_death

COMMON = "some common causes: (1) the process was killed by the OOM killer due to high memory usage, (2) ..."


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (ActorDiedError(), "process_died"),
        (RayActorError(error_msg=f"Worker exit type: SYSTEM_ERROR Worker exit detail: {COMMON}"), "process_died"),
        (RayActorError(error_msg="Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: ..."), "out_of_memory"),
        (OutOfMemoryError("Task was killed: low memory"), "out_of_memory"),  # type: ignore[no-untyped-call]  # Ray
    ],
)
def test_running_out_of_memory_is_told_from_other_deaths(error: RayError, label: str) -> None:
    """Ray names the kernel's OOM killer as a possible cause of every death: that says nothing."""
    assert cause_of(cause_of_death(error)) == label
