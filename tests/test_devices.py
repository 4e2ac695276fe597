"""Devices: why there is no GPU is told, and each reason has its own remedy; freed memory is kept where it can be."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from flatlingo import devices
from flatlingo.errors import FlatlingoError
from flatlingo.randomness import own_randomness

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading "
    "and installing a new version from the URL: …"
)


@pytest.fixture
def unusable(monkeypatch):
    """What torch says of a CUDA build whose initialisation fails with a message."""

    def set_up(message, *, built=True):
        def init():
            raise RuntimeError(message)

        monkeypatch.delenv("FLATLINGO_CPU", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "init", init)

    return set_up


@pytest.mark.parametrize(
    ("message", "built", "told"),
    [
        (TOO_OLD, True, ["too old, which goes up to CUDA 12.2, for torch", "built for CUDA 13.0", "580 or newer"]),
        ("Found no NVIDIA driver on your system.", True, ["torch sees none", "nvidia-smi", "CUDA_VISIBLE_DEVICES"]),
        ("No CUDA GPUs are available", True, ["torch sees none"]),
        ("Torch not compiled with CUDA enabled", False, ["is built for the CPU only; install one"]),
    ],
    ids=["old driver", "no driver", "no GPU", "CPU build"],
)
def test_what_needs_a_gpu_is_refused_with_the_reason_and_the_remedy(unusable, message, built, told):
    unusable(message, built=built)
    with pytest.raises(FlatlingoError, match="training a large encoder needs a GPU, and ") as refused:
        devices.require_gpu("training a large encoder")
    for part in (*told, "set FLATLINGO_CPU=1"):
        assert part in str(refused.value)
    assert ("too old" in str(refused.value)) is (message is TOO_OLD)


AMD = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t\t: fpu"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41"


@pytest.mark.parametrize(
    ("told", "name"),
    [(f"{AMD}\n\n{AMD.replace('17', '1')}\n", "AMD EPYC, family 25, model 17, AVX9"), (ARM, "arm64, AVX9")],
    ids=["the first core's", "no name"],
)
def test_a_cpu_is_named_by_its_make_and_the_instructions_in_use(monkeypatch, told, name):
    monkeypatch.setattr(devices.Path, "read_text", lambda _path, **_options: told)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    assert devices.cpu_name.__wrapped__() == name


def test_one_may_ask_for_the_cpu(unusable, monkeypatch):
    unusable("No CUDA GPUs are available")
    monkeypatch.setenv("FLATLINGO_CPU", "1")
    devices.require_gpu("training a large encoder")


def test_with_a_gpu_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices.require_gpu("training a large encoder")


@pytest.mark.parametrize(
    ("gpu", "cores", "expected"),
    [(False, 16, 0), (True, 16, 4), (True, 3, 2), (True, 1, 0)],
    ids=["no GPU", "many cores", "three cores", "a SLURM job of one core"],
)
def test_views_are_drawn_beside_a_gpu_by_the_cores_that_are_left_over(monkeypatch, gpu, cores, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(devices, "cores", lambda: cores)
    assert devices.loading_processes() == expected


@pytest.mark.parametrize(("rank", "gpus", "number"), [("3", 4, 3), ("3", 1, 0), (None, 2, 0)])
def test_each_process_of_a_node_has_a_gpu_of_those_that_it_sees(monkeypatch, rank, gpus, number):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert devices.device() == torch.device("cuda", number)


def test_a_gpu_that_the_driver_counts_and_cuda_cannot_use_is_not_asked_for_its_generator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_rng_state()
    with own_randomness():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


TRAINING = """
import hashlib, json, resource
import torch
from tiny import make_model, make_rows, make_tokenizer
from flatlingo import devices
from flatlingo.training import finetune

def faults(times=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**24)  # 64 MiB, freed at once
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / times

def trained():
    torch.set_num_threads(1)
    model = make_model(dropout=0.1)
    settings = {"seed": 1, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32}
    finetune(model, make_tokenizer(), make_rows(16), **settings)
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    return hashlib.sha256(weights).hexdigest()

given_back = faults(), trained()
devices.keep_memory()
torch.ones(2**24)
print(json.dumps([*given_back, faults(), trained()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept with glibc only")
def test_memory_is_kept_and_what_is_trained_stays_the_same_bit_for_bit():
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""},
    )
    faults, weights, faults_kept, weights_kept = json.loads(done.stdout.splitlines()[-1])
    assert faults_kept < faults / 4, "pages that the system has to clear anew"
    assert weights_kept == weights


def test_without_glibc_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _name: pytest.fail("asked for the C library"))
    devices.keep_memory()
