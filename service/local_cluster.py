"""A Ray cluster on this machine alone: started with the service and ended with it.

Nothing of it listens beyond the loopback interface, and whoever wants to talk to it needs a token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
from pathlib import Path

import ray

from service.checkpoints import CheckpointPolicy
from service.cluster import ClusterError, RayCluster
from service.ray_environment import prepare_local

OBJECT_STORE_BYTES = 80 << 20  # nearly Ray's least: gradients and weights never pass through it


async def open_local_cluster(
    *, worker_slots: int | None = None, policy: CheckpointPolicy = CheckpointPolicy()
) -> RayCluster:
    """Starts Ray on this machine alone, on the loopback interface, with one slot a core unless told otherwise."""
    prepare_local()
    slots = worker_slots or os.cpu_count() or 1
    directory = Path(tempfile.mkdtemp(prefix="backprop-ray-"))
    cluster = RayCluster(num_slots=slots, token=secrets.token_hex(4), directory=directory, policy=policy)
    cluster.start_janitor()
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        await asyncio.to_thread(
            ray.init,
            num_cpus=slots,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(directory),
        )
    except Exception as error:
        await cluster.close()
        raise ClusterError(f"cannot start Ray: {' '.join(str(error).split())[:300]}") from error
    return cluster
