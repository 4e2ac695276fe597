"""Comparisons at equal accuracy, and of two plans."""

import numpy as np
import pandas as pd
import pytest

from flatlingo.errors import FlatlingoError
from flatlingo.report import comparisons


def checkpoints():
    """Two seeds, two languages, three conditions: the flattest has learnt nothing, the most accurate adapts best."""
    rows = [
        {"run_id": f"{label}-{seed}", "label": label,
         "family": family, "seed": seed, "language": language, "weight": 1.0, "trace": trace,
         "english_accuracy": accuracy, "adapted": adapted + 0.01 * seed}
        for seed in (1, 2)
        for language in ("de", "zh")
        for label, family, trace, accuracy, adapted in (
            ("flat", "fisher_penalty", 1.0, 0.35, 0.40), ("good", "consistency", 50.0, 0.70, 0.70),
            ("sharp", "l2", 300.0, 0.71, 0.60),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_only_runs_of_the_same_seed_and_nearly_the_same_accuracy_are_matched():
    table = checkpoints().drop_duplicates(["label", "seed"])
    found, matched = comparisons.at_matched_accuracy(table, "trace", ("l2",), ("consistency", "fisher_penalty"))
    assert (found.value, matched) == (pytest.approx(250.0), 2)
    nothing, matched = comparisons.at_matched_accuracy(table, "trace", ("l2",), ("fisher_penalty",))
    assert (nothing, matched) == (None, 0)
    assert comparisons.direction(nothing) == "no match"


def test_two_plans_are_paired_by_condition_seed_and_language():
    first, second = checkpoints(), checkpoints().sample(frac=1, random_state=0)
    second = second.assign(adapted=second["adapted"] - 0.02)
    found = comparisons.paired(first, second, "adapted", on=("label", "language"))
    assert (found.value, found.n) == (pytest.approx(0.02), 2)
    with pytest.raises(FlatlingoError, match="no seed and label and language in common"):
        comparisons.paired(first, second.assign(seed=second["seed"] + 10), "adapted", on=("label", "language"))


def test_the_regulariser_kept_is_compared_with_the_same_run_without_it():
    dropped = checkpoints()
    kept = dropped[dropped["family"] != "l2"].assign(adapted=lambda t: t["adapted"] + 0.01 * (t["label"] == "flat"))
    kept = pd.concat([kept, kept.assign(label="another", family="trace_penalty")])
    found = comparisons.kept_minus_dropped(kept, dropped)
    assert {family: (one.value, one.n) for family, one in found.items()} == {
        "fisher_penalty": (pytest.approx(0.01), 2),
        "consistency": (pytest.approx(0), 2),
    }
    assert comparisons.first_stages_apart(kept, dropped) == 0
    assert comparisons.first_stages_apart(kept.assign(trace=kept["trace"] * 1.1), dropped) == pytest.approx(0.1)
    assert np.isnan(comparisons.first_stages_apart(kept.assign(seed=9), dropped))


def test_one_penalty_is_compared_with_another_of_the_same_weight():
    table = checkpoints()
    found = comparisons.one_minus_other(table, "l2", "consistency", ["adapted", "trace"])
    assert (found["adapted"].value, found["trace"].value) == (pytest.approx(-0.1), pytest.approx(250))
    others = table.assign(weight=table["family"].map(len))
    assert comparisons.one_minus_other(others, "l2", "consistency", ["adapted"]) == {}
