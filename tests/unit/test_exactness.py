"""The promise: the same job gives the same weights to the last bit, on any number of workers, and in every run.

Here the workers are threads over a real segment; tests/integration has them as Ray actors.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worker.autodiff import Tensor
from worker.autodiff.tensor import Array
from worker.checkpoint import weights_digest
from worker.data.dataset import Batch
from worker.nn import Module
from worker.objective import Scores
from worker.plan import Plan, even_plan
from worker.reduce.segment import DIRECTORY, Segment
from worker.replica import Leg, LegEnd, Replica, spec_sha256
from worker.spec import JobSpec, parse_spec

STEPS = 12


def job(**parts: object) -> JobSpec:
    training = {"global_batch_size": 24, "shards": 8, "max_steps": STEPS, "clip_norm": 1.0, "seed": 3}
    document: dict[str, object] = {
        "model": {"mlp": {"hidden": [16, 300]}},
        "data": {"synthetic": {"samples": 500, "features": 70, "outputs": 5}},
        "workers": {"min": 1},
    }
    document["training"] = training | dict(parts.pop("training", {}))  # type: ignore[call-overload]  # a mapping in every test
    return parse_spec(document | parts)


@pytest.fixture
def path() -> Iterator[Path]:
    path = DIRECTORY / f"backprop-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


class Gang:
    """Workers of one job as threads."""

    def __init__(
        self,
        spec: JobSpec,
        num_workers: int,
        path: Path,
        checkpoints: Path = Path("/nonexistent"),
        *,
        rehearsed: bool = False,
    ) -> None:
        self.replicas = [Replica.load(spec, capacity=num_workers) for _ in range(num_workers)]
        for replica in self.replicas if rehearsed else []:
            assert replica.rehearse(may_compile=True) is not None
        self.replicas[0].create_segment(path, str(checkpoints))
        for seat, replica in enumerate(self.replicas):
            replica.join(path, seat)
        self.num_shards = spec.training.shards
        self.segment = Segment.attach(path, self.replicas[0].facts.shape)
        path.unlink()

    def run(self, until_step: int, plan: Plan | None = None) -> list[Leg]:
        """All workers, or those of a plan, in the plan's order."""
        epoch = self.segment.control.open_plan()
        plan = replace(plan or self.even(*range(len(self.replicas))), epoch=epoch)
        with ThreadPoolExecutor(len(plan.members)) as pool:
            legs = [pool.submit(self.replicas[seat].run, until_step, plan) for seat in plan.members]
            return [leg.result() for leg in legs]

    def even(self, *members: int) -> Plan:
        return even_plan(members, num_shards=self.num_shards, epoch=self.segment.control.epoch)

    def evaluate(self) -> list[dict[int, Scores]]:
        plan = self.even(*range(len(self.replicas)))
        answers = [replica.evaluate(plan) for replica in self.replicas]
        scores = [answer for answer in answers if isinstance(answer, dict)]
        assert len(scores) == len(answers), "nobody gives a plan up here"
        return scores

    def digest(self) -> str:
        return weights_digest(self.segment.weights(self.segment.control.committed))


def train(spec: JobSpec, num_workers: int, path: Path, *, leg: int = STEPS) -> str:
    gang = Gang(spec, num_workers, path)
    for until_step in range(leg, STEPS + leg, leg):
        legs = gang.run(min(until_step, STEPS))
        assert {leg.end for leg in legs} == {LegEnd.REACHED}
    return gang.digest()


TEXT = {"text": {"path": str(Path(__file__)), "validation_fraction": 0.2}}
SMALL = {"layers": 2, "heads": 2, "width": 16, "context": 12}

