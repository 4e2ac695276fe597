"""What a study decides, on studies whose answer is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report import (
    choosing,
    competence,
    correlations,
    decisions,
    judging,
    marks,
    matched,
    panels,
    shapes,
    slopes,
)
from flatlingo.report.simulation import CONDITIONS, TRUTHS, design, right_verdicts, simulated_study, verdict_rates

OUTCOME = "english_accuracy"


def one_stage(seed=0, **study):
    """A study as one row per run, without its second stage."""
    return shapes.per_seed(simulated_study(seed, **study), []).drop(columns=["zero_shot", "adapted", "gain"])


def without(table, *runs):
    """A table without some runs, given as (label, seed)."""
    return table[~pd.MultiIndex.from_frame(table[["label", "seed"]]).isin(runs)]


GAPS = [("consistency=0.5", 2), ("fisher_penalty=0.1", 1), ("l2=0.75", 3)]


def by_least_squares(table, within_families):
    """The slope as the coefficient of a regression with an indicator for every block."""
    blocks = table["seed"].astype(str) + (table["family"] if within_families else "")
    design = np.column_stack([-np.log2(table["trace"]), pd.get_dummies(blocks).to_numpy(dtype=float)])
    return np.linalg.lstsq(design, 100 * table[OUTCOME].to_numpy())[0][0]


@pytest.mark.parametrize("missing", [[], GAPS], ids=["complete", "runs missing"])
@pytest.mark.parametrize("within", [False, True], ids=["seed", "seed and family"])
class TestSlope:
    def table(self, missing):
        return without(one_stage(3, slope=0.7), *missing)

    def test_is_the_regression_with_a_factor(self, within, missing):
        table = self.table(missing)
        found = slopes.slope(table, OUTCOME, within_families=within, n_permutations=9)
        assert found.value == pytest.approx(by_least_squares(table, within), rel=1e-10)
        used = table[table.groupby("family")["label"].transform("nunique") > 1] if within else table
        assert (found.conditions, found.seeds, found.runs) == (used["label"].nunique(), 3, len(used))

    def test_interval_leaves_out_whole_conditions(self, within, missing):
        table = self.table(missing)
        if within:  # a condition alone in its family says nothing, whether it is there or not
            table = table[table.groupby("family")["label"].transform("nunique") > 1]
        left = [by_least_squares(table[table["label"] != label], within) for label in table["label"].unique()]
        n, families = len(left), table["family"].nunique() if within else 1
        half = stats.t.ppf(0.975, n - families - 1) * math.sqrt((n - 1) ** 2 / n * np.var(left, ddof=1))
        found = slopes.slope(table, OUTCOME, within_families=within, n_permutations=9)
        assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], rel=1e-9)

    def test_p_value_permutes_whole_conditions(self, within, missing):
        """Few conditions, so that all 120 (or, within families, 4) arrangements can be written down."""
        shares = {"consistency": (0.5, 0.1), "fisher_penalty": (0.5, 0.1), "l2": (0.75,)}
        table = without(one_stage(3, slope=0.3, conditions=shares), *missing)
        labels, family = list(table["label"].unique()), table.groupby("label")["family"].first()
        outcome = table.set_index(["label", "seed"])[OUTCOME]
        found = []
        for order in itertools.permutations(labels):
            if within and any(family[a] != family[b] for a, b in zip(labels, order, strict=True)):
                continue
            source = dict(zip(labels, order, strict=True))
            keys = pd.MultiIndex.from_arrays([table["label"].map(source), table["seed"]])
            moved = table.assign(**{OUTCOME: outcome.reindex(keys).to_numpy()}).dropna(subset=[OUTCOME])
            found.append(abs(by_least_squares(moved, within)))
        expected = np.mean([value >= abs(by_least_squares(table, within)) - 1e-9 for value in found])
        assert slopes.slope(table, OUTCOME, within_families=within).p_value == pytest.approx(expected)

    def test_depends_on_neither_the_order_of_rows_nor_the_global_random_state(self, within, missing):
        table = self.table(missing)
        first = slopes.slope(table, OUTCOME, within_families=within, n_permutations=99)
        np.random.seed(0)  # noqa: NPY002
        second = slopes.slope(table, OUTCOME, within_families=within, n_permutations=99)
        shuffled = slopes.slope(table.sample(frac=1, random_state=1), OUTCOME, within_families=within)
        assert first == second
        assert (shuffled.value, shuffled.low) == pytest.approx((first.value, first.low))

    def test_rank_correlation_is_that_of_centred_ranks(self, within, missing):
        table = self.table(missing)
        blocks = [table["seed"], *([table["family"]] if within else [])]
        ranks = table[["trace", OUTCOME]].rank()
        if within:
            keep = table.groupby("family")["label"].transform("nunique") > 1
            ranks, blocks = ranks[keep], [block[keep] for block in blocks]
        centred = ranks - ranks.groupby(blocks).transform("mean")
        found = correlations.rank_correlation(table, OUTCOME, within_families=within, n_permutations=99)
        # Ranks are those of all runs; a family of one condition is centred to 0 either way.
        assert found.value == pytest.approx(np.corrcoef(centred.T)[0, 1])
        assert -1 <= found.low <= found.value <= found.high <= 1


class TestSlopesOfSeeds:
    def test_are_those_of_each_seed_with_a_t_interval(self):
        table = without(one_stage(3, slope=0.7), *GAPS)
        found = slopes.of_seeds(table).loc["English accuracy"]
        single = [slopes.slope(part, OUTCOME, n_permutations=1).value for _, part in table.groupby("seed")]
        assert (found["least"], found["most"], found["seeds"]) == (min(single), max(single), 3)
        expected = stats.ttest_1samp(single, 0)
        assert [found["low"], found["high"]] == pytest.approx([*expected.confidence_interval()])
        assert found["value"] == pytest.approx(np.mean(single))
        zero_shot = slopes.slope(table[table["seed"] == 1], "zero_shot_accuracy", n_permutations=1)
        assert zero_shot.value >= slopes.of_seeds(table).loc["zero-shot accuracy", "least"]

    def test_what_differs_between_seeds_is_open_though_conditions_agree(self):
        table = one_stage(3, slope=0.0)
        tilt = table["seed"].map({1: 0.03, 2: 0.0, 3: -0.02})
        table = table.assign(english_accuracy=0.8 - tilt * np.log2(table["trace"]))
        assert slopes.slopes(table).loc["English accuracy", "verdict"] == "no effect"
        assert slopes.of_seeds(table).loc["English accuracy", "verdict"] == "undecided"

    def test_two_seeds_give_no_interval(self):
        found = slopes.of_seeds(one_stage(3, seeds=2, slope=0.7))
        assert found[["value", "least", "most"]].notna().all(axis=None)
        assert found[["low", "high", "p"]].isna().all(axis=None)
        assert set(found["verdict"]) == {"too few seeds"}


def partial(table, x, y, *held):
    """Pearson's r of what ordinary least squares on the seed and on ranks leaves of ranks."""
    design = np.column_stack([pd.get_dummies(table["seed"]).to_numpy(float), *(table[name] for name in held)])
    left = [table[name] - design @ np.linalg.lstsq(design, table[name])[0] for name in (x, y)]
    return np.corrcoef(*left)[0, 1]


