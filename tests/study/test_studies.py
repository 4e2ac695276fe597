"""Which plans a notebook shows, and which seeds of recorded results that are complete in part."""

import numpy as np
import pytest
from made_up import made_up_result
from tiny import write_preset

from flatlingo.errors import FlatlingoError
from flatlingo.study import store
from flatlingo.study.presets import expand, load_preset
from flatlingo.study.runspec import RunConfig
from flatlingo.study.store import Store
from flatlingo.study.studies import finished, studies
from flatlingo.study.sweep import sweep

FILES = {"source": "files", "sha256": "0" * 64}
ENVIRONMENT = {"device": "cpu", "seconds": 1.0, "versions": {}}


@pytest.fixture
def preset(tmp_path):
    """Two conditions a plan; plan nli has no second stage."""
    few = {"none": [0], "l2": [0.01]}
    return write_preset(tmp_path, nli=few, paraphrase=few)


@pytest.fixture
def record(preset, tmp_path, monkeypatch):
    """Adds made-up runs to the recorded results of the preset."""
    monkeypatch.setattr(store, "RECORDED", tmp_path / "recorded")
    runs, rng = Store(tmp_path / "recorded" / load_preset(preset).name), np.random.default_rng(0)

    def add(plan, seed, conditions=2):
        for spec in expand(plan, load_preset(preset), seeds=[seed])[:conditions]:
            config = RunConfig(**spec.model_dump(), weights=FILES, rows=FILES)
            runs.write(config, made_up_result(config, rng), ENVIRONMENT)

    return add


def test_recorded_results_are_read_with_every_complete_seed(preset, record, caplog):
    record("nli", 1)
    record("nli", 2, conditions=1)
    record("nli", 3)
    assert set(sweep("nli", preset=preset)["seed"]) == {1, 3}
    assert "seed 2 of plan nli is left out: 1 of its 2 runs are there" in caplog.text
    assert set(sweep("nli", preset=preset, seeds=1)["seed"]) == {1}


def test_a_plan_that_is_not_recorded_is_named(preset, record):
    record("nli", 1)
    record("paraphrase", 1, conditions=1)
    found = studies(["nli", "paraphrase"], preset=preset)
    assert list(found.tables) == ["nli"]
    (line,) = found.lacking
    assert "plan paraphrase of preset smoke is not recorded" in line


def test_a_plan_without_a_second_stage_is_named_where_one_is_needed(preset, record):
    record("nli", 1)
    record("paraphrase", 1)
    found = studies(["nli", "paraphrase"], preset=preset, second_stage=True)
    assert list(found.tables) == ["paraphrase"]
    assert found.lacking == ["plan nli of preset smoke has no second stage"]


@pytest.mark.parametrize(
    ("plans", "reason"),
    [(["nli", "paraphrase"], "plan nli .* not recorded.*plan paraphrase .* not recorded"), ([], "no plan was asked")],
    ids=["nothing recorded", "nothing asked"],
)
def test_nothing_to_show_is_one_message(preset, record, plans, reason):
    with pytest.raises(FlatlingoError, match=f"nothing to show: .*{reason}"):
        studies(plans, preset=preset)


@pytest.mark.parametrize("where", ["recorded", "a store"])
def test_what_is_finished_is_read_and_what_is_lacking_named_with_its_command(preset, record, where):
    record("nli", 1)
    record("nli", 2, conditions=1)
    record("paraphrase", 1, conditions=1)
    options = {"store": str(store.RECORDED / "smoke")} if where == "a store" else {}
    found = finished(["nli", "paraphrase", "technique"], preset=preset, **options)
    assert list(found.tables) == ["nli"]
    assert set(found.tables["nli"]["seed"]) == {1}
    folder = options.get("store", "data/recorded/smoke")
    command = f"flatlingo sweep paraphrase --preset {preset} --store {folder} --discard-weights"
    assert found.lacking["paraphrase"].endswith(f"is not recorded; this does it: {command}")
    assert found.lacking["technique"] == "preset smoke has no plan technique"
    assert list(finished(["nli"], preset=preset, seeds=2, **options).tables) == ["nli"]
    assert "--seeds 2" in finished(["paraphrase"], preset=preset, seeds=2, **options).lacking["paraphrase"]


def test_curves_are_what_was_measured_on_the_way(preset, record):
    settings = load_preset(preset).plan("nli").setup.measurement
    record("nli", 1)
    found = finished(["nli"], preset=preset)
    curves, runs = found.curves["nli"], found.tables["nli"]
    assert set(curves["run_id"]) == (set(runs["run_id"]) if settings.curve else set())
    assert sorted(set(curves["share"])) == sorted(settings.curve)
    shares = dict(zip(runs["run_id"], runs["trace"], strict=True))
    expected = [shares[row.run_id] * row.share for row in curves.itertuples()]
    assert [*curves["early_trace"]] == pytest.approx(expected)
    assert curves["early_loss"].between(0, 2).all()