JOBS = {
    "cnn": job(model={"cnn": {"stages": [4, 8]}}, data={"digits": {}}),
    "gpt": job(model={"gpt": SMALL}, data=TEXT),
    "gpt, dropout": job(model={"gpt": SMALL | {"dropout": 0.1}}, data=TEXT),
    "bert": job(model={"bert": SMALL}, data=TEXT),
    "cnn, bf16": job(model={"cnn": {"stages": [4, 8]}}, data={"digits": {}}, training={"precision": "bf16"}),
    "gpt, bf16": job(model={"gpt": SMALL | {"dropout": 0.1}}, data=TEXT, training={"precision": "bf16"}),
    "bert, bf16": job(model={"bert": SMALL}, data=TEXT, training={"precision": "bf16"}),
    "bf16": job(training={"precision": "bf16"}),
    "cnn, fp16": job(model={"cnn": {"stages": [4, 8]}}, data={"digits": {}}, training={"precision": "fp16"}),
    "gpt, fp16": job(model={"gpt": SMALL | {"dropout": 0.1}}, data=TEXT, training={"precision": "fp16"}),
    "bert, fp16": job(model={"bert": SMALL}, data=TEXT, training={"precision": "fp16"}),
    "fp16": job(training={"precision": "fp16"}),
    "adam": job(),
    "adamw, cosine": job(optimizer={"adamw": {}}, schedule={"cosine": {"warmup_steps": 4}}),
    "momentum": job(optimizer={"momentum": {}}),
    "sgd, nesterov": job(optimizer={"sgd": {"momentum": 0.9, "nesterov": True}}, schedule={"one_cycle": {}}),
    "rmsprop": job(optimizer={"rmsprop": {"centered": True, "momentum": 0.5}}, schedule={"wsd": {"decay_steps": 4}}),
    "adagrad": job(optimizer={"adagrad": {"initial_accumulator_value": 0.1}}, schedule={"step": {"step_size": 5}}),
    "lion": job(optimizer={"lion": {"weight_decay": 0.1}}),
    "ema": job(optimizer={"adamw": {}, "ema": {"decay": 0.9}}),
    "clipping by value": job(training={"clip_value": 0.001}),
    "sgd": job(optimizer={"sgd": {"learning_rate": 0.1}}),
    "no clipping": job(training={"clip_norm": None}),
    "tanh": job(model={"mlp": {"hidden": [40], "activation": "tanh"}}),
    "gelu": job(model={"mlp": {"hidden": [40], "activation": "gelu"}}),
    "linear model": job(model={"mlp": {}}),
    "regression": job(data={"synthetic": {"task": "regression", "samples": 100, "features": 9, "outputs": 3}}),
    "six shards": job(training={"shards": 6}),
    "several blocks": job(model={"mlp": {"hidden": [512, 100]}}),
}


CHECKPOINTED: dict[str, tuple[object, object]] = {
    "mlp": ({"hidden": [16, 300], "activation": "gelu"}, {"synthetic": {"samples": 500, "features": 70}}),
    "cnn": ({"stages": [4, 8], "blocks": 2}, {"digits": {}}),
    "gpt": (SMALL | {"dropout": 0.1}, TEXT),
    "bert": (SMALL | {"dropout": 0.1}, TEXT),
}


@pytest.mark.parametrize("name", list(JOBS))
def test_any_number_of_workers_gives_the_same_digest(name: str, path: Path) -> None:
    spec = JOBS[name]
    alone = train(spec, 1, path)
    for num_workers in range(2, min(4, spec.training.shards) + 1):
        assert train(spec, num_workers, path) == alone, f"{num_workers} workers"


@pytest.mark.parametrize("model", [*CHECKPOINTED])
def test_gradient_checkpointing_changes_no_bit(model: str, path: Path) -> None:
    kind, data = CHECKPOINTED[model]
    plain, checkpointed = (
        train(job(model={model: kind}, data=data, training={"gradient_checkpointing": again}), 2, path)
        for again in (False, True)
    )
    assert checkpointed == plain


def test_a_checkpoint_serves_with_and_without_gradient_checkpointing() -> None:
    plain, checkpointed = (job(training={"gradient_checkpointing": again}) for again in (False, True))
    assert spec_sha256(plain) == spec_sha256(job(priority=5))
    assert spec_sha256(plain) == spec_sha256(checkpointed) != spec_sha256(job(training={"seed": 4}))


