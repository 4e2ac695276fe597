"""Trained again from scratch, results agree with what is committed: the README's tour, whose trainings are two recorded
runs without their second stages, and every notebook that trains.

Tolerances are for other CPUs; on the CPU of the record the numbers are the same to the last bit.
"""

import json
import re
from numbers import Number

import matplotlib

matplotlib.use("agg")

import pytest
from cells import execute

import readme
from flatlingo.files import ROOT
from flatlingo.report import saving
from flatlingo.study.presets import expand, load_preset
from flatlingo.study.sources import Sources
from flatlingo.study.store import open_store
from flatlingo.study.sweep import recorded_runs

NUMBER = re.compile(r"\d+(?:\.\d+)?")
REFERENCE = ROOT / "tests" / "reference"
NOTEBOOKS = {"5_beyond_the_paper": "beyond", "2_figure1": "figure1", "3_figure2": "figure2"}  # the first trains all
SEEDS = {  # at least
    "nli": 10,
    "paraphrase": 10,
    "methods": 3,
    "technique": 3,
    "intervention": 10,
    "regularized_second_stage": 1,
}
ROW = 0.01  # one row more or less of the hundred and more that a smoke run is scored on


def differences(expected, found, at=""):
    """Where two results differ; what is only in the second does not count."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            yield from differences(value, found.get(key), f"{at}/{key}")
    elif isinstance(expected, list):
        assert len(expected) == len(found), at
        for i, pair in enumerate(zip(expected, found, strict=True)):
            yield from differences(*pair, f"{at}/{i}")
    elif isinstance(expected, Number) and isinstance(found, Number):
        if found != pytest.approx(expected, rel=0.01, abs=ROW):
            yield f"{at}: {expected} became {found}"
    elif expected != found:
        yield f"{at}: {expected!r} became {found!r}"


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The folder of the tour, taken now, and what its commands printed."""
    folder = tmp_path_factory.mktemp("tour")
    return folder, readme.tour(folder)


def test_the_tour_prints_what_the_readme_says(tour):
    """Words and layout exactly, numbers as closely as trainings on two kinds of processor agree."""
    said, printed = readme.parts((ROOT / "README.md").read_text(encoding="utf-8"), "tour")[1], tour[1]
    assert NUMBER.sub("#", said).split() == NUMBER.sub("#", printed).split()
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, printed)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.3)


@pytest.mark.parametrize(("name", "label"), [("sharp", "none"), ("flat", "kl=2.7")])
def test_a_recorded_run_trained_again_by_the_tour_agrees_with_the_record(tour, name, label):
    runs = open_store("recorded", "mini")
    (spec,) = (spec for spec in expand("paraphrase", load_preset("mini"), seeds=1) if spec.condition.label == label)
    recorded = runs.result(runs.find(spec))
    del recorded["seconds"], recorded["second_stage"]
    found = json.loads((tour[0] / name / "result.json").read_text(encoding="utf-8"))
    assert list(differences(recorded, found)) == []


def test_the_recorded_runs_are_those_of_the_shipped_encoder_and_rows():
    preset, runs = load_preset("mini"), open_store("recorded", "mini")
    recorded = {plan: recorded_runs(plan, preset, runs) for plan in preset.plans}
    assert all(len(recorded[plan]) >= seeds for plan, seeds in SEEDS.items())
    for plan, seeds in recorded.items():
        specs = Sources.of(preset, plan).specs(plan, preset, seeds=[*seeds]) if seeds else []
        assert [config for config in Sources.of(preset, plan).resolve(specs) if config not in runs] == []


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("smoke") / "store"


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_that_trains_at_preset_smoke_agrees_with_the_reference(notebook, store, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "FIGURES", tmp_path)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # one run at a time, in this process: tests keep the other core busy
    parameters = {"preset": "smoke", "store": str(store), "seeds": 1}
    if notebook == "5_beyond_the_paper":
        parameters["studies"] = 5
    execute(ROOT / "notebooks" / f"{notebook}.ipynb", parameters)
    expected, found = (
        json.loads((folder / f"{NOTEBOOKS[notebook]}.json").read_text(encoding="utf-8"))["data"]
        for folder in (REFERENCE, tmp_path)
    )
    if notebook == "5_beyond_the_paper":  # correlations of runs that have learnt nothing hang on single rows
        expected, found = expected["runs"], found["runs"]
    assert list(differences(expected, found)) == []


SMALL = {"1_theory": {"pairs": 10, "rows": 64}, "4_fisher_estimators": {"draws": 4}}  # as `make figures PRESET=smoke`


@pytest.mark.parametrize("notebook", SMALL)
def test_what_notebooks_check_holds_at_the_sizes_of_preset_smoke_too(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "FIGURES", tmp_path)
    execute(ROOT / "notebooks" / f"{notebook}.ipynb", {"preset": "smoke"} | SMALL[notebook])


@pytest.mark.parametrize("changed", [{"trace": 31.0}, {"label": "kl=2"}, {"trace": None}], ids=str)
def test_a_changed_result_would_be_seen(changed):
    row = {"trace": 30.0, "label": "none"}
    assert list(differences([row], [row | changed]))
    assert not list(differences([row], [row | {"trace": 30.01, "new": 1}]))
