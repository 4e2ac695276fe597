"""Sweeps: what is missing is computed, what is there is used."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny import write_preset

from flatlingo import experiment
from flatlingo.errors import FlatlingoError
from flatlingo.sweeps import sweep


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Preset smoke cut to three conditions of figure 1 and two of figure 2."""
    return write_preset(
        tmp_path_factory.mktemp("presets"),
        figure1={"none": [0], "consistency": [0.6], "fisher_penalty": [0.01]},
        figure2={"none": [0], "l2": [0.01]},
    )


@pytest.fixture(scope="module")
def swept(preset, tmp_path_factory):
    """A store with figure 1 swept in two processes, and the table."""
    store = tmp_path_factory.mktemp("store")
    return store, sweep("figure1", preset=preset, store=store, jobs=2, progress=False)


def contents(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_sweep_gives_one_row_a_run(swept):
    _, table = swept
    assert list(table["label"]) == ["none", "kl=0.6", "fpen=0.01"]
    assert table["run_id"].is_unique
    assert table["english_accuracy"].between(0, 1).all()
    assert (table["trace"] > table["trace_without_embeddings"]).all()
    assert (table["trace_without_embeddings"] > table["head_trace"]).all()
    assert (table["trace_se"] > 0).all()


def test_a_run_folder_is_complete(swept):
    store, table = swept
    for run_id in table["run_id"]:
        names = {path.name for path in (store / run_id).iterdir()}
        assert names == {"config.json", "result.json", "environment.json", "model", "SHA256SUMS"}
        assert (store / run_id / "model" / "model.safetensors").is_file()


def test_a_second_sweep_computes_nothing(preset, swept):
    store, table = swept
    before = contents(store)
    again = sweep("figure1", preset=preset, store=store, progress=False)
    pd.testing.assert_frame_equal(again, table)
    assert contents(store) == before


def test_only_missing_runs_are_computed_and_one_process_gives_what_two_gave(preset, swept, tmp_path):
    store, table = swept
    half = tmp_path / "half"
    half.mkdir()
    for run_id in table["run_id"][1:]:
        (store / run_id).rename(half / run_id)
    try:
        again = sweep("figure1", preset=preset, store=half, jobs=1, progress=False)
    finally:
        for run_id in table["run_id"][1:]:
            (half / run_id).rename(store / run_id)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    first = table["run_id"][0]
    for name in ("config.json", "result.json", "model/model.safetensors"):
        assert (half / first / name).read_bytes() == (store / first / name).read_bytes()


def test_figure_2_has_a_row_a_language_and_the_gain_is_the_difference(preset, tmp_path):
    table = sweep("figure2", preset=preset, store=tmp_path, keep_weights=False, progress=False)
    assert list(table["language"]) == ["de", "es", "zh"] * 2
    pd.testing.assert_series_equal(table["gain"], table["adapted"] - table["zero_shot"], check_names=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_failing_run_does_not_stop_the_others_and_leaves_a_log(preset, tmp_path):
    settings = yaml.safe_load(Path(preset).read_text())
    settings["figure1"]["study"]["training"]["learning_rate"] = 1e-4
    settings["figure1"]["conditions"] = {"none": [0], "l2": [1e38]}
    path = tmp_path / "failing.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    store = tmp_path / "store"
    with pytest.raises(FlatlingoError, match=r"1 of 2 runs failed[\s\S]*l2=1e\+38[\s\S]*loss") as failure:
        sweep("figure1", preset=str(path), store=store, progress=False)
    assert "figure1-none" not in str(failure.value)
    assert [p.name.split("-")[1] for p in store.glob("figure1-*")] == ["none"]
    assert not [p for p in store.iterdir() if p.name.startswith(".")], "nothing half-written is left behind"
    (log,) = (store / "logs").iterdir()
    assert str(log) in str(failure.value)
    assert "Traceback" in log.read_text()


def test_the_recorded_results_are_never_added_to():
    with pytest.raises(FlatlingoError, match="make record"):
        sweep("figure1", preset="mini", store="recorded", seeds=[99])


@pytest.mark.parametrize(("figure", "languages"), [("figure1", 1), ("figure2", 3)])
def test_the_recorded_results_are_complete(figure, languages):
    preset = experiment.load_preset("mini")
    table = sweep(figure, preset="mini", store="recorded", seeds=3)
    assert len(table) == 3 * languages * len(getattr(preset, figure).expand())
    assert not table.isna().any(axis=None)