@pytest.mark.parametrize("name", ["cnn", "gpt, dropout", "bert", "ema"])
def test_a_rehearsal_changes_no_bit(name: str, path: Path) -> None:
    gang = Gang(JOBS[name], 2, path, rehearsed=True)
    gang.run(STEPS)
    assert gang.digest() == train(JOBS[name], 2, path)


def test_dropout_changes_the_weights(path: Path) -> None:
    """Otherwise its row above would prove nothing."""
    assert train(JOBS["gpt"], 1, path) != train(JOBS["gpt, dropout"], 1, path)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_scores_of_text_do_not_depend_on_the_number_of_workers(name: str, path: Path) -> None:
    results = []
    for num_workers in (1, 3):
        gang = Gang(JOBS[name], num_workers, path)
        results.append({chunk: scores for answer in gang.evaluate() for chunk, scores in answer.items()})
    assert results[0] == results[1]
    assert sum(scores.num_losses for scores in results[0].values()) > 0


@pytest.mark.parametrize(
    ("name", "later"), [("adam", [12]), ("gpt, dropout", [12]), ("cnn", [3, 3, 3, 3]), ("bert", [3, 3, 3, 3])]
)
def test_after_a_legs_first_step_shards_share_passes_where_the_model_knows_parts(
    name: str, later: list[int], path: Path
) -> None:
    gang = Gang(JOBS[name], 2, path)
    sizes: list[int] = []
    objective = gang.replicas[0]._recipe.objective

    def predict(model: Module, batch: Batch) -> tuple[Tensor, Array]:
        sizes.append(len(batch.inputs))
        return objective.predict(model, batch)

    watched = replace(gang.replicas[0]._recipe, objective=replace(objective, predict=predict))
    gang.replicas[0]._recipe = watched
    for until_step in (3, 5):
        gang.run(until_step)
    shard_by_shard = [3, 3, 3, 3]
    assert sizes == [*shard_by_shard, *later, *later, *shard_by_shard, *later]
    gang.run(STEPS)
    assert gang.digest() == train(JOBS[name], 1, path)


def test_as_many_workers_as_shards(path: Path) -> None:
    assert train(job(), 8, path) == train(job(), 1, path) == train(job(), 5, path)


@pytest.mark.parametrize("shards", [8, 6])
def test_plans_of_any_members_and_shares_give_the_same_digest(shards: int, path: Path) -> None:
    """Workers come, go and change their shares at step boundaries; nobody loads anything again."""
    spec = job(training={"shards": shards})
    gang = Gang(spec, 4, path)
    plans = [
        gang.even(2),
        gang.even(2, 0),
        Plan(0, (2, 0), (shards - 1, 1)),
        Plan(0, (0, 3, 1), (1, shards - 2, 1)),
        gang.even(3, 1, 0, 2),
        Plan(0, (1, 0, 2, 3), (2, 1, shards - 4, 1)),
    ]
    for number, plan in enumerate(plans, 1):
        assert {leg.end for leg in gang.run(2 * number, plan)} == {LegEnd.REACHED}
    assert gang.digest() == train(spec, 1, path)


def test_legs_of_any_length_give_the_same_digest(path: Path) -> None:
    assert train(job(), 2, path, leg=5) == train(job(), 2, path)


def test_every_setting_that_should_matter_matters(path: Path) -> None:
    """A digest that never changes would pass every test above."""
    others = [job(training={"seed": 4}), job(training={"shards": 4}), job(training={"global_batch_size": 16})]
    others += [job(training={"clip_value": 0.001}), job(optimizer={"lion": {}}), JOBS["bf16"], JOBS["fp16"]]
    digests = {train(spec, 1, path) for spec in [job(), *others]}
    assert len(digests) == 8


