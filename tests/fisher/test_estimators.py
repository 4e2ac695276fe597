"""Estimates of Tr(F): what they converge to, how they spread, and what the look-alikes measure instead."""

import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fisher_oracle import padded_batch, per_example_trace, perturbed
from transformers import BertConfig, BertForSequenceClassification

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import fisher_trace
from flatlingo.fisher.dense import dense_fisher
from flatlingo.fisher.estimators import argmax_penalty, argmax_trace, hutchinson, penalty_estimate
from flatlingo.fisher.theory import functional
from flatlingo.report.theory_figures import estimators_figure

LENGTHS = (6, 3, 5, 6)


def tiny_bert(labels=3):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=labels, **sizes)
    return perturbed(BertForSequenceClassification(config)), padded_batch(LENGTHS, vocabulary=20)


@pytest.fixture(scope="module")
def model_and_batch():
    return tiny_bert()


@pytest.mark.parametrize("estimator", [penalty_estimate, hutchinson])
def test_estimates_converge_to_the_exact_trace(model_and_batch, estimator):
    model, batch = model_and_batch
    exact = fisher_trace(model, [batch]).value
    found = estimator(model, batch, draws=1000, seed=1)
    assert found.draws == 1000
    assert found.standard_error < 0.06 * exact
    assert found.value == pytest.approx(exact, abs=4 * found.standard_error)


@pytest.mark.parametrize("ask", [partial(penalty_estimate, draws=2, seed=0), argmax_penalty])
def test_gradients_are_taken_under_no_grad_too(model_and_batch, ask):
    model, batch = model_and_batch
    expected = ask(model, batch)
    with torch.no_grad():
        assert ask(model, batch) == expected


def test_variance_of_hutchinson(model_and_batch):
    model, batch = model_and_batch
    F = dense_fisher(*functional(model, batch))
    variance = 2 * (F.square().sum() - F.diag().square().sum()).item()
    found = hutchinson(model, batch, draws=700, seed=0)
    assert found.standard_error**2 * 700 == pytest.approx(variance, rel=0.3)


def test_the_spread_of_the_penalty_estimate_does_not_fall_with_the_number_of_examples(model_and_batch):
    """Sixteen times the rows: sampled labels are four times as exact, the penalty hardly."""
    model, batch = model_and_batch
    many = {key: value.repeat(16, 1) for key, value in batch.items()}  # has the same F
    spread = {rows: penalty_estimate(model, b, draws=150, seed=0) for rows, b in ((4, batch), (64, many))}
    assert spread[64].standard_error > 0.6 * spread[4].standard_error
    F = dense_fisher(*functional(model, batch))
    limit = math.sqrt(2) * F.norm().item()
    assert spread[64].standard_error * 150**0.5 == pytest.approx(limit, rel=0.3)
    sampled = [
        np.std([fisher_trace(model, [b], labels="sampled", seed=s).value for s in range(60)]) for b in (batch, many)
    ]
    assert sampled[1] < 0.5 * sampled[0]


def test_estimates_are_seeded_and_leave_the_global_generator_alone(model_and_batch):
    state = torch.get_rng_state()
    for estimator in (penalty_estimate, hutchinson):
        first, again, other = (estimator(*model_and_batch, draws=2, seed=seed) for seed in (1, 1, 2))
        assert first == again != other
        assert math.isnan(estimator(*model_and_batch, draws=1, seed=0).standard_error)
    assert torch.equal(torch.get_rng_state(), state)


def test_argmax_labels_against_the_loop(model_and_batch):
    model, batch = model_and_batch
    trace = argmax_trace(model, [batch])
    total = 0
    for i, value in enumerate(trace.per_example):
        log_p = model(**{key: v[i : i + 1] for key, v in batch.items()}).logits[0].log_softmax(0)
        gradients = torch.autograd.grad(log_p.max(), list(model.parameters()))
        assert value == pytest.approx(sum(g.square().sum().item() for g in gradients), rel=1e-10)
        total = [t + g for t, g in zip(total, gradients, strict=True)] if i else gradients
    assert argmax_penalty(model, batch) == pytest.approx(sum(g.square().sum().item() for g in total) / 4, rel=1e-10)


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_argmax_is_at_most_a_known_part_of_the_trace(labels):
    model, batch = tiny_bert(labels)
    p = model(**batch).logits.softmax(1).max(1).values.detach().numpy()
    bound = (1 - p) / p * per_example_trace(model, batch).sum(axis=1)
    found = argmax_trace(model, [batch]).per_example
    assert (found <= bound * (1 + 1e-9)).all()
    if labels == 2:
        np.testing.assert_allclose(found, bound, rtol=1e-9)


@pytest.mark.parametrize("estimator", [penalty_estimate, hutchinson])
def test_bad_input(model_and_batch, estimator):
    model, batch = model_and_batch
    with pytest.raises(FlatlingoError, match="draws=0"):
        estimator(model, batch, draws=0, seed=0)
    with pytest.raises(FlatlingoError, match="not a dict of tensors"):
        estimator(model, [1], draws=1, seed=0)
    model.train()
    with pytest.raises(FlatlingoError, match="call model.eval"):
        estimator(model, batch, draws=1, seed=0)
    model.eval()


def test_the_figure_draws_every_estimator_where_it_belongs():
    cost = pd.DataFrame(
        {"estimator": ["exact labels", *["Hutchinson"] * 2], "passes": [3.0, 3.0, 12.0], "error": [0.1, 0.5, 0.3]}
    ).assign(low=0.05, high=0.6)
    spread = pd.DataFrame({"estimator": ["Hutchinson"] * 2, "examples": [2, 8], "spread": [0.9, 0.8]})
    ratios = pd.DataFrame({"estimator": ["gold labels"] * 2, "examples": [2, 8], "ratio": [1.1, 0.9]})
    fig = estimators_figure(cost, spread, ratios.assign(standard_error=float("nan")))
    drawn = [[tuple(line.get_ydata()) for line in ax.lines if len(line.get_xdata())] for ax in fig.axes]
    assert {(0.1,), (0.5, 0.3)} <= set(drawn[0])
    assert (0.5, 0.25) in drawn[0], "what four times the cost would leave of the first error"
    assert (0.9, 0.8) in drawn[1]
    assert (1.1, 0.9) in drawn[2]
    assert [text.get_text() for text in fig.legends[0].texts] == ["exact labels", "Hutchinson", "gold labels"]
    plt.close(fig)
