import json
import os
import subprocess
import sys

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from flatlingo.errors import FlatlingoError
from flatlingo.files import ROOT
from flatlingo.report.drawing import apart
from flatlingo.report.figures import figure1, figure2
from flatlingo.report.saving import save_figure
from flatlingo.report.statistics import Correlation, correlation
from flatlingo.study.families import FAMILIES

CONDITIONS = {
    "none": ["none"],
    "consistency": ["kl=0", "kl=0.2", "kl=1", "kl=5"],
    "fisher_penalty": ["fpen=0.001", "fpen=0.01", "fpen=0.1"],
    "l2": ["l2=0.001", "l2=0.01"],
    "l2_sp": ["l2sp=0.01"],
    "dropout": ["dropout=0.2"],
}


def runs(seeds=3):
    """A table as a sweep makes it: accuracy falls with log Tr(F), Tr(F) falls with the weight."""
    rng = np.random.default_rng(0)
    rows = []
    for family, labels in CONDITIONS.items():
        for place, label in enumerate(labels):
            for seed in range(1, seeds + 1):
                trace = 300 * np.exp(-0.5 * place + 0.1 * rng.normal())
                accuracy = 0.8 - 0.05 * np.log10(trace) + 0.005 * rng.normal()
                rows.append(
                    {
                        "run_id": f"nli-{label}-s{seed}",
                        "family": family,
                        "weight": float(label.partition("=")[2] or 0),
                        "label": label,
                        "seed": seed,
                        "english_accuracy": accuracy,
                        "train_accuracy": accuracy + 0.2,
                        "trace": trace,
                        "trace_se": trace / 30,
                        "noisy_fitted": np.nan,
                    }
                )
    return pd.DataFrame(rows)


