"""The processes that share a measurement, under `accelerate launch` or torchrun."""

import numpy as np
from torch import distributed


def process() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) for a single one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gathered(rows: np.ndarray, processes: int) -> list[np.ndarray]:
    """The rows of all processes, in order."""
    if processes == 1:
        return [rows]
    everyone = [None] * processes
    distributed.all_gather_object(everyone, rows)
    return everyone