@pytest.mark.parametrize("missing", [[], GAPS], ids=["complete", "runs missing"])
class TestAtEqualStart:
    """The partial rank correlation, held against regressions written out."""

    def ranks(self, missing):
        table = without(shapes.per_seed(simulated_study(3, slope=0.5, gain_slope=0.5), []), *missing)
        names = ["trace", "gain", "zero_shot"]
        return table, table.assign(**{name: stats.rankdata(table[name]) for name in names})

    def test_value_and_interval(self, missing):
        table, ranks = self.ranks(missing)
        expected = partial(ranks, "trace", "gain", "zero_shot")
        found = correlations.rank_correlation(table, "gain", given=("zero_shot",), n_permutations=9)
        assert found.value == pytest.approx(expected, rel=1e-10)
        labels = ranks["label"].unique()
        left = [np.arctanh(partial(ranks[ranks["label"] != c], "trace", "gain", "zero_shot")) for c in labels]
        n = len(left)
        half = stats.t.ppf(0.975, n - 3) * math.sqrt((n - 1) ** 2 / n * np.var(left, ddof=1))
        ends = np.tanh([np.arctanh(expected) - half, np.arctanh(expected) + half])
        assert [found.low, found.high] == pytest.approx(list(ends), rel=1e-9)

    def test_how_much_stronger_one_measure_is(self, missing):
        table, ranks = self.ranks(missing)
        table["other"] = ranks["other"] = table["trace"].sample(frac=1, random_state=0).to_numpy()
        ranks["other"] = stats.rankdata(ranks["other"])

        def gap(part):
            first, second = (partial(part, name, "gain", "zero_shot") for name in ("other", "trace"))
            return abs(first) - abs(second)

        value, low, high = correlations.stronger(table, "gain", x="other", given=("zero_shot",))
        left = [gap(ranks[ranks["label"] != c]) for c in ranks["label"].unique()]
        n = len(left)
        half = stats.t.ppf(0.975, n - 3) * math.sqrt((n - 1) ** 2 / n * np.var(left, ddof=1))
        assert [value, low, high] == pytest.approx([gap(ranks), gap(ranks) - half, gap(ranks) + half], rel=1e-9)


