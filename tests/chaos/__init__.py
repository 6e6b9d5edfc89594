"""Chaos: real jobs on a real service and real Ray, while processes of all kinds are killed at random instants.

`python -m tests.chaos --jobs 50 --kills 500 --seed 1` prints a tally. Nothing may be lost: every acknowledged job
succeeds, with the weights of a run that nobody disturbed.
"""
