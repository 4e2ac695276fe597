"""Sweeps: what is missing is computed, what is there is used."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny import write_preset

from flatlingo.errors import FlatlingoError
from flatlingo.study.presets import load_preset
from flatlingo.study.sources import Sources
from flatlingo.study.sweep import sweep


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Preset smoke cut to three conditions of plan nli and two of plan paraphrase."""
    return write_preset(
        tmp_path_factory.mktemp("presets"),
        nli={"none": [0], "consistency": [0.6], "fisher_penalty": [0.01]},
        paraphrase={"none": [0], "l2": [0.01]},
    )


@pytest.fixture(scope="module")
def swept(preset, tmp_path_factory):
    """A store with plan nli swept in two processes, and the table."""
    store = tmp_path_factory.mktemp("store")
    return store, sweep("nli", preset=preset, store=store, jobs=2, progress=False)


def contents(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_a_sweep_gives_one_row_per_run(swept):
    _, table = swept
    assert list(table["label"]) == ["none", "kl=0.6", "fpen=0.01"]
    assert table["run_id"].is_unique
    assert table["english_accuracy"].between(0, 1).all()
    groups = [json.loads((swept[0] / run / "result.json").read_text())["trace"]["groups"] for run in table["run_id"]]
    without = [sum(value for name, value in found.items() if "embeddings" not in name) for found in groups]
    assert list(table["trace_without_embeddings"]) == pytest.approx(without)
    assert (table["trace_without_embeddings"] > table["head_trace"]).all()
    assert (table["trace_se"] > 0).all()


def test_a_run_folder_is_complete(swept):
    store, table = swept
    for run_id in table["run_id"]:
        names = {path.name for path in (store / run_id).iterdir()}
        assert names == {"config.json", "result.json", "rows.npz", "environment.json", "model", "SHA256SUMS"}
        assert (store / run_id / "model" / "model.safetensors").is_file()


def test_rows_that_changed_are_other_rows_in_the_same_process(tmp_path):
    languages = ("en", "de", "es", "zh")
    description = {"name": "mine", "labels": ["a", "b"], "texts": "text", "languages": languages, "folder": tmp_path}
    description |= {"train": "train-{language}", "validation": "dev-{language}"}
    (tmp_path / "mine.yaml").write_text(json.dumps(description, default=str))
    found = []
    for word in ("cat", "dog"):
        for name in ("train-en", *(f"dev-{language}" for language in languages)):
            lines = [f"{name} {word} {number}\t{'ab'[number % 2]}" for number in range(8)]
            (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]))
        sources = Sources.of(load_preset("smoke"), "methods", task=tmp_path / "mine.yaml")
        found.append(sources.resolve(sources.specs("methods", load_preset("smoke")))[0])
    assert found[0].rows.sha256 != found[1].rows.sha256
    assert found[0].spec == found[1].spec


def test_a_second_sweep_computes_nothing(preset, swept):
    store, table = swept
    before = contents(store)
    again = sweep("nli", preset=preset, store=store, progress=False)
    pd.testing.assert_frame_equal(again, table)
    assert contents(store) == before


def test_only_missing_runs_are_computed_and_one_process_gives_what_two_gave(preset, swept, tmp_path):
    store, table = swept
    half = tmp_path / "half"
    half.mkdir()
    for run_id in table["run_id"][1:]:
        (store / run_id).rename(half / run_id)
    try:
        again = sweep("nli", preset=preset, store=half, jobs=1, progress=False)
    finally:
        for run_id in table["run_id"][1:]:
            (half / run_id).rename(store / run_id)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    first = table["run_id"][0]
    for name in ("config.json", "result.json", "rows.npz", "model/model.safetensors"):
        assert (half / first / name).read_bytes() == (store / first / name).read_bytes()