def test_what_is_explained_by_what_is_given_is_undefined():
    table = one_stage(1).assign(start=lambda t: t["trace"] ** 2)
    found = correlations.rank_correlation(table, OUTCOME, given=("start",))
    assert np.isnan([found.value, found.low, found.high, found.p_value]).all()
    assert "undefined" in str(found)


def test_at_equal_start_p_values_are_uniform_where_there_is_nothing():
    """Gain and trace both follow the start, and nothing else: about 5 % of p-values lie below 0.05."""
    rng, rejected = np.random.default_rng(0), 0
    for number in range(200):
        table = one_stage(number, seeds=2)
        start = dict(zip(table["label"].unique(), rng.normal(size=14), strict=True))
        table["start"] = table["label"].map(start)
        table["trace"] = np.exp(table["start"] + rng.normal(size=len(table)))
        table["gain"] = table["start"] + rng.normal(size=len(table))
        rejected += correlations.rank_correlation(table, "gain", given=("start",), n_permutations=199).p_value < 0.05
    assert 3 <= rejected <= 20


def test_random_arrangements_agree_with_all_of_them():
    table = one_stage(5, slope=0.15, conditions={"consistency": (0.75, 0.5, 0.25, 0.1), "l2": (0.9, 0.6, 0.3)})
    exact = slopes.slope(table, OUTCOME).p_value
    assert 0.01 < exact < 0.6
    drawn = slopes.slope(table, OUTCOME, n_permutations=4000).p_value
    assert drawn == pytest.approx(exact, abs=0.03)
    assert drawn * 4001 == pytest.approx(round(drawn * 4001))


def test_p_value_is_never_smaller_than_the_arrangements_allow():
    table = one_stage(0, slope=5.0)
    assert slopes.slope(table, OUTCOME, n_permutations=999).p_value == pytest.approx(1 / 1000)
    within = slopes.slope(table, OUTCOME, within_families=True)
    assert within.p_value >= 1 / (24 * 24 * 2 * 2)


def test_repeating_every_run_adds_no_evidence():
    once = one_stage(1, slope=0.3, seeds=1)
    often = pd.concat([once.assign(seed=number) for number in range(5)])
    one, five = (slopes.slope(table, OUTCOME, n_permutations=199) for table in (once, often))
    assert (five.value, five.low, five.high, five.p_value) == pytest.approx((one.value, one.low, one.high, one.p_value))
    assert (five.conditions, five.runs) == (14, 70)


def test_differences_between_seeds_do_not_count():
    table = one_stage(1, slope=0.3)
    moved = table.assign(**{OUTCOME: table[OUTCOME] + 0.1 * table["seed"]})
    assert slopes.slope(moved, OUTCOME).value == pytest.approx(slopes.slope(table, OUTCOME).value)


@pytest.mark.parametrize(("conditions", "interval"), [(5, False), (6, True)])
def test_no_interval_from_fewer_than_six_conditions(conditions, interval):
    table = one_stage(0, conditions={"consistency": tuple(np.linspace(1, 0.1, conditions))})
    found = slopes.slope(table, OUTCOME)
    assert math.isfinite(found.low) == interval
    assert (slopes.slopes(table).loc["English accuracy", "verdict"] == judging.TOO_FEW) != interval
    assert math.isfinite(found.value)
    assert math.isfinite(found.p_value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="trace"), "no column trace"),
        (lambda t: pd.concat([t, t[:1]]), "condition none has two runs of seed 1"),
        (lambda t: t.assign(trace=0.0), "column trace of run none is not above 0"),
    ],
    ids=["column missing", "two runs", "trace of 0"],
)
def test_tables_that_would_give_a_wrong_slope_are_refused(change, message):
    with pytest.raises(FlatlingoError, match=message):
        slopes.slope(change(one_stage()), OUTCOME)


