"""Tr(F) in the logs of a training, at a bounded cost: any Trainer's, which it leaves as it was."""

import copy
import json
import logging
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import make_model, make_rows, make_tokenizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import flatlingo as fl
from flatlingo import tracecallbacks
from flatlingo.encoding import PairCollator, encode

TOKENIZER = make_tokenizer()
COLLATE = PairCollator(TOKENIZER)
TRAINED, MEASURED = (encode(make_rows(n, seed=n), TOKENIZER, max_length=32) for n in (32, 11))
BATCHES = [COLLATE(MEASURED[:8]), COLLATE(MEASURED[8:])]


class Copies(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.weights = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights[state.global_step] = copy.deepcopy(model.state_dict())


def plain_trainer(folder, *callbacks, report_to="none", model=None, **settings):
    """Hugging Face's Trainer on tokenised rows: 8 steps of 8 rows in two epochs."""
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "seed": 3} | settings
    args = TrainingArguments(
        str(folder),
        report_to=report_to,
        use_cpu=True,
        logging_steps=3,
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return Trainer(model or make_model(dropout=0.1), args, COLLATE, train_dataset=TRAINED, callbacks=[*callbacks])


def traced(log):
    """The entries of a log that hold the trace."""
    return [entry for entry in log if "fisher_trace" in entry]


def trace_of(weights):
    model = make_model(dropout=0.1)
    model.load_state_dict(weights)
    return fl.fisher_trace(model, BATCHES)


@pytest.mark.parametrize(
    ("settings", "options", "steps"),
    [
        ({}, {"every": 3}, [3, 6, 8]),
        ({}, {"every": 1, "unit": "epoch"}, [4, 8]),
        ({"num_train_epochs": 3}, {"every": 2, "unit": "epoch"}, [8, 12]),
        ({"gradient_accumulation_steps": 2}, {"every": 3}, [3, 4]),
        ({"bf16": True}, {"every": 4}, [4, 8]),
    ],
    ids=["steps", "epochs", "every other epoch", "accumulated", "bf16"],
)
def test_a_plain_trainer_logs_the_trace_of_the_weights_at_each_turn(tmp_path, settings, options, steps):
    copies = Copies()
    trainer = plain_trainer(tmp_path, copies, **settings)
    trainer.add_callback(fl.TraceCallback(BATCHES, trainer, max_share=1, **options))
    trainer.train()
    entries = traced(trainer.state.log_history)
    assert [entry["step"] for entry in entries] == steps
    for entry in entries:
        trace = trace_of(copies.weights[entry["step"]])
        assert entry["fisher_trace"] == pytest.approx(trace.value, rel=1e-5)
        assert entry["fisher_trace_se"] == pytest.approx(trace.standard_error, rel=1e-5)
        assert entry["fisher_log_trace"] == pytest.approx(np.log(trace.per_example).mean(), rel=1e-5)
        assert 0 < entry["fisher_trace_share"] <= 1


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_a_curve_has_trace_and_loss_of_the_weights_at_its_shares(tmp_path, settings):
    copies = Copies()
    trainer = plain_trainer(tmp_path, copies, tracecallbacks.TraceCurve(BATCHES, (0, 0.25, 0.5)), **settings)
    copies.weights[0] = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "trace/value" in entry]
    assert [(entry["step"], entry["trace/share"]) for entry in entries] == [(0, 0), (2, 0.25), (4, 0.5)]
    for entry in entries:
        model, trace = make_model(dropout=0.1), trace_of(copies.weights[entry["step"]])
        model.load_state_dict(copies.weights[entry["step"]])
        with torch.no_grad():
            one_by_one = [float(model(**COLLATE([row])).loss) for row in MEASURED]
        assert entry["trace/value"] == pytest.approx(trace.value, rel=1e-5)
        assert entry["trace/log_mean"] == pytest.approx(np.log(trace.per_example).mean(), rel=1e-5)
        assert entry["trace/loss"] == pytest.approx(np.mean(one_by_one), rel=1e-5)


def test_tensorboard_shows_what_the_log_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = plain_trainer(tmp_path, report_to="tensorboard")
    trainer.add_callback(fl.TraceCallback(BATCHES, trainer, every=2, max_share=1))
    trainer.train()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    for name in ("fisher_trace", "fisher_trace_se"):
        shown = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert shown == {e["step"]: pytest.approx(e[name], rel=1e-6) for e in traced(trainer.state.log_history)}
    assert sorted(shown) == [2, 4, 6, 8]


CALLBACKS = {
    "callback": lambda trainer: fl.TraceCallback(BATCHES, trainer, every=1, max_share=1),
    "callback with a DataLoader": lambda trainer: fl.TraceCallback(
        DataLoader(MEASURED, 8, collate_fn=COLLATE), trainer, every=1, max_share=1
    ),
    "curve": lambda trainer: tracecallbacks.TraceCurve(BATCHES, (0, 0.25, 0.5)),
}


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "bf16"])
@pytest.mark.parametrize("which", CALLBACKS)
def test_training_is_the_same_as_without(tmp_path, which, settings):
    weights, logs = [], []
    for watched in (False, True):
        trainer = plain_trainer(tmp_path, **settings)
        if watched:
            trainer.add_callback(CALLBACKS[which](trainer))
        trainer.train()
        weights.append(trainer.model.state_dict())
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert logs[0] == logs[1]
    assert all(torch.equal(first, second) for first, second in zip(*(w.values() for w in weights), strict=True))


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a step of training takes a second and a row's trace as many as asked for."""

    class Clock(TrainerCallback):
        now, per_row = 0.0, 0.0

        def on_step_begin(self, *args, **kwargs):
            self.now += 1

    clock, measured = Clock(), tracecallbacks.fisher_trace

    def fisher_trace(model, batches):
        found = measured(model, batches)
        clock.now += clock.per_row * found.n
        return found

    monkeypatch.setattr(tracecallbacks, "fisher_trace", fisher_trace)
    monkeypatch.setattr(tracecallbacks.time, "monotonic", lambda: clock.now)
    return clock


