"""How many workers a job's segment has seats for."""

from __future__ import annotations

import pytest

from service.cluster import capacity_for
from service.jobs import Job
from worker.spec import parse_spec


@pytest.mark.parametrize(
    ("shards", "high", "wanted", "workers", "most", "expected"),
    [
        (8, 2, 0, 1, 16, 8),  # two workers take as many slots as eight
        (8, 2, 0, 1, 4, 4),  # but the node has no more
        (8, 1, 0, 1, 16, 1),  # one worker takes half as many
        (8, 4, 1, 1, 16, 8),  # scaled down for now: what the spec asks for may come again
        (8, 1, 3, 3, 16, 8),
        (64, 2, 0, 2, 64, 2),  # here each worker costs memory
        (64, 2, 16, 2, 64, 64),
        (1, 1, 0, 1, 16, 1),
        (8, 8, 0, 1, 2, 2),
    ],
)
def test_a_job_has_seats_for_all_it_may_have_and_for_more_where_they_are_free(
    shards: int, high: int, wanted: int, workers: int, most: int, expected: int
) -> None:
    training = {"global_batch_size": 64, "shards": shards}
    spec = parse_spec({"model": {"mlp": {}}, "data": {"digits": {}}, "training": training, "workers": {"max": high}})
    job = Job("test-abcdef", spec, create_time=0.0, wanted_workers=wanted)
    assert capacity_for(job, workers, most=most) == expected
