"""Sweeps as array jobs of a real SLURM; run by `make test-slurm`, which starts one."""

import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import SIZES, resolved, write_preset

from flatlingo.study.store import Store
from flatlingo.study.sweep import sweep


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Two runs of several seconds."""
    return write_preset(
        tmp_path_factory.mktemp("presets"),
        nli={"none": [0], "consistency": [0.6]},
        setup=SIZES | {"train_size": 64},
        training={"epochs": 20},
    )


@pytest.fixture(scope="module")
def undisturbed(preset, tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed")
    sweep("nli", preset=preset, store=store, jobs=1, progress=False)
    return results(store)


def results(store):
    names = ("result.json", "config.json", "model/model.safetensors")
    return {str(p.relative_to(store)): p.read_bytes() for name in names for p in store.glob(f"nli-*/{name}")}


def start(preset, store):
    command = [sys.executable, "-m", "flatlingo", "sweep", "nli", "--preset", preset, "--store", str(store)]
    command += ["--launcher", "slurm", "--time-limit", "8", "--checkpoint-minutes", "0"]
    return subprocess.Popen([*command, "--tensorboard", str(store / "boards")], stderr=subprocess.PIPE, text=True)


def steps(board):
    """The steps that each start of a run has logged for TensorBoard."""
    starts = [EventAccumulator(str(path)) for path in sorted(board.iterdir(), key=lambda path: path.stat().st_mtime)]
    return [[event.step for event in start.Reload().Scalars("train/loss")] for start in starts]


def test_an_array_gives_what_local_processes_give(preset, undisturbed, tmp_path):
    process = start(preset, tmp_path / "store")
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert results(tmp_path / "store") == undisturbed


@pytest.mark.parametrize(
    "interrupt",
    [["scontrol", "requeue"], ["scancel", "--signal=USR2"]],
    ids=["preempted and requeued by SLURM", "warned before its time is over"],
)
def test_an_interrupted_job_is_requeued_and_its_run_goes_on_from_its_checkpoint(
    preset, undisturbed, tmp_path, interrupt
):
    store = tmp_path / "store"
    runs = Store(store)
    process = start(preset, store)
    first = resolved("nli", preset)[0]
    while len(list(runs.work(first).glob("english/checkpoint-*/SHA256SUMS"))) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    job = subprocess.run(
        ["squeue", "-h", "-r", "-t", "R", "-o", "%i"], capture_output=True, text=True, check=True
    ).stdout.split()
    (task,) = [name for name in job if name.endswith("_0")]
    process_before = runs.owner(first)["pid"]
    subprocess.run([*interrupt, task], check=True)
    while (owner := runs.owner(first)) is None or owner["pid"] == process_before:
        assert process.poll() is None, process.stderr.read()
        assert not runs.exists(first), "the run was over before it was interrupted"
        # SLURM holds a requeued job back for two minutes
        subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], capture_output=True)
        time.sleep(1)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert results(store) == undisturbed
    before, after = steps(store / "boards" / first.run_id)
    assert before[0] == 1
    assert 1 < after[0] <= before[-1] + 1
    assert after[-1] == 40
