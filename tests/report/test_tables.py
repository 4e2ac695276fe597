"""Shapes of tables, differences over seeds, and what is printed of both."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report import differences, printing, shapes


def study(conditions=8, seeds=3, *, seed=0):
    """Runs whose y follows x with noise; half the conditions are of family "a", half of "b"."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in range(conditions):
        for s in range(1, seeds + 1):
            x = c + 0.1 * rng.normal()
            rows.append(
                {
                    "run_id": f"{c}-{s}",
                    "family": "a" if c < conditions // 2 else "b",
                    "weight": float(c),
                    "label": f"w={c}",
                    "seed": s,
                    "x": x,
                    "y": -x + 1.5 * rng.normal(),
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: printing.summary(t, ("accuracy",)), "no column accuracy"),
        (
            lambda t: printing.summary(t.assign(distance=1.0), ("distance",)),
            "distance is neither",
        ),
        (lambda t: differences.difference(t, "w=1", "nothing", "y"), "no seed in common"),
    ],
    ids=["summary", "summary of a distance", "difference"],
)
def test_bad_input_is_one_clear_message(call, message):
    with pytest.raises(FlatlingoError, match=message):
        call(study())


def test_summary_prints_mean_and_spread():
    table = study(conditions=1, seeds=2).assign(english_accuracy=[0.5, 0.6], trace=[100.0, 120.0])
    row = printing.summary(table, ("english_accuracy", "trace")).loc["w=0"]
    assert list(row) == [2, "55.0 ± 7.1", "110 ± 14"]
    single = printing.summary(table.head(1), ("english_accuracy", "trace")).loc["w=0"]
    assert list(single) == [1, "50.0", "100"]


def test_summary_keeps_languages_apart():
    table = pd.concat([study(conditions=3).assign(language=code, gain=n / 10) for n, code in enumerate(("de", "zh"))])
    shown = printing.summary(table, ("gain",))
    assert shown.loc[("w=1", "zh"), "gain (points)"] == "10.0 ± 0.0"
    assert len(shown) == 6


def test_difference_is_paired_by_seed():
    table = study(conditions=2).assign(y=[1.0, 2.0, 3.0, 1.5, 2.4, 3.6])
    found = differences.difference(table, "w=1", "w=0", "y")
    expected = stats.ttest_1samp([0.5, 0.4, 0.6], 0).confidence_interval()
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.5, expected.low, expected.high, 3))
    single = differences.difference(table[table.seed == 1], "w=1", "w=0", "y")
    assert (single.value, single.n) == (0.5, 1)
    assert np.isnan([single.low, single.high]).all()


def test_best_of_family_compares_with_the_baseline():
    table = study(conditions=4).assign(
        label=lambda t: t.label.replace("w=0", "none"), english_accuracy=lambda t: t.weight / 10, trace=1.0
    )
    best = printing.best_of_family(table)
    assert list(best["best condition"]) == ["w=1", "w=3"]
    assert list(best["minus none (points)"]) == [10, 30]
    assert list(best["seeds"]) == [3, 3]


def test_the_best_of_a_family_is_not_the_one_that_lacks_its_worst_seed():
    """Everything is ten points worse in seed 3, which the weaker condition lacks; so its raw means are better."""
    runs = {"none": (0.6, 0.6, 0.5), "l2=1": (0.58, 0.58, 0.48), "l2=2": (0.57, 0.57, None)}
    rows = [(label, seed, y) for label, values in runs.items() for seed, y in enumerate(values, start=1) if y]
    table = pd.DataFrame(rows, columns=["label", "seed", "english_accuracy"])
    table["family"] = table["label"].str.partition("=")[0]
    table["trace"] = 100.0 * table["seed"] / table["label"].map({"none": 1, "l2=1": 4, "l2=2": 5})
    row = printing.best_of_family(table).loc["L2 to zero"]
    assert row["best condition"] == "l2=1"
    assert row[["seeds", "minus none (points)", "Tr(F) / none's"]].tolist() == [3, -2.0, "0.25"]
    weaker = printing.best_of_family(table[table["label"] != "l2=1"]).loc["L2 to zero"]
    assert weaker[["seeds", "minus none (points)", "Tr(F) / none's"]].tolist() == [2, -3.0, "0.2"]


def two_languages():
    """Runs with a second stage in two languages, and a measurement that is missing everywhere."""
    table = study(conditions=3).assign(noisy_fitted=np.nan, task="a task")
    return pd.concat(
        [table.assign(language=code, adapted=0.1 * (n + table["seed"])) for n, code in enumerate(("de", "zh"))],
        ignore_index=True,
    )


def test_a_run_has_one_row_without_its_languages():
    once = shapes.per_run(two_languages())
    assert once.drop(columns=["noisy_fitted", "task"]).equals(study(conditions=3))
    assert shapes.per_run(once) is once


def test_language_means_have_one_row_per_run():
    means = shapes.language_means(two_languages())
    assert list(means["run_id"]) == list(study(conditions=3)["run_id"])
    assert means["adapted"].tolist() == pytest.approx(0.05 + 0.1 * means["seed"])
    assert means["noisy_fitted"].isna().all()
    assert means["x"].equals(study(conditions=3)["x"])


def test_seeds_without_a_value_do_not_count():
    known, gaps = pd.Series([0.01, 0.02]), pd.Series([0.01, np.nan, 0.02])
    assert differences.over_seeds(gaps) == differences.over_seeds(known)


@pytest.mark.parametrize("stages", [1, 2])
def test_zero_shot_rows_are_one_per_language(stages):
    table = pd.DataFrame({"run_id": "a", "label": ["none"], "seed": [1], "accuracy_de": [0.5], "accuracy_zh": [0.4]})
    table["zero_shot_accuracy"] = 0.45
    if stages == 2:
        table = pd.concat([table.assign(language=code, zero_shot=0.3, adapted=0.6) for code in ("de", "zh")])
    rows = shapes.zero_shot_rows(table)
    assert len(rows) == 2
    assert dict(zip(rows["language"], rows["zero_shot"], strict=True)) == {"de": 0.5, "zh": 0.4}
