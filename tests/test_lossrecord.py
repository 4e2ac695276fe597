"""What a log says of losses, and how one that is not finite is told."""

import math

import pytest
import torch

from flatlingo.errors import FlatlingoError
from flatlingo.lossrecord import READ_EVERY, LossRecord


def noted(record: LossRecord, task, term=0.0, *, step=1, **settings) -> None:
    record.note(step, {"task": torch.as_tensor(task), "l2": torch.as_tensor(term)}, {}, **settings)


def test_means_are_those_of_the_notes_since_the_last_ones():
    record, losses = LossRecord(), [0.1 * step for step in range(2 * READ_EVERY + 7)]
    for step, loss in enumerate(losses):
        details = {"kl": torch.tensor([loss, 2 * loss], dtype=torch.float64), "steps": float(step)}
        record.note(step, {"task": torch.tensor(loss)}, details)
    means = record.means()
    mean = sum(losses) / len(losses)
    assert means == pytest.approx({"loss/task": mean, "kl": 1.5 * mean, "steps": 53.0}, rel=1e-6)
    assert record.means() == {}


def test_a_mean_is_over_the_notes_that_have_it():
    record = LossRecord()
    for step, details in enumerate([{}, {"trace": 4.0}, {"trace": torch.tensor(6.0)}], start=1):
        record.note(step, {"task": torch.tensor(float(step))}, details)
    assert record.means() == {"loss/task": 2.0, "trace": 5.0}


def test_notes_that_are_not_logged_are_checked_all_the_same():
    record = LossRecord()
    noted(record, 1.0)
    noted(record, 5.0, logged=False)
    assert record.means() == {"loss/task": 1.0, "loss/l2": 0.0}
    noted(record, math.nan, logged=False, step=7)
    with pytest.raises(FlatlingoError, match="training step 7: the loss is not finite .task = nan"):
        record.read()


@pytest.mark.parametrize(
    ("task", "term", "message"),
    [
        (1.0, math.inf, "step 4.*l2 = inf"),
        (math.nan, math.nan, "step 4.*task = nan"),
        (3e38, 3e38, "step 4.*sum = 6e\\+38"),
    ],
    ids=["term", "both", "sum"],
)
def test_the_first_loss_that_is_not_finite_is_named(task, term, message):
    record = LossRecord()
    noted(record, 1.0, step=3)
    noted(record, task, term, step=4)
    noted(record, math.nan, step=5)
    with pytest.raises(FlatlingoError, match=message):
        record.read()


def test_losses_are_read_after_50_notes_at_the_latest():
    record = LossRecord()
    noted(record, math.nan)
    for step in range(2, READ_EVERY):
        noted(record, 1.0, step=step)
    with pytest.raises(FlatlingoError, match="step 1"):
        noted(record, 1.0, step=READ_EVERY)
