"""One run in two processes of `accelerate launch` is the run of one process."""

import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import SIZES, make_model, make_tokenizer, write_preset
from typer.testing import CliRunner

from flatlingo.cli import app
from flatlingo.errors import FlatlingoError
from flatlingo.training import finetune

LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "flatlingo"]


def scalars(folder, name):
    """What was logged for TensorBoard under a name."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def test_losses_penalty_and_trace_agree(tmp_path):
    encoder = tmp_path / "encoder"
    make_model(dropout=0.0, max_position_embeddings=128).save_pretrained(
        encoder
    )  # masks would differ between processes
    make_tokenizer().save_pretrained(encoder)
    # 40 steps of 8 rows; the penalty is too weak to matter, since its labels are drawn anew in every process
    sizes = SIZES | {"train_size": 320, "languages": ["en"]}
    preset = write_preset(tmp_path, setup=sizes, training={"batch_size": 8, "learning_rate": 1e-3})
    command = ["train", "--preset", preset, "--model", str(encoder), "--family", "fisher_penalty", "--weight", "1e-6"]

    def options(name):
        return [*command, "--output", str(tmp_path / name), "--tensorboard", str(tmp_path / "boards" / name)]

    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launched = subprocess.Popen([*LAUNCH, *options("two")], env=environment, stderr=subprocess.PIPE, text=True)
    alone = CliRunner().invoke(app, options("one"))
    assert alone.exit_code == 0, alone.output
    _, errors = launched.communicate(timeout=300)
    assert launched.returncode == 0, errors

    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert two["trace"]["value"] == pytest.approx(one["trace"]["value"], rel=1e-3)
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1 / 16)
    one, two = (tmp_path / "boards" / name for name in ("one", "two"))
    assert len(list(two.iterdir())) == 1, "one process writes"
    assert scalars(two, "train/loss") == pytest.approx(scalars(one, "train/loss"), rel=1e-3)
    assert scalars(two, "train/loss/task") == pytest.approx(scalars(one, "train/loss/task"), rel=1e-3)
    # the same expectation, from other labels: not twice, not half
    penalties = [sum(scalars(folder, "train/loss/fisher_penalty")) for folder in (one, two)]
    assert 0.67 < penalties[0] / penalties[1] < 1.5


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(FlatlingoError, match="3 processes cannot share batches of 32 rows"):
        finetune(None, None, [1], seed=0, epochs=1, batch_size=32, learning_rate=1e-3, max_length=32)
