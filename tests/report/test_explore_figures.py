"""The figures to explore with."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from flatlingo.report.explore_figures import live_figure, run_figure

RUNS = pd.DataFrame(
    {
        "run_id": ["a", "b", "c"],
        "family": ["none", "consistency", "fisher_penalty"],
        "weight": [0.0, 0.6, 0.01],
        "label": ["none", "kl=0.6", "fpen=0.01"],
        "seed": 1,
        "trace": [300.0, 100.0, 30.0],
        "accuracy": [0.7, 0.72, 0.71],
    }
)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def draw(history):
    return run_figure(RUNS, "b", "accuracy", words="German accuracy", history=history, groups={"head": 1.0})


def test_a_run_is_named_among_the_others_whose_conditions_have_a_legend():
    fig = draw([])
    assert texts(fig.axes[0]) == ["◯ kl=0.6, seed 1"]
    assert fig.axes[0].get_ylabel() == "German accuracy (%)"
    assert {"kl=0.6", "fpen=0.01", "no regulariser"} <= {text.get_text() for text in fig.legends[0].get_texts()}


def test_a_run_whose_log_has_more_than_losses_can_be_looked_at():
    history = [{"step": 0, "trace/value": 9.0}, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "trace/value": 8.0}]
    assert draw(history).axes[1].lines[0].get_xydata().tolist() == [[1, 1.0], [2, 0.5]]
    assert texts(draw(history[:1]).axes[1]) == ["no training curve recorded"]


def test_curves_of_trainings_have_a_legend():
    curve = pd.DataFrame({"epoch": [0, 1], "accuracy": [0.5, 0.8], "trace": [20.0, 50.0]})
    fig = live_figure({"plain": curve, "before: flat": curve})
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["plain", "before: flat"]