@pytest.mark.parametrize(
    ("interval", "p", "verdict"),
    [
        ((0.8, 0.6, 1.0), 0.01, "rises"),
        ((-0.8, -1.0, -0.6), 0.01, "falls"),
        ((-0.8, -1.0, -0.6), 0.06, "undecided"),
        ((0.2, -0.1, 0.5), 0.2, "no effect"),
        ((0.3, 0.1, 0.5), 0.001, "no effect"),
        ((0.3, 0.1, 0.51), 0.001, "rises"),
        ((0.1, -0.4, 0.6), 0.7, "undecided"),
        ((0.8, math.nan, math.nan), 0.001, "too few conditions"),
    ],
)
def test_verdicts(interval, p, verdict):
    assert judging.judge(*interval, p) == verdict


def test_holm_is_scipys_on_the_smallest_and_never_falls():
    p = [0.02, 0.001, 0.3, 0.04]
    assert judging.holm(p) == pytest.approx([0.06, 0.004, 0.3, 0.08])
    assert judging.holm([0.5, 0.6]) == pytest.approx([1, 1])


class TestCompetent:
    def test_is_judged_on_each_seed_above_chance(self):
        table = one_stage(0, seeds=3).assign(clean_train_accuracy=0.9)
        limit = 1 / 3 + 0.75 * (0.9 - 1 / 3)
        weak = (table["label"] == "l2=0.5") & (table["seed"] == 2)
        exact = (table["label"] == "l2=0.75") & (table["seed"] == 2)
        table["clean_train_accuracy"] = np.where(weak, limit - 0.001, np.where(exact, limit, 0.9))
        assert competence.competent(table).equals(~weak)

    def test_a_condition_that_fails_in_half_of_its_seeds_fails_in_all(self):
        table = one_stage(0, seeds=4)
        for label, seeds in {"l2=0.5": (1, 2), "dropout=0.5": (3,)}.items():
            table.loc[(table["label"] == label) & table["seed"].isin(seeds), "clean_train_accuracy"] = 0.4
        out = table[~competence.competent(table)]
        assert out.groupby("label")["seed"].apply(list).to_dict() == {"dropout=0.5": [3], "l2=0.5": [1, 2, 3, 4]}
        assert competence.incompetent(table) == {"l2=0.5": "seed 1, 2, so it counts in none", "dropout=0.5": "seed 3"}
        table.loc[table["label"] == "l2=0.5", "clean_train_accuracy"] = 0.4
        assert competence.incompetent(table)["l2=0.5"] == "every seed"

    def test_holds_for_every_language_of_a_run(self):
        table = simulated_study(0)
        table.loc[table["label"] == "l2=0.5", "clean_train_accuracy"] = 0.5
        assert competence.competent(table).equals(table["label"] != "l2=0.5")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: without(t, ("none", 2)), "seed 2 has no run of condition none"),
            (lambda t: t.assign(clean_train_accuracy=np.nan), "clean_train_accuracy is not known"),
            (lambda t: t.drop(columns="classes"), "classes is not known"),
            (lambda t: t.assign(clean_train_accuracy=0.3), "seed 1 learnt nothing"),
        ],
        ids=["no baseline", "accuracy unknown", "classes unknown", "baseline at chance"],
    )
    def test_refuses_what_cannot_be_judged(self, change, message):
        with pytest.raises(FlatlingoError, match=message):
            competence.competent(change(one_stage()))


def shares(**by_label):
    """Two seeds of conditions at given shares of their seed's baseline."""
    rows = [("none", "none", 1.0)] + [(label.split("_")[0], label, share) for label, share in by_label.items()]
    return pd.DataFrame(
        [
            {"family": family, "label": label, "seed": seed, "trace": 100 * seed * share, "y": 0.7 + 0.01 * seed}
            for family, label, share in rows
            for seed in (1, 2)
        ]
    )


