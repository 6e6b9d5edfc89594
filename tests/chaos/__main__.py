"""`python -m tests.chaos --jobs 50 --kills 500 --seed 1`: a campaign, and its tally."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from service.ray_environment import prepare_local

# As in tests: what the undisturbed runs have compiled the service finds, or the first jobs would compile for minutes.
prepare_local(kernels=Path(__file__).parents[2] / ".pytest_cache" / "kernels")

from tests.chaos.campaign import Campaign
from tests.leftovers import END_SECONDS, left_behind, left_since


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50, help="at least; more when they end before the kills")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    before = left_behind()
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        campaign = Campaign(Path(directory), jobs=options.jobs, kills=options.kills, seed=options.seed, say=say)
        tally = campaign.run()
    deadline = time.monotonic() + END_SECONDS
    while left := left_since(before):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    print(tally)
    print(f"left behind: {', '.join(sorted(left)) or 'nothing'}")
    return 1 if tally.failures or tally.different or left else 0


def say(text: str) -> None:
    """Prints at once, whatever the output is."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