@pytest.mark.parametrize("max_share", [0.1, 0.4, 1])
def test_measuring_takes_no_more_than_its_share_of_the_time(tmp_path, clock, caplog, max_share):
    clock.per_row = 0.2  # 2.2 s for all rows, twice 1.6 s for the first batch
    trainer = plain_trainer(tmp_path, clock, num_train_epochs=15)  # 60 s
    trainer.add_callback(fl.TraceCallback(BATCHES, trainer, every=2, max_share=max_share))
    with caplog.at_level(logging.WARNING, logger="flatlingo.tracecallbacks"):
        trainer.train()
    log = trainer.state.log_history
    shares = [entry["fisher_trace_share"] for entry in traced(log)]
    assert max(shares) <= max_share
    spent = 2 * 1.6 + 2.2 * len(shares)
    assert spent / clock.now <= max_share
    assert sum(entry.get("fisher_trace_skipped", 0) for entry in log) == 30 - len(shares)
    if max_share == 1:
        assert len(shares) == 30
        assert not caplog.records
    else:
        assert (spent + 2 * 2.2) / (clock.now + 2 * 2.2) > max_share  # as often as it may
        assert len(caplog.records) == 1
        assert "step 2 is left out: it takes about 2.2 s" in caplog.text
        assert f"max_share={max_share:g}" in caplog.text


def test_finetune_gives_its_own_trainer():
    model, rows = make_model(), make_rows(16)
    callback = fl.TraceCallback(BATCHES, every=2, max_share=1)
    settings = {"seed": 0, "epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32}
    log = fl.finetune(model, TOKENIZER, rows, callbacks=[callback], **settings)
    assert [entry["step"] for entry in traced(log)] == [2, 4]
    assert traced(log)[-1]["fisher_trace"] == pytest.approx(fl.fisher_trace(model, BATCHES).value, rel=1e-5)


def test_what_cannot_be_logged_or_measured_is_refused(tmp_path):
    with pytest.raises(fl.FlatlingoError, match=r"no Trainer.*TraceCallback\(batches, trainer\)"):
        plain_trainer(tmp_path, fl.TraceCallback(BATCHES)).train()
    sharded = plain_trainer(tmp_path)
    sharded.add_callback(fl.TraceCallback(BATCHES, sharded))
    sharded.is_fsdp_enabled = True
    with pytest.raises(fl.FlatlingoError, match="FSDP"):
        sharded.callback_handler.on_train_begin(sharded.args, sharded.state, sharded.control)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "no batches"),
        (BATCHES, {"every": 0}, "every=0"),
        (BATCHES, {"every": 0.5}, "every=0.5"),
        (BATCHES, {"unit": "hour"}, "hour"),
        (BATCHES, {"max_share": 0}, "max_share=0"),
        (BATCHES, {"max_share": 2}, "max_share=2"),
    ],
)
def test_impossible_settings_are_refused(batches, options, message):
    with pytest.raises(fl.FlatlingoError, match=message):
        fl.TraceCallback(batches, **options)


def test_a_forward_of_ones_own_is_what_is_measured(tmp_path):
    model = make_model()

    def forward(self, *args, **kwargs):
        outputs = type(self).forward(self, *args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs

    model.forward = types.MethodType(forward, model)
    trainer = plain_trainer(tmp_path, model=model, learning_rate=0.0, remove_unused_columns=False)
    trainer.add_callback(fl.TraceCallback(BATCHES, trainer, every=8, max_share=1))
    trainer.train()
    (entry,) = traced(trainer.state.log_history)
    assert entry["fisher_trace"] == pytest.approx(fl.fisher_trace(model.eval(), BATCHES).value)


def test_two_processes_log_the_same(tmp_path):
    """The trace is that of one process."""
    command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", *command, __file__, str(tmp_path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["steps"] == second["steps"] == [2, 4, 6, 8]
    assert first["traces"] == second["traces"]
    assert first["traces"] == pytest.approx(first["alone"], rel=1e-5)


def _in_one_of_two_processes(folder: str) -> None:
    copies = Copies()
    trainer = plain_trainer(folder, copies, num_train_epochs=4)
    trainer.add_callback(fl.TraceCallback(BATCHES, trainer, every=2, max_share=1))
    trainer.train()
    torch.distributed.destroy_process_group()
    entries = traced(trainer.state.log_history)
    steps = [entry["step"] for entry in entries]
    found = {"steps": steps, "traces": [entry["fisher_trace"] for entry in entries]}
    found["alone"] = [trace_of(copies.weights[step]).value for step in steps]
    with open(f"{folder}/{trainer.args.process_index}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    _in_one_of_two_processes(sys.argv[1])
