"""Which device this is, and which of several processes as their launcher tells it.

`checkpoints` and `fisher.processes`, which talk to the other processes, ask accelerate and torch.distributed instead.
"""

import ctypes
import functools
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from flatlingo.errors import FlatlingoError


def device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return CPU
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))


def device_name() -> str:
    """The name of the GPU in use, or the make of the CPU."""
    return torch.cuda.get_device_name(device()) if torch.cuda.is_available() else cpu_name()


@functools.cache
def cpu_name() -> str:
    """The make of this machine's CPU and the instructions that PyTorch uses: on one make runs repeat bit for bit.

    Linux tells the make, with numbers since one name is given to several generations (`AMD EPYC, family 25, model 1,
    AVX2`); on other systems it is the architecture (`arm64, DEFAULT`).
    """
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    first = dict(re.findall(r"^(.+?)\s*: (.+)$", told.partition("\n\n")[0], re.MULTILINE))
    numbers = [f"{name.removeprefix('cpu ')} {first[name]}" for name in ("cpu family", "model") if name in first]
    make = [first.get("model name", platform.machine()), *numbers]
    return ", ".join([*make, torch.backends.cpu.get_cpu_capability()])


def runs_ahead(where: torch.device) -> bool:
    """Whether Python goes on while a device computes, and must wait for it wherever it reads a number."""
    return where.type != "cpu"


def loading_processes() -> int:
    """How many processes draw the perturbed views of the next batches beside a GPU: up to 4, of the cores left over.

    0 on CPU, where they would take the time of the training itself. The result is the same with any number.
    """
    return min(4, cores() - 1) if torch.cuda.is_available() else 0


def cores() -> int:
    """The cores that this process may use, of which a SLURM job has one unless it asks for more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Within the context so many threads of PyTorch compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_broken() -> bool:
    """Whether the GPU has failed (an illegal access, a fault of the hardware), so that this process can use it no more.

    After such an error every call fails that follows, until the process ends. Running out of memory is none.
    """
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def processes() -> int:
    """How many processes share this training, as torchrun and accelerate tell it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_several_processes(what: str) -> None:
    """Refuse what one process does, which uses several GPUs by itself where it can.

    Raises:
        FlatlingoError: under torchrun or `accelerate launch` with several processes.
    """
    if processes() > 1:
        raise FlatlingoError(
            f"{what} is called by {processes()} processes (torchrun, accelerate launch), each of which would do all of "
            "it and take the others' gradients for its own: call it without a launcher"
        )


def is_first_process() -> bool:
    """Whether this is the one process that writes."""
    return os.environ.get("RANK", "0") == "0"


def has_bf16() -> bool:
    """Whether the device multiplies bf16 matrices itself; others only emulate it (a T4), slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability(device()) >= (8, 0)
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices itself, also where there is a GPU."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last: ARM


def keep_memory() -> None:
    """Let this process keep memory that it has freed, from now on, for the tensors to come.

    The C library of Linux (glibc) gives large blocks back to the system at once, and the system clears every page of
    every large tensor anew, in each training step. To keep them took 0 to 10 % off a step of preset small's encoder on
    CPU, and a quarter to two fifths off an unfused optimiser's (`benchmarks/encoder.py`); the peak of memory rose by 0
    to 2 %. What is computed is the same. The process stays as large as it ever was until it ends, so this is for
    processes that train, not for a notebook. On other systems, or with another C library, nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    set_option = ctypes.CDLL(None).mallopt
    set_option(M_MMAP_MAX, 0)  # no block is a mapping of its own, which could only be given back
    set_option(M_TRIM_THRESHOLD, -1)  # and what is free at the end of the heap stays


def require_gpu(what: str) -> None:
    """Refuse to compute on the CPU what would take it weeks, unless `FLATLINGO_CPU=1` in the environment asks for it.

    Args:
        what: what is to be computed, for the message.

    Raises:
        FlatlingoError: without a usable GPU; it says whether there is none, an old driver, or a torch without CUDA.
    """
    if torch.cuda.is_available() or os.environ.get("FLATLINGO_CPU") == "1":
        return
    raise FlatlingoError(
        f"{what} needs a GPU, and {_why_no_gpu()}. To compute on the CPU all the same, for days or weeks "
        "(`flatlingo sweep --dry-run` tells), set FLATLINGO_CPU=1 in the environment"
    )


def _why_no_gpu() -> str:
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built for the CPU only; install one that is built for CUDA"
    try:
        torch.cuda.init()
        reason = ""
    except (RuntimeError, AssertionError) as error:
        reason = str(error)
    if "too old" not in reason:
        return "torch sees none (`nvidia-smi` lists those there are, and CUDA_VISIBLE_DEVICES may hide them)"
    found = re.search(r"found version (\d+)", reason)  # 12020 for CUDA 12.2
    most = f", which goes up to CUDA {int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else ""
    return (
        f"the driver of the one here is too old{most}, for torch {torch.__version__}, built for CUDA "
        f"{torch.version.cuda}. Update the driver (CUDA 13 needs version 580 or newer, CUDA 12 525), or install the "
        "same torch from the index that PyTorch keeps for an older CUDA version"
    )


CPU = torch.device("cpu")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of <malloc.h>