def test_a_second_stage_has_one_row_per_language_and_gains_are_differences(preset, tmp_path):
    table = sweep("paraphrase", preset=preset, store=tmp_path, keep_weights=False, progress=False)
    assert list(table["language"]) == ["de", "es", "zh"] * 2
    pd.testing.assert_series_equal(table["gain"], table["adapted"] - table["zero_shot"], check_names=False)
    pd.testing.assert_series_equal(table["control_gain"], table["control"] - table["zero_shot"], check_names=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_failing_run_does_not_stop_the_others_and_leaves_a_log(preset, tmp_path):
    settings = yaml.safe_load(Path(preset).read_text())
    settings["plans"]["nli"]["setup"]["training"]["learning_rate"] = 1e-4
    settings["plans"]["nli"]["conditions"] = {"none": [0], "early_stopping": [0]}
    path = tmp_path / "failing.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    store = tmp_path / "store"
    with pytest.raises(FlatlingoError, match=r"1 of 2 runs failed[\s\S]*early_stopping=0[\s\S]*patience") as failure:
        sweep("nli", preset=str(path), store=store, progress=False)
    assert "nli-none" not in str(failure.value)
    assert [p.name.split("-")[1] for p in store.glob("nli-*")] == ["none"]
    assert not [p for p in store.iterdir() if p.name.startswith(".")], "nothing half-written is left behind"
    (log,) = (store / "logs").iterdir()
    assert str(log) in str(failure.value)
    assert "Traceback" in log.read_text()


def diverging(preset, tmp_path, conditions):
    settings = yaml.safe_load(Path(preset).read_text())
    settings["plans"]["nli"]["conditions"] = conditions
    path = tmp_path / "diverging.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def test_a_diverged_run_is_a_result_that_is_left_out_of_the_table(preset, tmp_path, caplog):
    store, preset = tmp_path / "store", diverging(preset, tmp_path, {"none": [0], "l2": [1e38]})
    for _ in range(2):
        caplog.clear()
        assert list(sweep("nli", preset=preset, store=store, jobs=1, progress=False)["label"]) == ["none"]
        assert "nli-l2=1e+38-s1" in caplog.text
        assert "the loss is not finite" in caplog.text
        finished = contents(store)
    assert len(list(store.glob("nli-*"))) == 2
    assert contents(store) == finished, "it is not tried again"
    assert not list(store.glob("logs/*"))


def test_a_table_of_nothing_but_diverged_runs_is_an_error(preset, tmp_path):
    preset = diverging(preset, tmp_path, {"l2": [1e38]})
    with pytest.raises(FlatlingoError, match="all 1 runs of nli diverged .*not finite"):
        sweep("nli", preset=preset, store=tmp_path / "store", jobs=1, progress=False)


def test_the_recorded_results_are_never_added_to():
    with pytest.raises(FlatlingoError, match="make record"):
        sweep("nli", preset="mini", store="recorded", seeds=[99])


@pytest.mark.parametrize("plan", ["nli", "paraphrase"])
def test_the_recorded_results_are_complete(plan):
    preset = load_preset("mini")
    table = sweep(plan, preset="mini", store="recorded", seeds=3)
    assert len(table) == 3 * 3 * len(preset.plan(plan).expand())  # seeds, languages
    assert not table[["trace", "english_accuracy", "noisy_fitted"]].isna().any(axis=None)


@pytest.fixture
def at_hand(monkeypatch):
    """Take the encoder and the rows away."""

    def take_away():
        def absent(*_):
            raise FlatlingoError("not here")

        monkeypatch.setattr(Sources, "resolve", absent)
        monkeypatch.setattr(Sources, "load_task", absent)

    return take_away


def test_finished_runs_are_read_without_the_encoder_and_the_rows(preset, swept, at_hand, caplog):
    store, table = swept
    at_hand()
    pd.testing.assert_frame_equal(sweep("nli", preset=preset, store=store, progress=False), table)
    assert "without checking encoder and rows: not here" in caplog.text


def test_a_run_that_is_missing_needs_them(preset, swept, at_hand):
    at_hand()
    with pytest.raises(FlatlingoError, match="not here"):
        sweep("nli", preset=preset, store=swept[0], seeds=2, progress=False)


@pytest.mark.parametrize(
    "where", [{"model": "mini-mbert"}, {"task": "xnli"}, {"data": "rows"}], ids=lambda w: next(iter(w))
)
def test_recorded_results_are_those_of_their_own_encoder_and_rows(where):
    with pytest.raises(FlatlingoError, match=f"not of another {next(iter(where))}"):
        sweep("nli", preset="mini", store="recorded", **where)


READING = """
import sys
import flatlingo as fl
assert len(fl.sweep("nli", preset="mini", store="recorded", seeds=1))
print([name for name in ("torch", "transformers", "datasets", "flatlingo.tasks") if name in sys.modules])
"""


def test_reading_recorded_results_loads_no_library_that_trains():
    done = subprocess.run([sys.executable, "-c", READING], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


STATUS = """
import sys
from flatlingo.cli import main
try:
    main()
except SystemExit as ended:
    print(ended.code, [name for name in ("torch", "transformers") if name in sys.modules])
"""


def test_asking_for_the_status_of_a_sweep_loads_no_library_that_trains(tmp_path):
    done = subprocess.run([sys.executable, "-c", STATUS, "status", tmp_path], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []"
