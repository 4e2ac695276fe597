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

from flatlingo.errors import FlatlingoError
from flatlingo.files import ROOT
from flatlingo.report.correlations import Correlation
from flatlingo.report.drawing import apart
from flatlingo.report.figures import figure1
from flatlingo.report.saving import save_figure
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


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_drawn(name):
    label = FAMILIES[name].label(0.1)
    table = runs(seeds=1)
    table = pd.concat([table[table["family"] != name], table.tail(1).assign(label=label, family=name)])
    fig = figure1(table)
    assert markers(fig.axes[0])[label].get_marker() == FAMILIES[name].drawn.marker
    assert FAMILIES[name].title in " ".join(texts(fig.axes[0]))


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
