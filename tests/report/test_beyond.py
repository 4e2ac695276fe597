"""The figures of what the paper leaves open."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from flatlingo.errors import FlatlingoError
from flatlingo.report.beyond import Cloud, beyond_figure

RUNS = pd.DataFrame(
    {
        "family": ["none", "l2", "l2", "l2"],
        "weight": [0.0, 0.1, 1.0, 10.0],
        "label": ["none", "l2=0.1", "l2=1", "l2=10"],
        "trace": [300.0, 100.0, 10.0, 1.0],
        "kl": [0.4, 0.2, 0.02, 0.002],
    }
)
FOREST = pd.DataFrame({"label": ["a", "b"], "value": [1.0, np.nan], "low": [0.5, np.nan], "high": [2.0, np.nan]})


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def cloud(**changes):
    return Cloud(RUNS, "trace", "kl", "Tr(F)", "KL", "not measured", text="ρ = 1")._replace(**changes)


@pytest.mark.parametrize("log", [False, True])
def test_a_cloud_has_every_run_and_the_trend_of_a_family_of_three_conditions(log):
    ax = beyond_figure([cloud(log=log, scale=100)], {"points": FOREST}).axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in ax.lines if not line.get_label().startswith("_")}
    assert points["l2=1"] == [[10.0, 2.0]]
    trends = [line for line in ax.lines if line.get_label().startswith("_")]
    assert len(trends) == 2
    if log:  # 0.2 to 0.002 over two decades: a straight line
        np.testing.assert_allclose(trends[0].get_xydata(), [[1, 0.2], [100, 20]])
    assert [text.get_text() for text in ax.texts] == ["ρ = 1"]


def test_panels_come_two_in_a_row_with_letters_and_the_last_place_may_be_empty():
    fig = beyond_figure([cloud(), cloud(runs=RUNS.assign(kl=np.nan))], {"points": FOREST})
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["a", "b", "c", ""]
    assert [text.get_text() for text in fig.axes[1].texts] == ["not measured"]
    assert [text.get_text() for text in fig.axes[2].texts] == ["undefined"]
    assert not fig.axes[3].axison


def test_a_panel_alone_has_no_letter_and_no_empty_place_beside_it():
    fig = beyond_figure([], {"points": FOREST})
    assert [ax.get_title(loc="left") for ax in fig.axes] == [""]
    assert fig.get_figwidth() < beyond_figure([cloud()], {"points": FOREST}).get_figwidth()


def test_a_cloud_of_a_column_that_is_missing_is_refused():
    with pytest.raises(FlatlingoError, match="distance"):
        beyond_figure([cloud(y="distance")], {})


@pytest.mark.parametrize(("labels", "shown"), [(["a", "b"], False), (["a", "c"], True)], ids=["the same", "others"])
def test_lines_of_two_panels_are_named_once_if_they_say_the_same(labels, shown):
    fig = beyond_figure([], {"plan nli": FOREST, "plan paraphrase": FOREST.assign(label=labels)})
    fig.draw_without_rendering()
    assert [any(label.get_visible() for label in ax.get_yticklabels()) for ax in fig.axes] == [True, shown]
