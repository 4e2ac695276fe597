import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report import statistics
from flatlingo.report.statistics import Correlation, correlation


def study(conditions=8, seeds=3, *, seed=0, slope=-1.0):
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
                    "y": slope * x + 1.5 * rng.normal(),
                    "z": x**2 + rng.normal(),
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("method", "reference"), [("spearman", stats.spearmanr), ("pearson", stats.pearsonr)])
def test_value_is_scipys(method, reference):
    table = study()
    assert correlation(table, "x", "y", method=method).value == pytest.approx(reference(table.x, table.y).statistic)


def test_ties_and_row_order_do_not_matter():
    table = study().assign(y=lambda t: t.y.round())
    found = correlation(table.sample(frac=1, random_state=1), "x", "y")
    assert found.value == pytest.approx(stats.spearmanr(table.x, table.y).statistic)


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_partial_correlation_is_that_of_explicit_residuals(method):
    table = study()
    columns = table[["x", "y", "z"]].rank() if method == "spearman" else table[["x", "y", "z"]]
    design = np.column_stack([np.ones(len(table)), columns.z])
    x, y = (columns[name] - design @ np.linalg.lstsq(design, columns[name])[0] for name in "xy")
    assert correlation(table, "x", "y", given=("z",), method=method).value == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_partial_correlation_of_three_variables_by_the_textbook_formula():
    table = study()
    xy, xz, yz = (stats.spearmanr(table[a], table[b]).statistic for a, b in ("xy", "xz", "yz"))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert correlation(table, "x", "y", given=("z",)).value == pytest.approx(expected)


def test_given_a_family_leaves_the_correlation_within_families():
    """Simpson's paradox: y falls with x across families and rises inside each."""
    table = study(conditions=8).assign(y=lambda t: t.x - 10 * (t.family == "b"))
    assert correlation(table, "x", "y", method="pearson").value < -0.5
    assert correlation(table, "x", "y", given=("family",), method="pearson").value == pytest.approx(1)
    rows = statistics.correlation_table(table, "x", "y")
    assert list(rows.index) == ["all runs", "condition means", "within families", "a", "b"]
    assert rows.loc["all runs", "value"] < 0 < rows.loc[["within families", "a", "b"], "value"].min()


def test_interval_resamples_conditions_and_keeps_their_runs_together():
    table = study()
    members = [part.index.to_numpy() for _, part in table.groupby("label", sort=False)]
    slow = []
    for drawn in np.random.default_rng(1).integers(0, len(members), (300, len(members))):
        rows = np.concatenate([members[c] for c in drawn])
        slow.append(stats.spearmanr(table.x[rows], table.y[rows]).statistic)
    found = correlation(table, "x", "y", seed=1, n_bootstrap=300)
    assert [found.low, found.high] == pytest.approx(list(np.quantile(slow, [0.025, 0.975])))


def test_single_seed_interval_is_scipys_bootstrap_of_pairs():
    table = study(conditions=12, seeds=1)
    scipys = stats.bootstrap(
        (table.x.to_numpy(), table.y.to_numpy()),
        lambda x, y: stats.pearsonr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = correlation(table, "x", "y", method="pearson", n_bootstrap=1000, seed=0)
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high))


def test_repeating_every_run_adds_no_evidence():
    """Seeds that repeat each other exactly: the interval and p are those of the conditions, not of the rows."""
    once = study(conditions=10, seeds=1)
    often = pd.concat([once.assign(seed=s) for s in range(5)])
    one, five = correlation(once, "x", "y"), correlation(often, "x", "y")
    assert (five.n, five.conditions) == (50, 10)
    assert (five.low, five.high, five.p_value) == pytest.approx((one.low, one.high, one.p_value))


def test_interval_holds_the_estimate_where_ties_weaken_every_sample():
    """Weights are the same for all seeds: fewer different weights in a sample, hence a weaker best correlation."""
    table = study(conditions=6).assign(y=lambda t: -t.weight + t.seed / 10)
    found = correlation(table, "weight", "y")
    assert found.low == found.value < found.high < -0.7
    perfect = correlation(statistics.condition_means(table), "weight", "y")
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((-1, -1, -1))
    assert perfect.p_value == pytest.approx(2 / 720)


def test_p_value_is_exact_for_few_conditions():
    table = pd.DataFrame({"label": list("abcde"), "x": [1, 2, 3, 4, 5], "y": [5, 4, 3, 2, 1]})
    assert correlation(table, "x", "y").p_value == pytest.approx(2 / 120)


def test_p_values_are_uniform_under_independence_with_correlated_seeds():
    """Condition effects without relation between x and y: 5 % of p-values below 0.05, although rows look related."""
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        table = study(conditions=6)
        table[["x", "y"]] = np.repeat(rng.normal(size=(6, 2)), 3, axis=0) + 0.01 * rng.normal(size=(18, 2))
        rejected += correlation(table, "x", "y", n_bootstrap=2).p_value < 0.05
    assert 2 <= rejected <= 20  # 10 expected; a test that took rows for independent would reject more than half


@pytest.mark.parametrize("drop", [[0], [0, 4, 8], [3, 4, 5]], ids=["one run", "one of three conditions", "a condition"])
def test_missing_runs_are_left_out(drop):
    table = study()
    holes = table.astype({"y": float})
    holes.loc[drop, "y"] = np.nan
    found, rest = correlation(holes, "x", "y"), table.drop(index=drop)
    assert found == correlation(rest, "x", "y")
    assert found.value == pytest.approx(stats.spearmanr(rest.x, rest.y).statistic)
    assert -1 <= found.low < found.value < found.high <= 1
    assert 0 < found.p_value < 0.2


def test_same_seed_same_numbers_and_the_global_state_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    first = correlation(study(), "x", "y", seed=3)
    assert correlation(study(), "x", "y", seed=3) == first
    assert correlation(study(), "x", "y", seed=4).low != first.low
    after = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002


@pytest.mark.parametrize(
    "table",
    [
        study(conditions=2),
        study().assign(y=0.7),
        study(slope=1).assign(y=lambda t: 3 * t.z.rank() - 1),
        study().head(0),
    ],
    ids=["two conditions", "constant", "explained by what is given", "empty"],
)
def test_undefined_correlations_are_nan_and_say_so(table):
    found = correlation(table, "x", "y", given=("z",))
    assert np.isnan([found.value, found.low, found.high, found.p_value]).all()
    assert "undefined" in str(found)
    assert statistics.verdict(found, sign=-1).startswith("undecided")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: correlation(t, "x", "accuracy"), "no column accuracy"),
        (lambda t: correlation(t, "x", "y", given=("start",)), "no column start"),
        (lambda t: correlation(t, "x", "y", method="kendall"), "spearman, pearson"),
        (lambda t: correlation(pd.concat([t, t]), "x", "y"), "two rows of condition w=0"),
        (lambda t: statistics.summary(t, ("accuracy",)), "no column accuracy"),
        (lambda t: statistics.difference(t, "w=1", "nothing", "y"), "no seed in common"),
    ],
    ids=["column", "given", "method", "duplicates", "summary", "difference"],
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


def test_families_have_their_titles():
    table = study(conditions=8).replace({"family": {"a": "l2", "b": "fisher_penalty"}})
    assert list(statistics.correlation_table(table, "x", "y").index[-2:]) == ["L2 to zero", "Fisher penalty"]
