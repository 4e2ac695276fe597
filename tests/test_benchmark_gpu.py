"""The benchmark that is prepared for a GPU, tried at sizes that tell nothing about speed."""

import importlib
import sys
from pathlib import Path

import pytest

PARTS = ["device", "matrix TFLOP/s", "bf16", "Tr(F)", "same seed", "steps, T = 16", "rows per second", "1 jobs"]


@pytest.fixture(scope="module")
def gpu():
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("gpu")
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def report(gpu):
    return list(gpu.reports(gpu.Bench(gpu.SMOKE, until=float("inf"))))[-1]


def test_every_part_is_measured(report):
    assert [name for name in report if name not in ("scale", "seconds")] == PARTS
    failed = {name: found for name, found in report.items() if "failed" in found}
    assert failed == {}


def test_what_must_hold_on_every_device_holds_here(report):
    assert report["Tr(F)"]["largest relative error, high"] < 1e-5
    assert report["bf16"].get("forward of its class", True)
    assert report["bf16"].get("dtype", "torch.float32") == "torch.float32"
    assert report["same seed"]["moved"] > 0
    assert report["same seed"]["same seed"] == report["same seed"]["broken off and resumed"] == 0


def test_steps_are_timed_and_their_launches_counted(report):
    steps = report["steps, T = 16"]
    assert {"none", "MVR", "MVR, one pass", "Fisher penalty", "trace penalty", "L2"} <= set(steps)
    assert all(step["ms"] > 0 and step["launches"] > 100 for step in steps.values())
    assert steps["none"]["launches"] < steps["MVR, one pass"]["launches"] < steps["MVR"]["launches"]


def test_what_no_time_is_left_for_is_left_out(gpu):
    last = list(gpu.reports(gpu.Bench(gpu.SMOKE, until=0.0)))[-1]
    assert [last[name] for name in PARTS] == len(PARTS) * [{"skipped": "no time left"}]
