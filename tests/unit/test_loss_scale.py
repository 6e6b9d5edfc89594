"""Dynamic loss scaling: how the scale moves, and that it is part of a job's state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.test_exactness import STEPS, Gang, job, train
from worker import checkpoint
from worker.checkpoint_store import LocalStore
from worker.loss_scale import GROWTH_INTERVAL, UNSCALED, LossScale
from worker.reduce.segment import DIRECTORY
from worker.replica import LegEnd
from worker.spec import JobSpec

# Targets far from 0: the first gradients do not fit into float16.
FAR = {"optimizer": {"adam": {}}, "data": {"synthetic": {"task": "regression", "features": 8, "noise": 50.0}}}
POISON = {"optimizer": {"sgd": {"learning_rate": 1e30}}, "data": {"synthetic": {"task": "regression", "features": 8}}}


@pytest.fixture
def path() -> Iterator[Path]:
    path = DIRECTORY / f"backprop-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


def far(**training: object) -> JobSpec:
    return job(**FAR, training={"precision": "fp16", **training})


AFTER = [
    (LossScale(8.0, 0), LossScale(8.0, 1), LossScale(4.0, 0)),
    (LossScale(8.0, 5), LossScale(8.0, 6), LossScale(4.0, 0)),
    (LossScale(8.0, GROWTH_INTERVAL - 2), LossScale(8.0, GROWTH_INTERVAL - 1), LossScale(4.0, 0)),
    (LossScale(8.0, GROWTH_INTERVAL - 1), LossScale(16.0, 0), LossScale(4.0, 0)),
    (LossScale(2.0, 3), LossScale(2.0, 4), LossScale(1.0, 0)),
    (LossScale(1.0, 3), LossScale(1.0, 4), None),
]


@pytest.mark.parametrize(("now", "after_finite", "after_overflow"), AFTER)
def test_next_scale(now: LossScale, after_finite: LossScale, after_overflow: LossScale | None) -> None:
    assert now.after_finite() == after_finite
    assert now.after_overflow() == after_overflow


def test_scale_moves_as_pytorchs() -> None:
    scale, tracker = torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
    overflows = {0, 1, 2, 700, 2500, 2501, 5000}
    ours = LossScale()
    for step in range(7000):
        is_overflow = step in overflows
        torch._amp_update_scale_(scale, tracker, torch.tensor(float(is_overflow)), 2.0, 0.5, 2000)
        ours = (ours.after_overflow() or UNSCALED) if is_overflow else ours.after_finite()
        assert (ours.scale, ours.num_finite) == (scale.item(), tracker.item())


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_overflow_is_skipped_and_the_scale_halved(num_workers: int, path: Path) -> None:
    gang = Gang(far(), num_workers, path)
    scales = []
    for step in range(STEPS):
        scale = gang.segment.control.loss_scale(step)
        before = gang.segment.weights(step).copy()
        assert {leg.end for leg in gang.run(step + 1)} == {LegEnd.REACHED}
        is_skipped = bool(gang.segment.control.ring[step + 1, 6])
        assert np.array_equal(gang.segment.weights(step + 1), before) == is_skipped
        expected = scale.after_overflow() if is_skipped else scale.after_finite()
        assert gang.segment.control.loss_scale(step + 1) == expected
        scales.append(scale.scale)
    assert scales[0] == 65536
    assert 1 < scales[-1] < 65536, "some steps overflow, and then they do not"


def test_a_step_that_is_not_committed_leaves_the_scale(path: Path) -> None:
    gang = Gang(far(), 1, path)
    gang.run(4)
    before = gang.segment.control.loss_scale(4)
    gang.segment.control.set_loss_scale(5, LossScale(2.0))
    assert gang.segment.control.loss_scale(4) == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_scale_nothing(precision: str, path: Path) -> None:
    gang = Gang(job(training={"precision": precision}), 2, path)
    gang.run(STEPS)
    assert gang.segment.control.loss_scale(STEPS) == UNSCALED


def test_where_scaling_does_not_help_the_job_fails(path: Path) -> None:
    spec = job(**POISON, training={"clip_norm": None, "precision": "fp16", "max_steps": 40})
    gang = Gang(spec, 2, path)
    legs = gang.run(40)
    assert {leg.end for leg in legs} == {LegEnd.NON_FINITE}
    assert "gradient's norm is" in legs[0].message
    assert "at the smallest loss scale" in legs[0].message
    assert gang.segment.control.loss_scale(legs[0].step).scale == 1


def test_where_scaling_does_not_help_steps_can_be_skipped(path: Path) -> None:
    training = {"clip_norm": None, "precision": "fp16", "max_steps": 40, "on_non_finite": "skip"}
    gang = Gang(job(**POISON, training=training), 2, path)
    assert {leg.end for leg in gang.run(40)} == {LegEnd.REACHED}
    assert np.isfinite(gang.segment.weights(40)).all()
    assert gang.segment.control.loss_scale(40).scale == 1


@pytest.mark.parametrize("interrupted_at", [1, 3, 9])
def test_a_resumed_job_has_the_digest_of_an_uninterrupted_one(interrupted_at: int, path: Path, tmp_path: Path) -> None:
    spec = far()
    gang = Gang(spec, 2, path)
    gang.run(interrupted_at)
    segment, facts = gang.segment, gang.replicas[0].facts
    committed = segment.control.committed
    states = zip(facts.state_names, segment.state(committed), strict=True)
    loss_scale = segment.control.loss_scale(committed)
    state = checkpoint.TrainingState(committed, segment.weights(committed), dict(states), loss_scale)
    checkpoint.publish(
        LocalStore(tmp_path),
        state,
        tensors=facts.tensors,
        description=facts.description,
        origin=facts.origin,
        keep=1,
    )

    resumed = Gang(spec, 3, path, checkpoints=tmp_path)
    assert resumed.segment.control.committed == interrupted_at
    assert resumed.segment.control.loss_scale(interrupted_at) == loss_scale
    assert loss_scale.scale < 65536, "starting over with the first scale would skip steps"
    resumed.run(STEPS)
    assert resumed.digest() == train(spec, 1, path)