def test_a_condition_is_at_the_level_nearest_to_its_share():
    table = shares(l2_a=0.7, l2_b=0.45, l2_c=0.52, dropout_a=0.06, dropout_b=0.16, dropout_c=0.068)
    found = matched.levels(table)
    assert found["level"].dropna().to_dict() == {"l2_a": 0.75, "l2_c": 0.5, "dropout_c": 0.1}
    assert found["share"].to_dict() == pytest.approx(
        {"l2_a": 0.7, "l2_b": 0.45, "l2_c": 0.52, "dropout_a": 0.06, "dropout_b": 0.16, "dropout_c": 0.068}
    )
    left_out = found["left_out"].to_dict()
    assert left_out["l2_b"] == "l2_c is nearer to its level"
    assert left_out["dropout_a"] == left_out["dropout_b"] == "no level within a factor 1.5"
    assert (found["left_out"] == "").equals(found["level"].notna())


def test_shares_are_of_the_same_seed_and_averaged_as_logarithms():
    table = shares(l2_a=0.5)
    table.loc[table["label"] == "l2_a", "trace"] = [100 * 0.25, 200 * 1.0]
    assert matched.levels(table).loc["l2_a", ["share", "level"]].tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(FlatlingoError, match="seed 1 has no run of condition none"):
        matched.levels(without(table, ("none", 1)))


def test_families_at_equal_trace_are_paired_by_seed_and_level():
    table = shares(consistency_a=0.75, consistency_b=0.25, fisher_a=0.7, fisher_b=0.26, fisher_c=0.1)
    lifted = {("consistency_a", 1): 0.01, ("consistency_a", 2): 0.02, ("consistency_b", 1): 0.03}
    keys = pd.MultiIndex.from_frame(table[["label", "seed"]])
    table = without(table.assign(y=table["y"] + [lifted.get(key, 0.0) for key in keys]), ("fisher_b", 2))
    pairs = matched.pairs_at_equal_trace(table, "consistency", "fisher")
    assert pairs == {"0.75": ("consistency_a", "fisher_a"), "0.25": ("consistency_b", "fisher_b")}
    found = matched.compare(table, "y", pairs)
    assert list(found.index) == ["0.75", "0.25", "all"]
    assert found["value"].tolist() == pytest.approx([1.5, 3.0, 2.0])  # seed 1: (1 + 3)/2, seed 2: 2
    assert found["pairs"].tolist() == [2, 1, 3]
    assert found["seeds"].tolist() == [2, 1, 2]
    assert found.loc["0.75", "halvings"] == pytest.approx(-np.log2(0.75 / 0.7))
    expected = stats.ttest_1samp([1.0, 2.0], 0)
    interval = expected.confidence_interval()
    assert found.loc["0.75", ["low", "high", "p"]].tolist() == pytest.approx([*interval, expected.pvalue])
    assert found.loc["0.25", ["low", "p"]].isna().all()
    assert found.loc["0.25", "verdict"] == matched.TOO_FEW_SEEDS


def test_every_weight_of_consistency_is_compared_with_both_views():
    table = one_stage(2, seeds=10, family_effects={"consistency": 3.0, "both_views": 1.0})
    added = matched.compare(table, OUTCOME, matched.pairs_with_control(table, "consistency", "both_views"))
    assert list(added.index) == [*(f"consistency={share:g}" for share in CONDITIONS["consistency"]), "all"]
    assert added.loc["all", "value"] == pytest.approx(2, abs=0.6)
    augmented = matched.compare(table, OUTCOME, matched.pairs_with_control(table, "both_views", "none"))
    assert augmented.loc["all", "value"] == pytest.approx(1, abs=0.8)
    assert matched.compare(table, OUTCOME, {}).empty


def test_the_gain_stands_beside_its_start_its_end_and_the_english_control():
    table = simulated_study(4, seeds=5)
    found = matched.gains(table)
    part = table[table["label"] == "l2=0.5"]
    assert found.loc["l2=0.5", "gain"] == pytest.approx(100 * (part["adapted"] - part["zero_shot"]).mean())
    beyond = 100 * (part["gain"] - part["control_gain"]).groupby(part["seed"]).mean()
    low, high = stats.ttest_1samp(beyond, 0).confidence_interval()
    assert found.loc["l2=0.5", ["low", "high"]].tolist() == pytest.approx([low, high])
    everything = found.drop(index="all")["gain minus control"].mean()
    assert found.loc["all", "gain minus control"] == pytest.approx(everything)
    assert found.loc["all", "seeds"] == 5