def runs_by_language():
    table = runs()
    parts = [
        table.assign(language=language, zero_shot=table.english_accuracy - low, gain=0.03 - 1e-4 * table.trace)
        for language, low in {"de": 0.05, "es": 0.1, "zh": 0.2}.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(adapted=lambda t: t.zero_shot + t.gain)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def markers(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend_texts(fig):
    return [text.get_text() for text in fig.legends[0].get_texts() if text.get_text()]


def test_figure1_draws_every_run_where_the_table_says():
    table = runs()
    drawn = markers(figure1(table).axes[0])
    assert list(drawn) == [label for labels in CONDITIONS.values() for label in labels]
    for label, part in table.groupby("label"):
        np.testing.assert_allclose(drawn[label].get_xdata(), part.trace)
        np.testing.assert_allclose(drawn[label].get_ydata(), 100 * part.english_accuracy)


@pytest.mark.parametrize(
    ("label", "marker", "filled"),
    [
        ("none", "*", True),
        ("kl=1", "x", True),
        ("fpen=0.01", "o", True),
        ("l2=0.01", "s", True),
        ("l2sp=0.01", "s", False),
        ("dropout=0.2", "^", True),
    ],
)
def test_marker_says_the_family(label, marker, filled):
    line = markers(figure1(runs()).axes[0])[label]
    assert line.get_marker() == marker
    assert (line.get_markerfacecolor() != "none") == filled
    assert line.get_linestyle() == "None"


def test_colours_darken_with_the_weight_and_differ_between_families():
    drawn = markers(figure1(runs()).axes[0])
    luminance = [sum(to_rgb(drawn[label].get_markeredgecolor())) for label in CONDITIONS["consistency"]]
    assert luminance == sorted(luminance, reverse=True)
    assert len(set(luminance)) == 4
    colours = [row.look.colour for row in FAMILIES.values() if row.look]
    assert len(set(colours)) == len(colours) - 1  # the two L2 penalties share theirs and differ in filling


def test_figure1_axes_legend_and_correlation():
    table = runs()
    fig = figure1(table, seed=2)
    left, right = fig.axes
    assert (left.get_xscale(), right.get_xscale(), right.get_yscale()) == ("log", "log", "log")
    assert (left.get_xlabel(), left.get_ylabel()) == ("Tr(F) (nats²)", "English validation accuracy (%)")
    assert not left.get_title()
    assert not right.get_title()
    assert texts(left) == [str(correlation(table, "trace", "english_accuracy", seed=2))]
    assert {*CONDITIONS["consistency"], *CONDITIONS["fisher_penalty"]} <= set(legend_texts(fig))
    assert {"consistency", "no regulariser", "L2 to zero", "L2 to the start", "dropout"} <= set(legend_texts(fig))
    assert not [text for text in legend_texts(fig) if text.startswith("l2")]


def test_figure1_weight_panel_shows_means_and_the_baseline():
    table = runs()
    ax = figure1(table).axes[1]
    line = markers(ax)["Fisher penalty"]
    means = table[table.family == "fisher_penalty"].groupby("weight").trace.mean()
    np.testing.assert_allclose(line.get_xdata(), means.index)
    np.testing.assert_allclose(line.get_ydata(), means)
    assert sorted(texts(ax)) == ["Fisher penalty", "consistency", "kl=0", "none"]
    heights = [line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]]
    assert sorted(heights) == pytest.approx(sorted(table[table.weight == 0].groupby("label").trace.mean()))
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    baseline = table[table.family == "none"].trace
    assert (band.y0, band.y1) == pytest.approx((baseline.min(), baseline.max()))


def test_figure2_has_gain_above_accuracy_for_each_language():
    table = runs_by_language()
    fig = figure2(table)
    axes = np.array(fig.axes).reshape(2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["German", "Spanish", "Chinese"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["gain in accuracy (points)", "accuracy after adaptation (%)"]
    for column, language in zip(axes.T, ("de", "es", "zh"), strict=True):
        part = table[table.language == language]
        for ax, y in zip(column, ("gain", "adapted"), strict=True):
            assert ax.get_xscale() == "log"
            assert correlation(part, "trace", y).interval in texts(ax)[0]
            one = part[part.label == "kl=1"]
            np.testing.assert_allclose(markers(ax)["kl=1"].get_xdata(), one.trace)
            np.testing.assert_allclose(markers(ax)["kl=1"].get_ydata(), 100 * one[y])


@pytest.mark.parametrize(
    "table",
    [
        runs(seeds=1),
        runs()[lambda t: t.family == "none"],
        runs()[lambda t: t.family != "none"],
        runs().assign(english_accuracy=0.5),
    ],
    ids=["one seed", "baseline only", "no baseline", "constant accuracy"],
)
def test_figure1_draws_small_and_degenerate_tables(table):
    figure1(table).canvas.draw()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (runs().drop(columns="trace"), r"lacks columns \['trace'\]"),
        (runs().head(0), "0 rows"),
        (runs().replace({"family": {"dropout": "dropuot"}}), "unknown family 'dropuot'; did you mean 'dropout'"),
    ],
    ids=["column", "empty", "family"],
)
@pytest.mark.parametrize("draw", [figure1, figure2])
def test_bad_tables_are_one_clear_message(draw, table, message):
    if draw is figure2:
        table = table.assign(language="de", gain=0.0, adapted=0.5)
    with pytest.raises(FlatlingoError, match=message):
        draw(table)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_drawn(name):
    label = FAMILIES[name].label(0.1)
    table = runs(seeds=1)
    table = pd.concat([table[table["family"] != name], table.tail(1).assign(label=label, family=name)])
    fig = figure1(table)
    assert markers(fig.axes[0])[label].get_marker() == FAMILIES[name].drawn.marker
    assert FAMILIES[name].title in legend_texts(fig)


def test_a_run_with_several_languages_is_drawn_once():
    once, drawn = (figure1(table).axes[0] for table in (runs(), runs_by_language()))
    assert [list(line.get_xdata()) for line in once.lines] == [list(line.get_xdata()) for line in drawn.lines]
    assert texts(once) == texts(drawn)


@pytest.mark.parametrize("gap", [1, 8])
@pytest.mark.parametrize(
    "places", [[0.0, 0.5, 1.0, 40.0, 41.0], [0, 8, 8, 8], [0, 7, 8, 9], [5, 5], [3], []], ids=lambda p: f"{p}"
)
def test_labels_of_close_lines_stand_apart_and_move_little(places, gap):
    places = np.array(places, dtype=float)
    moved = apart(places, gap)
    assert (np.diff(moved) >= gap - 1e-9).all()
    assert moved.sum() == pytest.approx(places.sum())
    assert (abs(moved - places) <= gap * max(len(places) - 1, 0)).all()
    assert (apart(moved, gap) == pytest.approx(moved)) or not len(places)


def test_saved_files_are_the_same_bytes_again(tmp_path):
    """Also in another process, at another time and with other settings."""
    table = runs()
    for folder in ("one", "two"):
        with plt.rc_context({"svg.hashsalt": folder, "figure.dpi": 60, "savefig.dpi": 50}):
            paths = save_figure(figure1(table), "figure1", caption="-", table=table, folder=tmp_path / folder)
    program = (
        "import sys; sys.path.insert(0, 'tests'); from report.test_figures import *; from pathlib import Path;"
        "save_figure(figure1(runs()), 'figure1', caption='-', table=runs(), folder=Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "three")],
        check=True,
        cwd=ROOT,
        env=os.environ | {"SOURCE_DATE_EPOCH": "86400", "PYTHONHASHSEED": "1"},
    )
    assert sorted(path.suffix for path in paths) == [".json", ".pdf", ".png", ".svg"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes(), path.suffix
        assert path.read_bytes() == (tmp_path / "three" / path.name).read_bytes(), path.suffix
    assert sorted(tmp_path.rglob(".*")) == []  # no temporary file stays


def test_json_holds_caption_data_headline_and_provenance(tmp_path):
    table = runs()
    found = Correlation(-0.5, -0.81234567, np.nan, 0.01, 30, 10)
    save_figure(
        figure1(table),
        "figure1",
        caption="Two\n    lines.",
        table=table,
        folder=tmp_path,
        headline={"spearman": found, "conditions": np.int64(12)},
        sources={"preset": "mini", "store": "recorded"},
    )
    text = (tmp_path / "figure1.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["caption"] == "Two lines."
    assert len(record["data"]) == len(table)
    assert record["data"][4]["trace"] == pytest.approx(table.trace[4], rel=1e-5)
    assert record["data"][4]["noisy_fitted"] is None
    assert record["headline"]["conditions"] == 12
    assert record["headline"]["spearman"]["low"] == -0.812346
    assert record["headline"]["spearman"]["high"] is None
    assert record["provenance"]["store"] == "recorded"
    assert record["provenance"]["versions"]["matplotlib"] == matplotlib.__version__
    assert str(tmp_path) not in text


def test_an_absolute_path_is_no_source(tmp_path):
    table = runs()
    with pytest.raises(FlatlingoError, match="absolute path"):
        save_figure(figure1(table), "f", caption="", table=table, folder=tmp_path, sources={"store": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_the_style_does_not_leak():
    before = dict(plt.rcParams)
    figure1(runs())
    assert dict(plt.rcParams) == before
