"""Comparisons at equal accuracy, of two plans, and of ways to choose a checkpoint."""

import numpy as np
import pandas as pd
import pytest

from flatlingo import analysis, comparisons
from flatlingo.errors import FlatlingoError


def checkpoints():
    """Two seeds, two languages, three conditions: the flattest has learnt nothing, the most accurate adapts best."""
    rows = [
        {"label": label, "family": family, "seed": seed, "language": language, "weight": 1.0, "trace": trace,
         "english_accuracy": accuracy, "adapted": adapted + 0.01 * seed}
        for seed in (1, 2)
        for language in ("de", "zh")
        for label, family, trace, accuracy, adapted in (
            ("flat", "fisher_penalty", 1.0, 0.35, 0.40), ("good", "consistency", 50.0, 0.70, 0.70),
            ("sharp", "l2", 300.0, 0.71, 0.60),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("rule", "regret"),
    [
        ("smallest Tr(F)", 0.30),
        ("highest English accuracy", 0.10),
        ("flattest within 2 points of it", 0.0),
        ("at random", (0.30 + 0.0 + 0.10) / 3),
    ],
)
def test_regret_is_what_the_choice_loses_against_the_best(rule, regret):
    found = comparisons.regrets(checkpoints())[rule]
    assert (found.value, found.n) == (pytest.approx(regret), 2)
    against = comparisons.regret_against_chance(checkpoints(), rule)
    assert against.value == pytest.approx(regret - 0.4 / 3)


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


def test_conditions_that_learnt_nothing_are_not_competitive():
    assert set(comparisons.competitive(checkpoints())["label"]) == {"good", "sharp"}


def test_zero_shot_rows_are_one_a_language():
    table = pd.DataFrame({"label": ["none"], "seed": [1], "accuracy_de": [0.5], "accuracy_zh": [0.4]})
    rows = comparisons.zero_shot_rows(table)
    assert dict(zip(rows["language"], rows["zero_shot"], strict=True)) == {"de": 0.5, "zh": 0.4}


def test_a_stronger_predictor_is_told_from_a_weaker_one():
    rng = np.random.default_rng(0)
    y = np.arange(12.0)
    table = pd.DataFrame({"label": [f"w{i}" for i in range(12)], "y": y, "same": y**3, "noise": rng.normal(size=12)})
    (row,) = analysis.strength_differences(table, ["noise", "same"], "y").itertuples()
    noise = analysis.correlation(table, "noise", "y").value
    assert row.difference == pytest.approx(1 - abs(noise))
    assert 0 < row.low <= row.high
    (row,) = analysis.strength_differences(table, ["same", "same"], "y").itertuples()
    assert (row.difference, row.low, row.high) == (0, 0, 0)