def test_memory_is_what_chance_does_not_explain():
    table = pd.DataFrame({"english_accuracy": [0.7, 1.0], "noisy_fitted": [0.15, 0.4], "classes": [3.0, 2.0]})
    assert decisions.memorised_beyond_chance(table).tolist() == pytest.approx([0, 0.4])


class TestRegret:
    def table(self, seeds=6):
        return simulated_study(1, slope=1.0, seeds=seeds)

    def test_is_what_the_choice_loses_in_each_seed(self):
        table = self.table()
        lost = choosing.regret_by_seed(table)
        group = table[table["seed"] == 3].set_index(["language", "label"])["adapted"].unstack()
        assert lost.loc[3, choosing.NONE] == pytest.approx(100 * (group.max(axis=1) - group["none"]).mean())
        assert lost.loc[3, "at random"] == pytest.approx(100 * (group.max(axis=1) - group.mean(axis=1)).mean())
        assert (lost >= 0).all(axis=None)

    def test_the_best_family_is_found_on_the_other_seeds(self):
        table = self.table(seeds=2)
        best = {1: "l2", 2: "dropout"}  # in seed 1 L2 is best, in seed 2 dropout
        better = table["family"] == table["seed"].map(best)
        table = table.assign(adapted=np.where(better, 0.9, np.where(table["family"].isin(best.values()), 0.6, 0.5)))
        assert choosing.regret_by_seed(table)[choosing.BEST_FAMILY].tolist() == pytest.approx([30, 30])

    def test_intervals_stay_among_the_values_of_the_seeds(self):
        table = self.table()
        lost, found = choosing.regret_by_seed(table), choosing.regret_table(table)
        for rule in lost:
            value, low, high, seeds = found.loc[(rule, "")]
            assert lost[rule].min() - 1e-9 <= low <= value <= high <= lost[rule].max() + 1e-9
            assert value == pytest.approx(lost[rule].mean())
            assert seeds == 6
        against = found.loc[("smallest Tr(F)", choosing.NONE)]
        assert against["value"] == pytest.approx((lost["smallest Tr(F)"] - lost[choosing.NONE]).mean())
        assert against["high"] < 0
        assert found.equals(choosing.regret_table(table))

    def test_no_interval_from_few_seeds(self):
        assert choosing.regret_table(self.table(seeds=4))[["low", "high"]].isna().all(axis=None)


class TestVerdicts:
    def test_of_a_study_in_which_accuracy_rises_by_a_point(self):
        found = decisions.verdicts(simulated_study(0, slope=1.0, seeds=5), n_permutations=999)
        said = found.set_index(["question", "outcome"])["verdict"]
        for question in ("slope", "slope within families"):
            for outcome in ("English accuracy", "zero-shot accuracy", "accuracy after adaptation"):
                assert said[question, outcome] == "rises"
            assert said[question, "gain"] not in ("rises", "falls")
        assert not said.filter(like="equal Tr(F)", axis=0).isin(["higher", "lower"]).any()
        control = found[found["question"] == "gain minus gain from English rows"].iloc[0]
        assert control["verdict"] == ("higher" if control["low"] > 0 and control["p"] < 0.05 else "undecided")
        assert list(found.columns) == decisions.COLUMNS
        assert not found.duplicated(["question", "outcome"]).any()

    def test_holm_runs_over_the_outcomes_of_a_question(self):
        table = simulated_study(0, slope=0.2)
        found = decisions.verdicts(table, n_permutations=199)
        slopes_asked = found[found["question"] == "slope"]
        alone = [slopes.slope(table, y, n_permutations=199).p_value for y in slopes.OUTCOMES]
        assert slopes_asked["p"].tolist() == pytest.approx(judging.holm(alone).tolist())

    def test_leave_out_runs_that_learnt_nothing(self):
        table = simulated_study(0)
        broken = table["label"] == "fisher_penalty=0.1"
        table.loc[broken, ["clean_train_accuracy", "english_accuracy", "trace"]] = [0.4, 0.34, 0.1]
        found = decisions.verdicts(table, n_permutations=99)
        expected = decisions.verdicts(table[~broken], n_permutations=99)
        pd.testing.assert_frame_equal(found, expected)

    def test_say_where_runs_are_missing(self):
        table = simulated_study(0, conditions={"none": (1.0,), "consistency": (0.5, 0.25), "l2": (0.6,)})
        said = decisions.verdicts(table, n_permutations=99).set_index(["question", "outcome"])["verdict"]
        assert said["slope", "English accuracy"] == "too few conditions"
        assert said["consistency minus Fisher penalty at equal Tr(F)", "gain"] == "no pair of conditions"
        assert said["both views minus none", "gain"] == "no pair of conditions"
        assert said["consistency minus L2 to zero at equal Tr(F)", "gain"] != "no pair of conditions"

    def test_of_a_study_without_second_stage_ask_of_what_there_is(self):
        found = decisions.verdicts(one_stage(0), n_permutations=99)
        assert set(found["outcome"]) == {"English accuracy", "zero-shot accuracy"}

    def test_are_printed_in_points(self):
        shown = decisions.printed(decisions.verdicts(one_stage(0, slope=-1.0), n_permutations=99))
        row = shown.loc[("slope", "English accuracy")]
        assert row["value"].startswith("−")
        assert row["verdict"] == "falls"


