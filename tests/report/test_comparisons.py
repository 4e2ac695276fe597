"""Comparisons at equal accuracy, of two plans, and of ways to choose a checkpoint."""

import numpy as np
import pandas as pd
import pytest

from flatlingo.errors import FlatlingoError
from flatlingo.report import comparisons, statistics
from flatlingo.report.comparisons import Question


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


@pytest.mark.parametrize("stages", [1, 2])
def test_zero_shot_rows_are_one_per_language(stages):
    table = pd.DataFrame({"run_id": "a", "label": ["none"], "seed": [1], "accuracy_de": [0.5], "accuracy_zh": [0.4]})
    table["zero_shot_accuracy"] = 0.45
    if stages == 2:
        table = pd.concat([table.assign(language=code, zero_shot=0.3, adapted=0.6) for code in ("de", "zh")])
    rows = comparisons.zero_shot_rows(table)
    assert len(rows) == 2
    assert dict(zip(rows["language"], rows["zero_shot"], strict=True)) == {"de": 0.5, "zh": 0.4}


def test_a_stronger_predictor_is_told_from_a_weaker_one():
    rng = np.random.default_rng(0)
    y = np.arange(12.0)
    table = pd.DataFrame({"label": [f"w{i}" for i in range(12)], "y": y, "same": y**3, "noise": rng.normal(size=12)})
    (row,) = statistics.strength_differences(table, ["noise", "same"], "y").itertuples()
    noise = statistics.correlation(table, "noise", "y").value
    assert row.difference == pytest.approx(1 - abs(noise))
    assert 0 < row.low <= row.high
    (row,) = statistics.strength_differences(table, ["same", "same"], "y").itertuples()
    assert (row.difference, row.low, row.high) == (0, 0, 0)


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


def test_questions_are_asked_of_each_language():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"label": [f"w{i}" for i in range(8)], "trace": np.exp(rng.normal(size=8)), "seed": 1})
    table["english_accuracy"] = np.where(table["trace"] < 0.6, 0.3, 0.7)
    table = pd.concat([table.assign(language=code, zero_shot=rng.normal(size=8)) for code in ("de", "zh")])
    plain, log = Question("plain", "trace", "zero_shot"), Question("log", "trace", "zero_shot", method="pearson")
    able = Question("able", "trace", "zero_shot", competitive=True)
    answers = comparisons.ask(table, [plain, log, able])
    assert [(one.language, one.question.words) for one in answers] == [
        (language, words) for language in ("de", "zh") for words in ("plain", "log", "able")
    ]
    chinese = table[table["language"] == "zh"]
    assert answers[3].found == statistics.correlation(chinese, "trace", "zero_shot")
    assert answers[4].found.value == pytest.approx(np.corrcoef(np.log(chinese["trace"]), chinese["zero_shot"])[0, 1])
    assert answers[5].found.conditions == (chinese["trace"] >= 0.6).sum() < 8
