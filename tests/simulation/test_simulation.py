"""Simulated jobs keep every promise, a seed replays exactly, and known bugs are found."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation import mutants
from tests.simulation.scenario import simulate
from tests.simulation.weave import Mutation
from tests.simulation.world import product

NUM_SEEDS = 200
ONCE_FAILED = (1276, 2400)  # who waited was killed as hung; a start that stopped before its first word was waited for
OF_WORKERS, OF_JOBS = {"kill", "stop", "slow", "out of reach"}, {"scale", "pause", "coordinator"}
MISFORTUNES = OF_WORKERS | OF_JOBS | {"full disk", "store out of reach", "corrupt checkpoint"}
SAY = "from tests.simulation import scenario, world; print(scenario.simulate({seed}, world.product()))"


def test_whatever_a_job_meets_its_weights_are_those_of_the_reference() -> None:
    modules, met, ends = product(), Counter[str](), Counter[str]()
    for seed in (*range(NUM_SEEDS), *ONCE_FAILED):
        outcome = simulate(seed, modules)
        assert not outcome.violation, f"python -m tests.simulation.run --seed {seed}: {outcome.violation}"
        met += outcome.met
        ends[outcome.end] += 1
    assert met.keys() == MISFORTUNES, "a misfortune that never comes is not survived"
    assert ends["succeeded"] > 0.9 * NUM_SEEDS, ends


def test_a_seed_replays_exactly_in_any_process() -> None:
    seed, modules = 20, product()
    here = [str(simulate(seed, modules)) for _ in range(2)]
    root = Path(__file__).parents[2]
    run = [sys.executable, "-c", SAY.format(seed=seed)]
    there = subprocess.run(run, cwd=root, env={"PYTHONHASHSEED": "5"}, capture_output=True, text=True, check=True)
    assert {*here, there.stdout.strip()} == {here[0]}


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    found = mutants.find(name)
    assert found is not None, f"no seed below {mutants.MAX_SEEDS} finds: {name}"


def test_a_mutation_of_words_that_are_not_there_is_an_error() -> None:
    with pytest.raises(AssertionError, match="expected once: no such words"):
        product((Mutation("worker.update", "no such words", ""),))
