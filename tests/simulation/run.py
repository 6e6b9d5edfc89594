"""`python -m tests.simulation.run --seed 1 --seeds 1000`: simulates jobs, prints a tally, and every seed that fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.scenario import simulate
from tests.simulation.world import product


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    options = parser.parse_args()
    modules, ends, met = product(), Counter[str](), Counter[str]()
    steps, seconds, started = 0, 0.0, time.perf_counter()
    for seed in range(options.seed, options.seed + options.seeds):
        outcome = simulate(seed, modules)
        ends[outcome.end] += 1
        met += outcome.met
        steps += outcome.steps
        seconds += outcome.seconds
        if outcome.violation:
            print(f"seed {seed}: {outcome.violation}; it met {dict(outcome.met)}")
    spent = time.perf_counter() - started
    print(f"{options.seeds} seeds in {spent:.1f} s, {60 * options.seeds / spent:.0f} a minute")
    print(f"{steps} steps, {seconds / 3600:.1f} simulated hours; met: {_told(met)}")
    print(f"ended: {_told(ends)}")
    return 1 if ends["violation"] else 0


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
