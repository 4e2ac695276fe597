"""What setting Tr(F) does, on made-up studies whose answer is known."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up import intervention_table
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report import intervention
from flatlingo.report.shapes import per_run

SEEDS = 8


def table(per_doubling=-1.5, per_loss=-10.0, seeds=SEEDS):
    return intervention_table(per_doubling, per_loss, seeds)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def coefficient(runs, *columns):
    """Of -log₂ Tr(F), with an indicator for every seed."""
    runs = runs[runs["family"] == "trace_target"]
    design = [-np.log2(runs["trace"]), *(runs[name] for name in columns), pd.get_dummies(runs["seed"]).to_numpy(float)]
    return np.linalg.lstsq(np.column_stack(design), 100 * runs["english_accuracy"].to_numpy())[0][0]


@pytest.mark.parametrize(("held", "columns"), [("", ()), ("at equal loss", ("train_loss",))], ids=["as it is", "held"])
def test_slope_is_the_regression_and_its_interval_leaves_out_whole_seeds(held, columns):
    runs = table()
    found = intervention.per_halving(runs).set_index(["outcome", "held"]).loc["english_accuracy", held]
    assert found["value"] == pytest.approx(coefficient(runs, *columns))
    left = [coefficient(runs[runs["seed"] != seed], *columns) for seed in runs["seed"].unique()]
    half = stats.t.ppf(0.975, SEEDS - 1) * (SEEDS - 1) * np.std(left, ddof=1) / np.sqrt(SEEDS)
    assert [found["low"], found["high"]] == pytest.approx([found["value"] - half, found["value"] + half])


def test_an_effect_of_the_trace_is_told_from_one_of_the_fit():
    """Accuracy follows the training loss alone, which the target changes: at equal loss nothing is left."""
    found = intervention.per_halving(table(per_doubling=0.0, per_loss=-20.0)).set_index(["outcome", "held"])
    assert found.loc[("english_accuracy", ""), "verdict"] == "rises"
    assert found.loc[("english_accuracy", "at equal loss"), "verdict"] == "no effect"
    found = intervention.per_halving(table(per_doubling=-1.5, per_loss=0.0)).set_index(["outcome", "held"])
    row = found.loc[("zero_shot_accuracy", "at equal loss")]
    assert row["verdict"] == "rises"
    assert row["low"] < 1.5 < row["high"]


@pytest.mark.parametrize("costs", [0.0, 2.0])
def test_what_the_term_does_besides_is_told_from_what_its_trace_does(costs):
    runs = table(per_loss=0.0)
    runs.loc[runs["family"] == "trace_target", "english_accuracy"] -= costs / 100
    found = intervention.besides(runs).set_index(["outcome", "held"])
    row = found.loc["english_accuracy", ""]
    assert row["low"] < -costs < row["high"]
    assert row["verdict"] == ("lower" if costs else "no difference")
    assert found.loc[("zero_shot_accuracy", ""), "verdict"] == "no difference"
    slopes = intervention.per_halving(runs).set_index(["outcome", "held"]).loc["english_accuracy", ""]
    assert slopes["low"] < 1.5 < slopes["high"], "whatever the term costs"


def test_targets_that_a_verdict_rests_on_are_those_without_which_it_is_another():
    """Accuracy rises with the trace of the lowest target alone, which is told; where it rises evenly none is."""
    evenly = intervention.per_halving(table(per_loss=0.0)).set_index(["outcome", "held"])
    assert evenly.loc[("english_accuracy", ""), "rests_on"] == []
    runs = table(per_doubling=0.0, per_loss=0.0)
    lowest = sorted(set(runs["weight"]))[1]
    runs.loc[runs["weight"] == lowest, "english_accuracy"] += 0.05
    found = intervention.per_halving(runs).set_index(["outcome", "held"]).loc[("english_accuracy", "")]
    assert (found["verdict"], found["rests_on"]) == ("rises", [lowest])
    two = intervention.per_halving(runs[runs["weight"].isin([0.0, lowest, max(runs["weight"])])])
    assert not any(two["rests_on"]), "of two targets none can be left out"


def test_a_loss_that_does_not_vary_cannot_be_held():
    found = intervention.per_halving(table().assign(train_loss=0.1)).set_index(["outcome", "held"])
    assert found.loc[("english_accuracy", "at equal loss"), "verdict"] == "undetermined"
    assert found.loc[("english_accuracy", ""), "verdict"] == "rises"


def test_each_target_is_compared_with_none_of_its_seed():
    runs = table()
    found = intervention.effects(runs).set_index(["target", "outcome"])
    accuracies = runs.pivot(index="seed", columns="weight", values="english_accuracy")
    losses = runs.pivot(index="seed", columns="weight", values="train_loss")
    targets = sorted(set(runs["weight"]) - {0.0})
    for target in targets:
        gaps = 100 * (accuracies[target] - accuracies[0.0])
        row = found.loc[target, "english_accuracy"]
        assert row["value"] == pytest.approx(gaps.mean())
        assert [row["low"], row["high"]] == pytest.approx([*stats.ttest_1samp(gaps, 0).confidence_interval()])
        loss = losses[target] - losses[0.0]
        assert row["loss_gap"] == pytest.approx(loss.mean())
        assert [row["loss_low"], row["loss_high"]] == pytest.approx([*stats.ttest_1samp(loss, 0).confidence_interval()])
    assert found.loc[(targets[0], "english_accuracy"), "verdict"] == "higher"
    assert found.loc[(targets[-1], "english_accuracy"), "verdict"] == "lower"
    assert [*found.xs("english_accuracy", level="outcome")["trace"]] == pytest.approx(targets, rel=0.2)


@pytest.mark.parametrize("seeds", [1, 2, SEEDS])
def test_the_figure_is_drawn_with_as_many_seeds_as_there_are(seeds):
    fig = intervention.intervention_figure(table(seeds=seeds))
    fig.canvas.draw()
    assert fig.axes[-1].get_title("left") == "training loss"
    runs = per_run(table(seeds=seeds))
    none = runs[runs["family"] == "none"].set_index("seed")["train_loss"]
    changes = runs["train_loss"] - runs["seed"].map(none)
    small = [line for line in fig.axes[-1].lines if line.get_marker() == "."]
    drawn = np.concatenate([line.get_ydata() for line in small])
    assert sorted(drawn) == pytest.approx(sorted(changes[runs["family"] != "none"]))
    text, *targets = (text.get_text() for text in fig.axes[0].texts)
    assert ("too few seeds" in text) is (seeds < 3)
    assert targets == ["125", "250", "500", "700"]


def test_outcomes_of_a_second_stage_have_panels_too():
    once = table()
    adapted = once["zero_shot_accuracy"] + 0.1
    stages = [once.assign(language=code, adapted=adapted, gain=0.1, zero_shot=0.5) for code in ("de", "es")]
    fig = intervention.intervention_figure(pd.concat(stages))
    fig.canvas.draw()
    assert [ax.get_title("left") for ax in fig.axes if ax.axison] == [
        "English accuracy", "zero-shot accuracy", "gain", "accuracy after adaptation", "training loss",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[t["family"] == "none"], "no run has a target"),
        (lambda t: t[(t["family"] != "none") | (t["seed"] != 2)], "seed 2 has no run of condition none"),
        (lambda t: t.drop(columns="train_loss"), "no column train_loss"),
    ],
    ids=["another plan", "no baseline", "no loss"],
)
def test_what_cannot_be_compared_is_refused(change, message):
    with pytest.raises(FlatlingoError, match=message):
        intervention.effects(change(table()))