def test_average_starts_with_the_weights_and_does_not_disturb_them(path: Path) -> None:
    optimizer = {"adamw": {"learning_rate": 0.1}}
    gang = Gang(job(optimizer=optimizer | {"ema": {"decay": 0.9}}), 2, path)
    expected = gang.segment.weights(0).astype(np.float64)
    assert np.array_equal(gang.segment.state(0)[-1], gang.segment.weights(0))
    for step in range(1, STEPS + 1):
        gang.run(step)
        expected = 0.9 * expected + 0.1 * gang.segment.weights(step)
    np.testing.assert_allclose(gang.segment.state(STEPS)[-1], expected, rtol=1e-4, atol=1e-5)
    assert gang.digest() == train(job(optimizer=optimizer), 1, path)


def test_an_averaged_job_is_judged_by_the_average(path: Path) -> None:
    """Its scores are those of a plain job whose weights are the average."""

    def scores(gang: Gang) -> dict[int, Scores]:
        return {chunk: scores for part in gang.evaluate() for chunk, scores in part.items()}

    gang = Gang(job(optimizer={"adamw": {"learning_rate": 0.1}, "ema": {"decay": 0.9}}), 2, path)
    gang.run(STEPS)
    plain = Gang(job(optimizer={"adamw": {}}), 2, path)
    plain.segment.weights(0)[:] = gang.segment.weights(STEPS)
    raw = scores(plain)
    plain.segment.weights(0)[:] = gang.segment.state(STEPS)[-1]
    assert scores(gang) == scores(plain) != raw


def test_training_learns(path: Path) -> None:
    spec = job(training={"max_steps": 200, "global_batch_size": 32}, optimizer={"adam": {"learning_rate": 0.01}})
    gang = Gang(spec, 2, path)

    def accuracy() -> float:
        chunks = [scores for answer in gang.evaluate() for scores in answer.values()]
        return sum(scores.num_correct for scores in chunks) / sum(scores.num_losses for scores in chunks)

    before = accuracy()
    gang.run(200)
    assert before < 0.6
    assert accuracy() > 0.95


def test_evaluation_does_not_depend_on_the_number_of_workers(path: Path) -> None:
    results = []
    for num_workers in (1, 2, 3):
        gang = Gang(job(data={"synthetic": {"samples": 5000, "features": 70}}), num_workers, path)
        results.append({chunk: scores for answer in gang.evaluate() for chunk, scores in answer.items()})
    assert results[0] == results[1] == results[2]
    assert sum(scores.num_losses for scores in results[0].values()) == 1000


def test_a_stop_ends_all_workers_at_the_same_step(path: Path) -> None:
    gang = Gang(job(), 3, path)
    gang.segment.control.stop_requested = True
    legs = gang.run(STEPS)
    assert {leg.end for leg in legs} == {LegEnd.STOPPED}
    assert len({leg.step for leg in legs}) == 1


POISON = {"optimizer": {"sgd": {"learning_rate": 1e30}}, "data": {"synthetic": {"task": "regression", "features": 8}}}


def test_a_non_finite_gradient_fails_the_step_for_everyone(path: Path) -> None:
    gang = Gang(job(**POISON, training={"clip_norm": None}), 2, path)
    legs = gang.run(STEPS)
    assert {leg.end for leg in legs} == {LegEnd.NON_FINITE}
    assert len({leg.message for leg in legs}) == 1
    assert "gradient's norm is" in legs[0].message
    assert np.isfinite(gang.segment.weights(gang.segment.control.committed)).all()


def test_a_non_finite_gradient_can_be_skipped(path: Path) -> None:
    gang = Gang(job(**POISON, training={"clip_norm": None, "on_non_finite": "skip"}), 2, path)
    legs = gang.run(STEPS)
    assert {leg.end for leg in legs} == {LegEnd.REACHED}
    assert np.isfinite(gang.segment.weights(STEPS)).all()
    skipped = gang.segment.control.ring[1 : STEPS + 1, 6]
    assert 0 < skipped.sum() < STEPS


def test_the_phases_of_a_step_are_all_timed(path: Path) -> None:
    gang = Gang(job(), 2, path)
    gang.run(STEPS)
    assert (gang.segment.control.phase_seconds > 0).all()
