"""What the methods change beside no regulariser, and its dot plot."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from flatlingo.errors import FlatlingoError
from flatlingo.report.differences import over_seeds
from flatlingo.report.methods import effects, methods_figure
from flatlingo.study.families import FAMILIES


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def runs(seeds=3):
    """A table as `sweep("methods")` makes it."""
    rng, families = np.random.default_rng(1), list(FAMILIES)
    rows = pd.DataFrame({"family": families * seeds, "weight": 1.0})
    rows["seed"] = np.repeat(np.arange(seeds) + 1, len(families))
    rows["label"] = rows["family"]
    rows["run_id"] = rows.index.astype(str)
    rows["trace"] = 100 * np.exp(rng.normal(size=len(rows)))
    for name in ("english_accuracy", "zero_shot_accuracy"):
        rows[name] = 0.6 + 0.02 * rng.normal(size=len(rows))
    return rows


def test_effects_are_compared_with_no_regulariser_of_the_same_seed():
    table = runs()
    found = effects(table)
    assert set(found.index) == set(FAMILIES) - {"none"}
    assert found["trace"].is_monotonic_decreasing
    sam, none = (table[table["family"] == name].set_index("seed") for name in ("sam", "none"))
    gained = over_seeds(100 * (sam["zero_shot_accuracy"] - none["zero_shot_accuracy"]))
    columns = ["zero_shot_accuracy", "zero_shot_accuracy_low", "zero_shot_accuracy_high"]
    assert found.loc["sam", columns].tolist() == pytest.approx([gained.value, gained.low, gained.high])
    assert found.loc["sam", "trace"] == pytest.approx((sam["trace"] / none["trace"]).prod() ** (1 / 3))
    assert found.loc["sam", ["name", "seeds"]].tolist() == ["SAM", 3]


def test_of_several_weights_each_has_its_own_row_and_name():
    table = runs()
    other = table[table["family"] == "r_drop"].assign(
        label="r_drop=0.2", weight=0.2, run_id=lambda t: t["run_id"] + "b"
    )
    found = effects(pd.concat([table, other]))
    assert set(found.loc[found["family"] == "r_drop", "name"]) == {"R-Drop, λ = 1", "R-Drop, λ = 0.2"}


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_figure_has_a_named_row_for_every_condition_in_every_panel(seeds):
    table = runs(seeds)
    found, fig = effects(table), methods_figure(table)
    fig.canvas.draw()
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == found["name"].tolist()
    for ax, column in zip(fig.axes, ["trace", "english_accuracy", "zero_shot_accuracy"], strict=True):
        means = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
        assert [means[name].get_xdata()[0] for name in found["name"]] == pytest.approx(found[column].tolist())
        places = [means[name].get_ydata()[0] for name in found["name"]]
        assert places == [*range(0, -len(found), -1)]


def test_a_mean_far_from_all_others_is_written_at_the_edge():
    table = runs()
    table.loc[table["family"] == "lnsr", "english_accuracy"] -= 0.5
    _, panel, _ = methods_figure(table).axes
    (text,) = (text.get_text() for text in panel.texts)
    assert text.startswith("◂ −")
    assert panel.get_xlim()[0] > -25


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (runs().replace({"family": {"sam": "magic"}}), "unknown family 'magic'"),
        (runs()[lambda t: (t["family"] != "none") | (t["seed"] == 1)], "condition none"),
        (runs().drop(columns="trace"), "trace"),
    ],
    ids=["family", "baseline", "column"],
)
def test_bad_tables_are_one_clear_message(table, message):
    with pytest.raises(FlatlingoError, match=message):
        methods_figure(table)
