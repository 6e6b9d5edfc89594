"""A seeded simulation of a job: the product's own coordinator and worker code, on a clock and a network made up here.

No Ray, no processes, no threads. `weave` loads the product's modules with every blocking call turned into a point
where others may come between; `world` stands in for processes, actors, shared memory and disk; `scenario` draws a job
and its misfortunes from a seed and checks the promises after every event. `python -m tests.simulation.run` runs many.
"""
