"""A store is read by itself: runs are found by what was asked for, with their numbers and arrays."""

import numpy as np
import pytest
from tiny import resolved

from flatlingo.errors import FlatlingoError
from flatlingo.study.runspec import Provenance
from flatlingo.study.store import Store, open_store
from flatlingo.study.table import table

ARRAYS = {"correct/en": np.array([True, False]), "tensor/name": np.array(["a", "b"]), "trace/en": np.float32([1, 2])}


@pytest.fixture(scope="module")
def configs():
    return resolved("nli", "smoke")


def elsewhere(config):
    """The same run from other files of the encoder."""
    return config.model_copy(update={"weights": Provenance(source="files", sha256="0" * 64)})


def test_a_run_is_found_by_what_was_asked_for_whatever_its_files(configs, tmp_path):
    runs, config = Store(tmp_path), elsewhere(configs[0])
    assert runs.find(config.spec) is None
    runs.write(config, {"a": 1}, {"seconds": 2}, ARRAYS)
    assert runs.find(configs[0].spec) == config
    assert runs.find(configs[1].spec) is None
    assert runs.result(config) == {"a": 1, "seconds": 2}


def test_a_seed_whose_only_run_failed_at_once_and_left_a_log_is_one_that_was_begun(configs, tmp_path):
    runs = Store(tmp_path)
    runs.log(configs[0]).parent.mkdir()
    runs.log(configs[0]).touch()
    assert runs.seeds(configs[0].plan) == [configs[0].seed]


def test_arrays_come_back_as_they_were_and_are_optional(configs, tmp_path):
    runs = Store(tmp_path)
    runs.write(configs[0], {}, {"seconds": 2}, ARRAYS)
    runs.write(configs[1], {}, {"seconds": 2})
    found = runs.rows(configs[0])
    assert set(found) == set(ARRAYS)
    assert all(
        np.array_equal(found[name], values) and found[name].dtype == values.dtype for name, values in ARRAYS.items()
    )
    assert runs.rows(configs[1]) == {}


def test_the_same_arrays_are_the_same_bytes(configs, tmp_path):
    first, second = (Store(tmp_path / name).write(configs[0], {}, {"seconds": 2}, ARRAYS) for name in "ab")
    assert (first / "rows.npz").read_bytes() == (second / "rows.npz").read_bytes()


def test_a_damaged_array_damages_the_run(configs, tmp_path):
    runs = Store(tmp_path)
    path = runs.write(configs[0], {}, {"seconds": 2}, ARRAYS) / "rows.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert "rows.npz is not as it was written" in runs.damage(configs[0])
    assert runs.find(configs[0].spec) is None


def test_runs_from_several_encoders_of_one_name_are_not_mixed_up(configs, tmp_path):
    runs = Store(tmp_path)
    for config in (configs[0], elsewhere(configs[0])):
        runs.write(config, {}, {"seconds": 2})
    with pytest.raises(FlatlingoError, match=r"2 runs nli-none-s1 .*give the encoder"):
        runs.find(configs[0].spec)


def test_what_was_not_measured_is_nan_in_the_table(configs):
    trace = {"value": 2.0, "standard_error": 0.1, "groups": {"head": 1.0}}
    result = {"accuracy": {"en": 0.5}, "train_accuracy": 1.0, "trace": trace, "empirical_fisher": 3.0, "seconds": 1}
    result |= {"classes": 3, "rows": [{"language": "en", "split": "validation", "rows": 10}]}
    (row,) = table(configs[:1], [result | {"noisy_fitted": None}]).to_dict("records")
    missing = {name for name, value in row.items() if value != value}
    assert missing >= {"noisy_fitted", "early_trace", "distance", "scale_aware", "zero_shot_accuracy", "margin"}
    assert row["trace"] == 2.0
    assert isinstance(row["noisy_fitted"], float)


def test_a_table_has_the_means_and_differences_of_a_result(configs):
    sizes = {("en", "validation"): 20, ("de", "validation"): 10, ("de", "adapt_validation"): 6}
    rows = [{"language": language, "split": split, "rows": n} for (language, split), n in sizes.items()]
    trace = {"value": 2.0, "standard_error": 0.1, "log_mean": -0.3, "groups": {"head": 0.5, "embeddings": 0.25}}
    result = {
        "accuracy": {"en": 0.9, "de": 0.7, "es": 0.5},
        "train_accuracy": 1.0,
        "trace": trace,
        "empirical_fisher": 3.0,
        "seconds": 1,
        "classes": 2,
        "rows": rows,
        "history": [{"step": 0, "trace/value": 5.0}, {"step": 3, "loss": 1.0}, {"step": 3, "trace/value": 4.0}],
        "second_stage": {"de": {"zero_shot": 5 / 6, "adapted": 1.0, "control": 0.9}},
    }
    (row,) = table(configs[:1], [result]).to_dict("records")
    assert row["zero_shot_accuracy"] == pytest.approx(0.6)
    assert (row["log_trace"], row["head_trace"], row["early_trace"]) == (-0.3, 0.5, 4.0)
    assert row["trace_without_embeddings"] == pytest.approx(1.75)
    assert row["validation_rows"] == 20
    assert row["gain"] == pytest.approx(1 / 6)
    assert row["control_gain"] == pytest.approx(0.9 - 5 / 6)
    assert row["start"] == pytest.approx(2 / 4), "of ten rows seven are right, five of them among the six held out"


def test_a_recorded_run_says_which_encoder_and_rows_it_was():
    runs = open_store("recorded", "mini")
    config = runs.find(resolved("nli", "mini", seeds=1)[0].spec)
    assert (config.encoder, config.weights.source, config.rows.source) == ("mini-mbert", "files", "generated")
    assert len(config.weights.sha256) == len(config.rows.sha256) == 64
