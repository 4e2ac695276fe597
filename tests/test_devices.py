"""Devices: why there is no GPU is told, and each reason has its own remedy."""

import pytest
import torch

from flatlingo import devices
from flatlingo.errors import FlatlingoError

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


def test_one_may_ask_for_the_cpu(unusable, monkeypatch):
    unusable("No CUDA GPUs are available")
    monkeypatch.setenv("FLATLINGO_CPU", "1")
    devices.require_gpu("training a large encoder")


def test_with_a_gpu_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices.require_gpu("training a large encoder")
