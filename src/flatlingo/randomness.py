"""The global generators, which a Trainer seeds and uses, kept from those who call it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

LARGEST_SEED = 2**32 - 1  # that NumPy takes


@contextmanager
def own_randomness() -> Iterator[None]:
    """Give the global generators of Python, NumPy and PyTorch back as they were found."""
    import numpy as np  # here, for configurations ask for the largest seed and need neither
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (what Trainer seeds)
    try:
        # a GPU that the driver counts may be one that CUDA cannot use
        gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
