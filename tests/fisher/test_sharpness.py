"""Sharpness at a radius: its value, its limit, and that the model is left as it was."""

import pytest
import torch
import torch.nn.functional as F
from fisher_oracle import padded_batch, perturbed
from tiny import make_model

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import sam_sharpness


@pytest.fixture
def model():
    return perturbed(make_model(dtype=torch.float64))


@pytest.fixture
def batches():
    """Unequal batches of unequal lengths."""
    return [
        padded_batch(lengths, seed=seed) | {"labels": torch.arange(len(lengths)) % 3}
        for seed, lengths in enumerate([(9, 4, 7), (5,), (6, 3)])
    ]


def loss(model, batches):
    """The mean over examples, one at a time."""
    terms = []
    for batch in batches:
        for i, label in enumerate(batch["labels"]):
            row = {name: values[i : i + 1] for name, values in batch.items() if name != "labels"}
            terms.append(F.cross_entropy(model(**row).logits, label[None]))
    return torch.stack(terms).mean()


def slowly(model, batches, rho):
    start = loss(model, batches)
    gradient = torch.autograd.grad(start, list(model.parameters()))
    norm = torch.cat([part.flatten() for part in gradient]).norm()
    moved = make_model(dtype=torch.float64)
    moved.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), gradient, strict=True):
            parameter += rho * part / norm
        return float(loss(moved, batches) - start), float(norm)


def test_under_autocast_the_step_is_taken_too():
    model = perturbed(
        torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).eval()
    ).float()
    inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    batches = [{"input": inputs, "labels": torch.arange(6) % 3}]
    expected = sam_sharpness(model, batches, rho=0.5)
    assert expected > 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert sam_sharpness(model, batches, rho=0.5) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("rho", [0.01, 0.05, 0.5])
def test_it_is_the_rise_of_the_loss_at_the_end_of_one_step_along_the_gradient(model, batches, rho):
    assert sam_sharpness(model, batches, rho) == pytest.approx(slowly(model, batches, rho)[0], rel=1e-10)


def test_for_a_small_radius_it_is_the_radius_times_the_norm_of_the_gradient(model, batches):
    norm = slowly(model, batches, 1.0)[1]
    errors = [abs(sam_sharpness(model, batches, rho) / rho - norm) for rho in (1e-3, 1e-4)]
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.05), "what is left out is of second order"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch | {"labels": batch["labels"] - 100}, "label of example 0 is not one of the model's 3"),
        (lambda batch: batch | {"labels": torch.rand(len(batch["labels"]), 3)}, "one class per example"),
        (lambda batch: {name: values for name, values in batch.items() if name != "labels"}, "needs gold labels"),
        (lambda batch: {name: values for name, values in batch.items() if name != "attention_mask"}, "attention_mask"),
    ],
    ids=["ignored label", "label weights", "no label", "no mask"],
)
def test_batches_without_a_loss_of_every_row_are_refused(model, batches, change, message):
    with pytest.raises(FlatlingoError, match=message):
        sam_sharpness(model, [change(batches[0])], 0.05)


def test_a_label_column_may_be_called_as_in_data_sets(model, batches):
    named = [{"label" if name == "labels" else name: values for name, values in b.items()} for b in batches]
    assert sam_sharpness(model, named, 0.05) == sam_sharpness(model, batches, 0.05)


def test_batches_do_not_matter(model, batches):
    singles = [
        {name: values[i : i + 1] for name, values in b.items()} for b in batches for i in range(len(b["labels"]))
    ]
    assert sam_sharpness(model, singles, 0.05) == pytest.approx(sam_sharpness(model, batches, 0.05), rel=1e-10)


def test_the_model_is_left_as_it_was_also_when_it_fails(model, batches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sam_sharpness(model, batches, 0.3)
    with pytest.raises(FlatlingoError, match="label of example 8"):
        sam_sharpness(model, [*batches, batches[0] | {"labels": torch.tensor([0, 1, 7])}], 0.3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "rho", "says"),
    [
        (lambda model, batches: (model, batches), 0.0, "radius must be above 0"),
        (lambda model, batches: (model, []), 0.1, "needs an example"),
        (lambda model, batches: (model.train(), batches), 0.1, "eval mode"),
        (lambda model, batches: (model.requires_grad_(False), batches), 0.1, "requires a gradient"),
        (lambda model, batches: (model.bfloat16(), batches), 0.1, "bfloat16 cannot hold so small a step"),
    ],
    ids=["radius", "no example", "train mode", "frozen", "low precision"],
)
def test_what_it_cannot_take_is_refused(model, batches, change, rho, says):
    with pytest.raises(FlatlingoError, match=says):
        sam_sharpness(*change(model, batches), rho)
