"""Two real processes under accelerate (gloo): traces and penalties are those of one."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from fisher_oracle import padded_batch, perturbed
from tiny import make_model, make_rows, make_tokenizer
from transformers import TrainerCallback

from flatlingo.checkpoints import Checkpoints
from flatlingo.errors import FlatlingoError
from flatlingo.files import write_sums
from flatlingo.fisher import fisher_trace
from flatlingo.regularizers import R3F, SAM, FisherPenalty, SubwordConsistency, TracePenalty
from flatlingo.training import finetune

TOKENIZER = make_tokenizer()
TRAININGS = {
    "clean views": lambda: {"regularizers": [SubwordConsistency(TOKENIZER, 0.6, mode="clean")]},
    "batches by length": lambda: {"group_by_length": True},
    "noise on embeddings": lambda: {"regularizers": [R3F(1.0, epsilon=1e-12)]},  # hardly any
    "SAM, accumulated": lambda: {"sam": SAM(), "gradient_accumulation_steps": 2},
}
PENALTIES = {
    "exact": lambda: FisherPenalty(0.1),
    "finite differences": lambda: FisherPenalty(0.1, method="finite-difference", radius=1e-6),
    "trace": lambda: TracePenalty(0.1),
}
BATCHES = [padded_batch((9, 4, 7, 9, 3), seed=seed) for seed in range(3)]  # an odd number: one process has less to do
ROWS = padded_batch((9, 4, 7, 5)) | {"labels": torch.tensor([0, 2, 1, 1])}
HALVES = [{key: value[part] for key, value in ROWS.items()} for part in (slice(0, 2), slice(2, 4))]


def gradients(model, penalty, batch, accelerator=None):
    """Of the task loss and the penalty."""
    prepared = model if accelerator is None else accelerator.prepare_model(model)
    with penalty.forward_context():
        outputs = prepared(**batch)
    loss = outputs.loss + penalty(prepared, batch, outputs)[0]
    loss.backward() if accelerator is None else accelerator.backward(loss)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def started(name, seed):
    model = perturbed(make_model())
    penalty = PENALTIES[name]()
    penalty.start(model, seed=seed)
    return model, penalty


def trained(name):
    """The weights after two epochs of 24 rows, 4 at a time, in float64."""
    model = make_model(dtype=torch.float64)
    settings = {"seed": 1, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32}
    finetune(model, TOKENIZER, make_rows(24), **settings, **TRAININGS[name]())
    return model.state_dict()


class Seeds(TrainerCallback):
    """What PyTorch's generator was last seeded with, at each step."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, *_args, **_kwargs):
        self.seen.append(torch.initial_seed())


def one_of_two(folder):
    """What each process does."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    fisher_trace(perturbed(make_model()), BATCHES).contributions.to_csv(f"{folder}/{rank}.csv", index=False)
    with pytest.raises(FlatlingoError, match="before accelerator.prepare"):
        fisher_trace(perturbed(make_model()), accelerator.prepare_data_loader(torch.utils.data.DataLoader(range(4))))
    found = {}
    for name in PENALTIES:
        model, penalty = started(name, seed=rank)
        found[name] = gradients(model, penalty, HALVES[rank], accelerator)
    model, seeds = make_model(dropout=0.1), Seeds()
    settings = {"seed": 1, "epochs": 1, "batch_size": 2, "learning_rate": 1e-3, "max_length": 32}
    finetune(model, TOKENIZER, make_rows(8), regularizers=[PENALTIES["trace"]()], callbacks=[seeds], **settings)
    found["weights"], found["seeds"] = model.state_dict(), seeds.seen
    found["trained"] = {name: trained(name) for name in TRAININGS}
    own = Path(folder, f"disk-{rank}")
    if rank == 0:
        (own / "checkpoint-5").mkdir(parents=True)
        (own / "checkpoint-5" / "weights").touch()
        write_sums(own / "checkpoint-5")
    with pytest.raises(FlatlingoError, match="different checkpoints .*: checkpoint-5, None; give a folder that all"):
        Checkpoints(own).last()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    AcceleratorState._reset_state(reset_partial_state=True)  # the processes would inherit that of an earlier Trainer
    debug_launcher(one_of_two, (folder,), num_processes=2)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_give_the_trace_of_one(folder, rank):
    expected = fisher_trace(perturbed(make_model()), BATCHES).contributions
    pd.testing.assert_frame_equal(pd.read_csv(folder / f"{rank}.csv"), expected, rtol=1e-10)


def test_each_process_drops_units_of_its_own(found):
    assert [set(part["seeds"]) for part in found] == [{1}, {2}]


@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_of_two_processes_is_the_mean_of_theirs(found, name):
    """Each process draws labels of its own."""
    parts = [gradients(*started(name, seed=rank), HALVES[rank]) for rank in range(2)]
    for key, gradient in found[0][name].items():
        torch.testing.assert_close(gradient, found[1][name][key], rtol=0, atol=0)
        mean = (parts[0][key] + parts[1][key]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-6, atol=1e-9)


def test_the_trace_penalty_of_two_processes_is_that_of_all_their_rows(found):
    whole = gradients(*started("trace", seed=0), ROWS)
    for key, gradient in found[0]["trace"].items():
        torch.testing.assert_close(gradient, whole[key], rtol=1e-8, atol=1e-11)


def test_training_in_two_processes_gives_both_the_same_weights(found):
    start = make_model(dropout=0.1).state_dict()
    for name, value in found[0]["weights"].items():
        torch.testing.assert_close(value, found[1]["weights"][name], rtol=0, atol=0)
    assert any((value != start[name]).any() for name, value in found[0]["weights"].items())


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_the_weights_of_one(found, name):
    for key, value in trained(name).items():
        if not key.endswith("key.bias"):  # whose gradient is 0: Adam makes steps of rounding errors
            torch.testing.assert_close(found[0]["trained"][name][key], value, rtol=1e-8, atol=1e-10)
