"""Reports on stores as the large presets leave them: a second stage in every plan, one seed or three, real rows."""

import json

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from cells import execute
from made_up import made_up_store

from flatlingo import sweep
from flatlingo.files import ROOT
from flatlingo.report import comparisons, correlations, shapes
from flatlingo.report.beyond import Cloud, beyond_figure
from flatlingo.report.explore import EVERY, PLANS, Runs, explorer
from flatlingo.report.figures import figure1, figure2
from flatlingo.report.methods import methods_figure

SAVED = {
    "2_figure1": [f"figure1{part}{plan}" for part in ("", "-slopes", "-families") for plan in ("", "-paraphrase")],
    "3_figure2": [f"figure2{part}{plan}" for part in ("", "-slopes", "-families") for plan in ("", "-nli")],
    "5_beyond_the_paper": ["beyond"],
    "6_using_the_trace": ["using_early", "using_predictors", "using_choices"],
}


@pytest.fixture(scope="module", params=[1, 3], ids=["one seed", "three seeds"])
def seeds(request):
    return request.param


@pytest.fixture(scope="module")
def store(seeds, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        folder = tmp_path_factory.mktemp("paper") / "store"
        made_up_store(folder, "paper", seeds)
        yield str(folder)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("plan", ["nli", "paraphrase", "methods", "regularized_second_stage"])
def test_every_plan_gives_the_figures_that_its_table_has(plan, store, seeds):
    table = sweep(plan, preset="paper", store=store, seeds=seeds)
    assert table["noisy_fitted"].dtype == float
    runs = shapes.per_run(table)
    assert len(runs) == table["run_id"].nunique()
    dots = [line for line in figure1(table).axes[0].lines if line.get_label().strip("_") in set(runs["label"])]
    assert sum(len(line.get_xdata()) for line in dots if line.get_label().startswith("_")) == len(runs)
    assert len(figure2(table).axes) == 9
    if plan == "methods":
        assert len(methods_figure(table).axes) == 3


def test_panels_say_what_they_lack(store, seeds):
    runs = shapes.per_run(sweep("nli", preset="paper", store=store, seeds=seeds))
    undefined = comparisons.forest({("German", "gain"): correlations.rank_correlation(runs.head(1), "distance")})
    cloud = Cloud(runs, "trace", "noisy_fitted", "Tr(F)", "wrong labels", "no training label is known to be wrong")
    fig = beyond_figure([cloud], {"ρ": undefined, "difference": comparisons.forest({})})
    first, second, third, *_ = fig.axes
    assert texts(first) == ["no training label is known to be wrong"]
    assert texts(second) == ["undefined"]
    assert texts(third) == ["no runs that can be compared"]
    fig.canvas.draw()


RUN = [*((1, notebook) for notebook in SAVED), (3, "5_beyond_the_paper")]  # of several seeds nbval has the others


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize(("seeds", "notebook"), RUN, indirect=["seeds"])
def test_notebooks_run_on_real_rows(notebook, store, seeds, tmp_path, monkeypatch):
    monkeypatch.setattr("flatlingo.report.saving.FIGURES", tmp_path)
    execute(ROOT / "notebooks" / f"{notebook}.ipynb", {"preset": "paper", "store": store, "seeds": seeds, "studies": 1})
    records = [*tmp_path.glob("*.json")]
    for record in records:
        assert json.loads(record.read_text(encoding="utf-8"))["provenance"]["preset"] == "paper"
    assert sorted(record.stem for record in records) == sorted(SAVED[notebook])


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_a_preset_may_do_without_the_third_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("flatlingo.report.saving.FIGURES", tmp_path)
    made_up_store(tmp_path / "store", "xlmr", 1)
    parameters = {"preset": "xlmr", "store": str(tmp_path / "store"), "seeds": 1, "studies": 1}
    execute(ROOT / "notebooks" / "5_beyond_the_paper.ipynb", parameters)


def test_runs_can_be_explored(store, seeds):
    plans = {name: Runs(plan, preset="paper", store=store, seeds=seeds) for name, plan in PLANS.items()}
    explorer(plans)
    for runs in plans.values():
        rows = runs.rows(EVERY, "de")
        assert isinstance(rows, pd.DataFrame)
        assert set(rows["run_id"]) == set(runs.configs)
        assert "google-bert" in runs.describe(rows["run_id"].iloc[0])


def test_a_change_of_family_draws_once(store, seeds, monkeypatch):
    plans = {name: Runs(plan, preset="paper", store=store, seeds=seeds) for name, plan in PLANS.items()}
    drawn, figure = [], Runs.figure
    monkeypatch.setattr(Runs, "figure", lambda runs, *what: drawn.append(what) or figure(runs, *what))
    (choosers, run, *_) = explorer(plans).children
    assert len(drawn) == 1
    _, family, language = choosers.children
    family.value = "l2"
    assert [what[1:] for what in drawn[1:]] == [("l2", "en")]
    language.value = "de"
    assert [what[1:] for what in drawn[2:]] == [("l2", "de")]
    run.value = run.options[-1][1]
    assert drawn[3:] == [(run.value, "l2", "de")]
