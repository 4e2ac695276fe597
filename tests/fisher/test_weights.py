"""Tr(F) relative to the size of the weights, and their distance from the start."""

import copy

import numpy as np
import pytest
import torch
from fisher_oracle import padded_batch
from tiny import make_model, make_rows, make_tokenizer

import flatlingo as fl
from flatlingo.errors import FlatlingoError
from flatlingo.fisher import distance, fisher_trace, scale_aware


def relu_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).double().eval()


def rescaled(network: torch.nn.Module, factor: float) -> torch.nn.Module:
    """The same function: the first layer's output by a factor, the second layer's weight by its inverse."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network[0].parameters():
            parameter.mul_(factor)
        network[2].weight.div_(factor)
    return network


def test_rescaled_layers_change_the_trace_and_not_its_scale_aware_form():
    network, batch = relu_network(), {"input": torch.randn(7, 4).double()}
    other = rescaled(network, 10)
    torch.testing.assert_close(other(batch["input"]), network(batch["input"]), rtol=1e-12, atol=1e-12)
    traces = [fisher_trace(one, [batch], by="parameter") for one in (network, other)]
    assert traces[1].value > 2 * traces[0].value
    aware = [scale_aware(trace, one) for trace, one in zip(traces, (network, other), strict=True)]
    np.testing.assert_allclose(aware[1].contributions, aware[0].contributions, rtol=1e-10)
    assert aware[0].standard_error > 0


def test_scale_aware_trace_by_hand():
    model, batch = make_model(dtype=torch.float64), padded_batch((5, 3, 4))
    batch["input_ids"] %= 30
    trace = fisher_trace(model, [batch], by="parameter")
    expected = sum(float(p.detach().square().sum()) * trace.groups[name] for name, p in model.named_parameters())
    assert scale_aware(trace, model).value == pytest.approx(expected, rel=1e-12)


def test_a_trace_by_module_group_is_refused():
    model, batch = relu_network(), {"input": torch.randn(3, 4).double()}
    with pytest.raises(FlatlingoError, match='by="parameter"'):
        scale_aware(fisher_trace(model, [batch]), model)


def test_distance_of_what_was_trained():
    model, tokenizer = make_model(), make_tokenizer()
    start = copy.deepcopy(model.state_dict())
    assert distance(model, start) == 0
    model.bert.embeddings.requires_grad_(False)
    settings = {"seed": 0, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "max_length": 32}
    fl.finetune(model, tokenizer, make_rows(16), **settings)
    moved = torch.cat([(value - start[name]).flatten() for name, value in model.state_dict().items()])
    assert distance(model, start) == pytest.approx(float(moved.double().norm()), rel=1e-6)


@pytest.mark.parametrize("labels", [None, 2], ids=["another model", "another head"])
def test_distance_from_another_model_is_refused(labels):
    start = {} if labels is None else make_model(labels=labels).state_dict()
    with pytest.raises(FlatlingoError, match="not among the start"):
        distance(make_model(), start)
