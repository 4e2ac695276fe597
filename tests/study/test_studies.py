"""Which plans a notebook shows, and which seeds of recorded results that are complete in part."""

import numpy as np
import pytest
from made_up import made_up_result
from tiny import write_preset

from flatlingo.errors import FlatlingoError
from flatlingo.study import store
from flatlingo.study.presets import RunConfig, expand, load_preset
from flatlingo.study.store import Store
from flatlingo.study.studies import studies
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