@pytest.fixture(scope="module", params=["no effect", "one point", "family"])
def rates(request):
    truth = {"no effect": {}, "one point": {"slope": 1.0}, "family": {"family_effects": {"consistency": 2.0}}}
    return request.param, verdict_rates(40, n_permutations=199, **truth[request.param])


class TestRates:
    """How often the verdicts are right. Few studies, fixed seeds: the bounds are what 40 draws allow."""

    def test_intervals_cover_the_truth(self, rates):
        _, found = rates
        assert (found["covered"].dropna() >= 0.88).all()

    def test_verdicts_are_right(self, rates):
        truth, found = rates
        contrast = found.loc["consistency minus Fisher penalty"]
        for question in ("slope", "slope within families"):
            row = found.loc[question]
            if truth == "no effect":
                assert row["up"] + row["down"] <= 0.06
                assert row["none"] >= 0.3
            elif truth == "one point":
                assert row["up"] >= 0.9
                assert row["down"] == row["none"] == 0
        if truth == "family":  # a trace that only goes along with a family has no slope within it
            within = found.loc["slope within families"]
            assert within["up"] + within["down"] <= 0.06
            assert contrast["down"] == contrast["none"] == 0
        else:
            assert contrast["up"] + contrast["down"] <= 0.1


def test_right_verdicts_say_what_was_to_be_found_and_how_often_it_was():
    found = right_verdicts(10, n_permutations=99, seeds=5)
    assert set(found.index.get_level_values("study")) == set(TRUTHS)
    assert found.loc[("half a point per halving", "slope"), "truth"] == 0.5
    for study, settings in (("no effect", {}), ("one point per halving", {"slope": 1.0})):
        rates = verdict_rates(10, n_permutations=99, seeds=5, **settings).loc["slope"]
        row = found.loc[(study, "slope")]
        assert row["right"] == rates["up" if settings else "none"]
        assert row["wrong"] == rates["down"] + rates["none" if settings else "up"]
        assert row["right"] + row["wrong"] + row["undecided"] == pytest.approx(1)
    misled = found.loc[("two points of one family", "slope")]
    assert np.isnan(misled["right"])
    assert misled["wrong"] <= 1


def test_a_slope_tells_between_which_values_it_stays_without_one_condition():
    runs = simulated_study(0, slope=1.0, seeds=3).query("language == 'de'").drop(columns="language")
    found = slopes.slope(runs, "english_accuracy", n_permutations=9)
    left = [
        slopes.slope(runs[runs["label"] != label], "english_accuracy", n_permutations=9).value
        for label in runs["label"].unique()
    ]
    assert [found.least, found.most] == pytest.approx([min(left), max(left)])


@pytest.mark.parametrize("own", [0.0, 3.0])
def test_a_study_is_made_up_with_as_much_spread_as_a_recorded_one(own):
    studies = [simulated_study(seed, seeds=5, run_sd=2.0, condition_sd=own, slope=0.5) for seed in range(40)]
    found = pd.DataFrame([design(study) for study in studies])
    assert np.sqrt((found["run_sd"] ** 2).mean()) == pytest.approx(2.0, rel=0.1)
    if own:  # over few conditions what one has of its own is known to a third
        assert np.sqrt((found["condition_sd"] ** 2).mean()) == pytest.approx(own, rel=0.15)
    else:  # a variance below 0 is none, so that half of them are above
        assert found["condition_sd"].median() < 0.5


