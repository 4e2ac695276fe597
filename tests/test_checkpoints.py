"""Checkpoints: a training goes on from the last whole one, and nothing that lies in them is ever run."""

import logging
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
from tiny import make_model, make_rows, make_tokenizer
from transformers import TrainerCallback, TrainerControl, TrainerState

from flatlingo import checkpoints
from flatlingo import files as digests
from flatlingo.checkpoints import Checkpoints
from flatlingo.regularizers import FisherPenalty, SubwordConsistency
from flatlingo.training import finetune

TOKENIZER = make_tokenizer()


class Stop(TrainerCallback):
    """Ends the training in the checkpoint after a step, or at its end, as if killed then; counts the steps."""

    def __init__(self, after=100, at_end=False):
        self.after, self.at_end, self.steps = after, at_end, 0

    def on_train_end(self, args, state, control, **kwargs):
        if self.at_end:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.after:
            raise KeyboardInterrupt


def train(folder, stop, minutes=0.0):
    """Two epochs of three steps, with dropout, sampled segmentations and sampled labels; the weights."""
    model = make_model(dropout=0.1)
    finetune(
        model,
        TOKENIZER,
        make_rows(12),
        regularizers=[SubwordConsistency(TOKENIZER, weight=0.6), FisherPenalty(weight=0.01)],
        seed=3,
        epochs=2,
        batch_size=4,
        learning_rate=1e-3,
        max_length=32,
        checkpoints=folder and Checkpoints(folder, minutes=minutes),
        callbacks=[stop],
    )
    return torch.cat([p.flatten() for p in model.state_dict().values() if p.is_floating_point()])


@pytest.fixture(scope="module")
def undisturbed():
    return train(None, Stop())


@pytest.fixture
def stopped(tmp_path):
    """A folder with the checkpoints of a training that ended in its fifth checkpoint, before the digests."""
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Stop(after=5))
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_training_goes_on_from_its_last_whole_checkpoint_to_the_same_weights(stopped, undisturbed, caplog):
    assert names(stopped) == ["checkpoint-4", "checkpoint-5"]
    assert not (stopped / "checkpoint-5" / digests.SUMS).exists()
    counter = Stop()
    assert torch.equal(train(stopped, counter), undisturbed)
    assert counter.steps == 2, "steps 5 and 6"
    assert "checkpoint-5 is not whole (SHA256SUMS: No such file" in caplog.text


def evaluated(folder, stop, minutes=5.0):
    """The losses after each epoch of a training that stops early, and the weights that it keeps."""
    model = make_model()
    log = finetune(
        model,
        TOKENIZER,
        make_rows(12),
        eval_rows=make_rows(8, seed=5),
        patience=3,
        seed=3,
        epochs=30,
        batch_size=4,
        learning_rate=0.05,
        max_length=32,
        checkpoints=Checkpoints(folder, minutes=minutes),
        callbacks=[stop],
    )
    weights = torch.cat([p.flatten() for p in model.state_dict().values() if p.is_floating_point()])
    return [entry["eval_loss"] for entry in log if "eval_loss" in entry], weights


@pytest.mark.parametrize(("where", "left"), [("last checkpoint", 3), ("end", 0)])
def test_early_stopping_goes_on_counting_where_it_was_killed(tmp_path, where, left):
    losses, weights = evaluated(tmp_path / "undisturbed", Stop())
    assert len(losses) == losses.index(min(losses)) + 4 < 30
    kill = Stop(at_end=True) if where == "end" else Stop(after=3 * len(losses))
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path / "killed", kill)
    counter = Stop()
    again, kept = evaluated(tmp_path / "killed", counter)
    assert again == losses
    assert torch.equal(kept, weights)
    assert counter.steps == left


class StopInEvaluation(TrainerCallback):
    """Ends the training in the evaluation after the second epoch."""

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.epoch == 2:
            raise KeyboardInterrupt


def test_an_evaluation_that_was_killed_is_made_up_for(tmp_path):
    losses, weights = evaluated(tmp_path / "undisturbed", Stop())
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path / "killed", StopInEvaluation(), minutes=0)
    again, kept = evaluated(tmp_path / "killed", Stop(), minutes=0)
    assert again == losses
    assert torch.equal(kept, weights)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("harm", [truncate, os.unlink, empty], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", digests.SUMS])
def test_a_damaged_checkpoint_is_named_and_never_used(stopped, caplog, file, harm):
    harm(stopped / "checkpoint-4" / file)
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(stopped).last() is None
    assert "checkpoint-4 is not whole" in caplog.text
    assert file in caplog.text
    assert names(stopped) == []


class Payload:
    """A pickle that would run code when it is read."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_code_in_a_checkpoint_is_never_run(stopped, tmp_path, file):
    checkpoint, witness = stopped / "checkpoint-4", tmp_path / "witness"
    torch.save(Payload(witness), checkpoint / file)
    digests.write_sums(checkpoint)
    if file == "training_args.bin":  # written by the Trainer, read by nobody
        train(stopped, Stop())
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            train(stopped, Stop())
    assert not witness.exists()


def test_a_training_shorter_than_the_interval_writes_nothing(tmp_path, undisturbed):
    assert torch.equal(train(tmp_path / "work", Stop(), minutes=5.0), undisturbed)
    assert not (tmp_path / "work").exists() or not names(tmp_path / "work")


@pytest.mark.parametrize(("processes", "agreements"), [(1, []), (2, [50, 100])])
def test_processes_agree_on_a_checkpoint_in_every_50th_step_only(monkeypatch, tmp_path, processes, agreements):
    seen, saved = [], []
    monkeypatch.setattr(checkpoints, "PartialState", lambda: SimpleNamespace(num_processes=processes))
    monkeypatch.setattr(checkpoints, "broadcast_object_list", lambda due: seen.append(step) or due)
    writer = Checkpoints(tmp_path, minutes=0)
    for step in range(1, 121):
        control = TrainerControl()
        writer.on_step_end(SimpleNamespace(eval_strategy="no"), TrainerState(global_step=step), control)
        saved += [step] if control.should_save else []
    assert seen == agreements
    assert saved == (agreements or list(range(1, 121)))


def test_digests_of_files_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "folder" / digests.SUMS).write_text(f"{digests.sha256(tmp_path / 'secret')}  ../secret\n")
    assert "outside" in digests.changed(tmp_path / "folder")
