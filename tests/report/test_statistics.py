import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report import statistics
from flatlingo.report.statistics import Correlation


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
        (lambda t: statistics.summary(t, ("accuracy",)), "no column accuracy"),
        (
            lambda t: statistics.summary(t.assign(distance=1.0), ("distance",)),
            "distance is neither",
        ),
        (lambda t: statistics.difference(t, "w=1", "nothing", "y"), "no seed in common"),
    ],
    ids=["summary", "summary of a distance", "difference"],
)
def test_bad_input_is_one_clear_message(call, message):
    with pytest.raises(FlatlingoError, match=message):
        call(study())


def test_condition_means_average_seeds_and_keep_languages_apart():
    table = study(conditions=3)
    means = statistics.condition_means(table)
    assert list(means.label) == ["w=0", "w=1", "w=2"]
    assert means.y[1] == pytest.approx(table.y[3:6].mean())
    assert list(means.runs) == [3, 3, 3]
    assert "seed" not in means
    languages = pd.concat([table.assign(language=language) for language in ("de", "zh")])
    assert len(statistics.condition_means(languages)) == 6


def test_summary_prints_mean_and_spread():
    table = study(conditions=1, seeds=2).assign(english_accuracy=[0.5, 0.6], trace=[100.0, 120.0])
    row = statistics.summary(table, ("english_accuracy", "trace")).loc["w=0"]
    assert list(row) == [2, "55.0 ± 7.1", "110 ± 14"]
    single = statistics.summary(table.head(1), ("english_accuracy", "trace")).loc["w=0"]
    assert list(single) == [1, "50.0", "100"]


@pytest.mark.parametrize(
    ("low", "high", "p_value", "sign", "word"),
    [
        (-0.9, -0.2, 0.01, -1, "agrees"),
        (-0.9, -0.2, 0.01, 1, "contradicts"),
        (0.1, 0.9, 0.01, 1, "agrees"),
        (-0.9, 0.1, 0.01, -1, "undecided"),
        (-1.0, -1.0, 0.33, -1, "undecided"),
    ],
)
def test_verdict_needs_an_interval_without_zero_and_a_small_p(low, high, p_value, sign, word):
    found = Correlation((low + high) / 2, low, high, p_value, 30, 10)
    assert statistics.verdict(found, sign=sign).startswith(f"{word}: Spearman")


def test_difference_is_paired_by_seed():
    table = study(conditions=2).assign(y=[1.0, 2.0, 3.0, 1.5, 2.4, 3.6])
    found = statistics.difference(table, "w=1", "w=0", "y")
    expected = stats.ttest_1samp([0.5, 0.4, 0.6], 0).confidence_interval()
    assert (found.value, found.low, found.high, found.n) == pytest.approx((0.5, expected.low, expected.high, 3))
    single = statistics.difference(table[table.seed == 1], "w=1", "w=0", "y")
    assert (single.value, single.n) == (0.5, 1)
    assert np.isnan([single.low, single.high]).all()


def test_best_of_family_compares_with_the_baseline():
    table = study(conditions=4).assign(
        label=lambda t: t.label.replace("w=0", "none"), english_accuracy=lambda t: t.weight / 10, trace=1.0
    )
    best = statistics.best_of_family(table)
    assert list(best["best condition"]) == ["w=1", "w=3"]
    assert list(best["minus none (points)"]) == [10, 30]


def two_languages():
    """Runs with a second stage in two languages, and a measurement that is missing everywhere."""
    table = study(conditions=3).assign(noisy_fitted=np.nan, task="a task")
    return pd.concat(
        [table.assign(language=code, adapted=0.1 * (n + table["seed"])) for n, code in enumerate(("de", "zh"))],
        ignore_index=True,
    )


def test_a_run_has_one_row_without_its_languages():
    once = statistics.per_run(two_languages())
    assert once.drop(columns=["noisy_fitted", "task"]).equals(study(conditions=3))
    assert statistics.per_run(once) is once


def test_language_means_have_one_row_per_run():
    means = statistics.language_means(two_languages())
    assert list(means["run_id"]) == list(study(conditions=3)["run_id"])
    assert means["adapted"].tolist() == pytest.approx(0.05 + 0.1 * means["seed"])
    assert means["noisy_fitted"].isna().all()
    assert means["x"].equals(study(conditions=3)["x"])


def test_seeds_without_a_value_do_not_count():
    known, gaps = pd.Series([0.01, 0.02]), pd.Series([0.01, np.nan, 0.02])
    assert statistics.over_seeds(gaps) == statistics.over_seeds(known)