def test_a_made_up_study_is_scored_on_as_many_rows_as_the_recorded_one():
    studies = [design(simulated_study(seed, seeds=5, rows=100, run_sd=0.0)) for seed in range(20)]
    assert {study["rows"] for study in studies} == {100}
    assert np.mean([study["run_sd"] for study in studies]) < 2, "less the error of scoring, four points"


def test_the_gain_beyond_the_control_is_of_the_seeds_that_have_one():
    table = simulated_study(0, seeds=3)
    table.loc[table["seed"] == 2, ["control", "control_gain"]] = np.nan
    assert (matched.gains(table)["seeds"] == 2).all()


def test_pairs_at_equal_trace_are_those_of_competent_runs():
    """One that is at equal Tr(F) only with a run that learnt nothing is no pair to show as one that counts."""
    traces = {"none": [100] * 3, "kl=1": [7.5] * 3, "fpen=1": [10, 10, 6]}
    family = {"none": "none", "kl=1": "consistency", "fpen=1": "fisher_penalty"}
    rows = [(label, seed, trace) for label, of in traces.items() for seed, trace in enumerate(of, start=1)]
    runs = pd.DataFrame(rows, columns=["label", "seed", "trace"]).assign(able=True)
    runs["family"] = runs["label"].map(family)
    question = "consistency minus Fisher penalty at equal Tr(F)"
    assert panels._asked(runs)[question] == {"0.1": ("kl=1", "fpen=1")}
    runs.loc[runs["trace"] == 6, "able"] = False
    assert panels._asked(runs)[question] == {}
    runs.loc[runs["label"] == "fpen=1", "able"] = False
    assert panels._asked(runs)[question] == {"0.1": ("kl=1", "fpen=1")}, "hollow"


def test_what_seeds_differ_by_is_taken_from_runs_that_learnt():
    table = pd.DataFrame({"label": list("abab"), "seed": [1, 1, 2, 2], "y": [1.0, 2.0, 3.0, -9.0]})
    table = table.assign(able=[True, True, True, False])
    assert marks.seeds_aligned(table, ["y"])["y"].tolist() == [2.0, 3.0, 2.0, -10.0]


def test_all_runs_count_where_competence_cannot_be_judged():
    table = simulated_study(0)
    table.loc[table["label"] == "l2=0.5", "clean_train_accuracy"] = 0.4
    assert competence.counted(table).equals(table[table["label"] != "l2=0.5"])
    unknown = table.assign(classes=np.nan)
    assert competence.counted(unknown).equals(unknown)
    with pytest.raises(FlatlingoError, match="classes is not known"):
        competence.competent_runs(unknown)


def test_runs_with_the_regulariser_kept_are_held_against_the_unregularised_runs_of_the_other_plan():
    dropped = simulated_study(0).assign(run_id=lambda t: t["label"] + t["run_id"])
    kept = dropped[dropped["family"] == "fisher_penalty"]
    kept = pd.concat([kept, kept.assign(family="trace_penalty", label="new", run_id="new" + kept["run_id"])])
    assert competence.counted_beside(kept, dropped).equals(kept)
    kept.loc[kept["family"] == "trace_penalty", "clean_train_accuracy"] = 0.4
    assert competence.counted_beside(kept, dropped).equals(kept[kept["family"] == "fisher_penalty"])
    unknown = kept.assign(classes=np.nan)
    assert competence.counted_beside(unknown, dropped).equals(unknown)
    assert competence.counted_beside(kept.head(0), dropped).empty


def test_regret_has_a_row_for_each_rule():
    table = simulated_study(0)
    assert choosing.regret_forest(table.head(0)).empty
    rows = choosing.regret_forest(table)
    naive = [f"regret minus that of {rule}" for rule in (choosing.NONE, choosing.BEST_FAMILY)]
    assert set(rows["group"]) == {"regret", *naive}


@pytest.mark.parametrize("ask", [slopes.slope, correlations.rank_correlation])
def test_where_every_family_has_one_condition_there_is_nothing_within_families(ask):
    runs = pd.DataFrame({"family": ["none", "l2", "dropout"], "label": list("abc"), "seed": 1})
    runs = runs.assign(trace=[9.0, 4.0, 1.0], gain=[0.0, 0.1, 0.3])
    found = ask(runs, "gain", within_families=True)
    assert np.isnan([found.value, found.low, found.high, found.p_value]).all()
    assert found.conditions == 0
    assert np.isfinite(ask(runs, "gain").value)
