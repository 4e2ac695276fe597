"""Calibration: weights at equal traces, from Tr(F) and the fit alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from tiny import write_preset
from typer.testing import CliRunner

from flatlingo.cli import app
from flatlingo.errors import FlatlingoError
from flatlingo.study.calibration import conditions, measured, weights_at_levels
from flatlingo.study.families import LEVELS
from flatlingo.study.presets import load_preset


def runs(shares, *, family="l2", weights=(0.01, 0.1, 1.0), competence=1.0, seed=101):
    return pd.DataFrame({"family": family, "weight": weights, "seed": seed, "share": shares, "competence": competence})


def test_weights_interpolate_log_trace_in_log_weight():
    """Tr(F) ∝ 1 / (10 w): the level L is at w = 1 / (10 L)."""
    weights = (0.1, 1.0, 10.0)
    found = weights_at_levels(runs([1 / (10 * weight) for weight in weights], weights=weights))
    assert found["weight"].tolist() == pytest.approx([1 / (10 * level) for level in LEVELS], rel=0.05)  # two digits
    assert found["verdict"].tolist() == ["ok"] * 4


def test_seeds_are_averaged_in_logarithms():
    both = pd.concat([runs([1.0, 0.4, 0.04], seed=101), runs([1.0, 0.1, 0.01], seed=102)])
    between = weights_at_levels(runs([1.0, 0.2, 0.02]))
    pd.testing.assert_frame_equal(weights_at_levels(both), between)


@pytest.mark.parametrize(
    ("shares", "competence", "verdicts"),
    [
        ([0.9, 0.6, 0.3], 1.0, ["ok", "ok", "not reached", "not reached"]),
        ([0.6, 0.3, 0.05], 1.0, ["below the smallest weight", "ok", "ok", "ok"]),
        ([0.9, 0.45, 0.05], [1.0, 0.9, 0.0], ["ok", "ok", "not competent", "not competent"]),
    ],
    ids=["too weak", "too strong", "learns nothing"],
)
def test_a_level_that_is_not_reached_or_not_competent_is_left_out_and_says_why(shares, competence, verdicts):
    found = weights_at_levels(runs(shares, competence=competence))
    assert found["verdict"].tolist() == verdicts
    assert (found["weight"].isna() == (found["verdict"] != "ok")).all()


def test_a_level_missed_by_less_than_tr_f_is_known_to_takes_the_weight_at_the_end():
    found = weights_at_levels(runs([0.74, 0.3, 0.107]))
    assert found["verdict"].tolist() == ["ok"] * 4
    assert found["weight"].tolist()[0] == 0.01
    assert found["weight"].tolist()[-1] == 1.0


def test_a_trace_that_does_not_fall_everywhere_is_smoothed():
    found = weights_at_levels(runs([0.9, 0.2, 0.4, 0.05], weights=(0.01, 0.1, 1.0, 10.0)))
    kept = found.dropna()["weight"]
    assert kept.is_monotonic_increasing
    assert len(kept) == 4


def test_shares_and_competence_are_those_of_the_same_seeds_baseline():
    table = pd.DataFrame(
        {
            "family": ["none", "none", "l2", "l2"],
            "weight": [0.0, 0.0, 0.1, 0.1],
            "seed": [101, 102, 101, 102],
            "trace": [100.0, 200.0, 50.0, 20.0],
            "clean_train_accuracy": [0.9, 0.8, 0.6, 0.8],
            "classes": 2,
        }
    )
    found = measured(table).query("family == 'l2'")
    assert found["share"].tolist() == [0.5, 0.1]
    assert found["competence"].tolist() == pytest.approx([0.25, 1.0])


def test_the_conditions_of_a_preset_are_what_was_found():
    weights = pd.concat(
        [weights_at_levels(runs([0.9, 0.3, 0.05])), weights_at_levels(runs([1, 0.95, 0.9], family="dropout"))]
    )
    written = yaml.safe_load(conditions(weights))
    assert list(written) == ["none", "both_views", "l2"]
    assert written["l2"] == sorted(written["l2"])


def test_no_level_at_all_is_an_error():
    with pytest.raises(FlatlingoError, match="no level of any family"):
        conditions(weights_at_levels(runs([0.99, 0.98, 0.97])))


@pytest.fixture
def preset(tmp_path):
    settings = yaml.safe_load(Path(write_preset(tmp_path, setup={"train_size": 16})).read_text())
    settings["plans"]["nli"]["calibration"] = {"seeds": [101], "examples": 12, "weights": {"l2": [0.01, 10.0]}}
    path = tmp_path / "calibrated.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_command_trains_on_its_own_seeds_and_leaves_a_table(preset, tmp_path):
    output = tmp_path / "calibration.csv"
    arguments = [
        "calibrate",
        "nli",
        "--preset",
        str(preset),
        "--store",
        str(tmp_path / "store"),
        "--output",
        str(output),
    ]
    done = CliRunner().invoke(app, [*arguments, "--jobs", "1"])
    table = pd.read_csv(output)
    levels = table[table["what"] == "level"]
    assert table[table["what"] == "run"]["seed"].unique().tolist() == [101]
    assert levels["level"].tolist() == [0.75, 0.5, 0.25, 0.1]
    if levels["weight"].notna().any():
        assert done.exit_code == 0, done.output
        assert "both_views: [0]" in done.output
    reported = set(range(1, load_preset("small").seeds + 1))
    assert not reported & set(load_preset("small").plan("nli").calibration.seeds)
    assert not np.isnan(table[table["what"] == "run"]["share"]).any()


def test_a_plan_without_calibration_says_so(tmp_path):
    arguments = [
        "calibrate",
        "nli",
        "--preset",
        "smoke",
        "--store",
        str(tmp_path / "s"),
        "--output",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert "no calibration" in str(done.exception)
    assert not (tmp_path / "s").exists()
