"""What to do with a budget of compute, on studies whose answer is known; and what knows of one baseline only."""

import re

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up import technique_table
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report import choosing, decisions, figures, matched, methods, technique
from flatlingo.report.judging import holm
from flatlingo.report.printing import best_of_family
from flatlingo.report.shapes import per_run, per_seed
from flatlingo.study.presets import expand, load_preset

SEEDS = 10


@pytest.fixture(scope="module")
def table():
    """Consistency gains two points, averaging none to speak of, the Fisher penalty costs one and a half."""
    return technique_table({"kl=1.4": 2.0, "average": 0.1, "fpen": -1.5}, SEEDS)


@pytest.fixture(scope="module")
def null():
    return technique_table({}, SEEDS)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def accuracy(table, y, label, seeds=range(1, SEEDS + 1)):
    """Of one condition by seed, in per cent."""
    return 100 * per_seed(table, []).query("label == @label").set_index("seed")[y].loc[[*seeds]]


def test_levels_are_the_compute_of_the_recipes(table):
    runs = technique.with_level(table)
    assert runs.groupby("level")["recipe"].apply(lambda names: "plain" in set(names)).all()
    label = runs.set_index("label")["level"].groupby("label").first()
    assert label[["none", "none+length=2", "none+length=3"]].tolist() == [1, 2, 3]
    assert label[["kl=1.4+length=0.5", "kl=1.4", "kl=1.4+length=1.5"]].tolist() == [1, 2, 3]
    assert label[["trpen=0.01+parameters=head", "trpen=0.002+parameters=last_layer+length=0.571"]].tolist() == [1, 1]
    spec = next(spec for spec in expand("technique", load_preset("mini"), seeds=1) if spec.condition.label == "kl=1.4")
    assert runs.loc[runs["label"] == "kl=1.4", "compute"].unique() == [spec.compute]


def test_a_length_that_a_seed_lacks_is_none_to_compare_with(table):
    twice = technique.with_level(table).query("level == 2")["label"]
    lacking = table[(table["seed"] != 3) | ~table["label"].isin(twice)]
    assert 2 not in set(technique.reference(technique.with_level(lacking), 3))
    assert len(technique.differences(lacking))
    assert len(technique.chosen(lacking))


def test_the_line_of_what_was_chosen_says_how_often(table):
    shown = technique.printed(technique.chosen(table))
    assert "chosen on English (kl=1.4 in 10 of 10)" in shown.index.get_level_values("recipe")


@pytest.mark.parametrize(("level", "label"), [(1, "kl=1.4+length=0.5"), (2, "kl=1.4"), (3, "kl=1.4+length=1.5")])
def test_a_recipe_is_compared_with_plain_fine_tuning_of_equal_compute(table, level, label):
    plain = "none" if level == 1 else f"none+length={level}"
    found = technique.differences(table).set_index(["level", "recipe", "outcome"])
    for y in ("english_accuracy", "zero_shot_accuracy", "adapted"):
        gaps = accuracy(table, y, label) - accuracy(table, y, plain)
        test = stats.ttest_1samp(gaps, 0)
        row = found.loc[level, "kl=1.4", y]
        assert row["value"] == pytest.approx(gaps.mean())
        assert [row["low"], row["high"]] == pytest.approx([*test.confidence_interval()])
        assert row["mean"] == pytest.approx(accuracy(table, y, label).mean())
        assert row["verdict"] == "higher"
    trace = per_seed(table, []).pivot(index="seed", columns="label", values="trace")
    doublings = np.log2(trace[label] / trace[plain]).mean()
    assert found.loc[level, "kl=1.4", "log2_trace"]["value"] == pytest.approx(doublings)


def test_p_values_are_corrected_for_the_recipes_of_a_level(table):
    found = technique.differences(table)
    rows = found[(found["level"] == 1) & (found["outcome"] == "zero_shot_accuracy")]
    labels = technique.with_level(table).query("level == 1").groupby("recipe")["label"].first()
    gaps = [accuracy(table, "zero_shot_accuracy", labels[recipe]) for recipe in rows["recipe"]]
    plain = accuracy(table, "zero_shot_accuracy", "none")
    raw = [stats.ttest_1samp(values - plain, 0).pvalue for values in gaps]
    assert [*rows["p"]] == pytest.approx([*holm(raw)])


def test_no_seed_both_chooses_and_judges(table):
    """The gap of a seed is that of the recipe that the other seeds find most accurate in English, of all it can buy."""
    found = technique.chosen(table).set_index(["level", "outcome"])
    runs = technique.with_level(table)
    for level in (1, 2, 3):
        part, gaps = runs[runs["level"] <= level], []
        for seed in range(1, SEEDS + 1):
            others = part[part["seed"] != seed].groupby("label")["english_accuracy"].mean()
            mine = part[part["seed"] == seed].set_index("label")["zero_shot_accuracy"]
            gaps.append(100 * (mine[others.idxmax()] - mine["none" if level == 1 else f"none+length={level}"]))
        assert found.loc[(level, "zero_shot_accuracy"), "value"] == pytest.approx(np.mean(gaps))
        assert found.loc[(level, "zero_shot_accuracy"), "seeds"] == SEEDS


def test_what_is_gained_over_the_shortest_plain_training_is_told_where_a_longer_one_was_chosen():
    """Longer training is more accurate in English and less in other languages: plain fine-tuning is chosen too long."""
    table = technique_table({"kl=1.4": 2.0}, SEEDS)
    level = table["compute"].round().clip(lower=1)
    table = table.assign(
        english_accuracy=table["english_accuracy"] + 0.01 * level,
        zero_shot_accuracy=table["zero_shot_accuracy"] - 0.03 * level,
    )
    found = technique.chosen(table)
    row = found.set_index(["level", "outcome"]).loc[(2, "zero_shot_accuracy")]
    gaps = accuracy(table, "zero_shot_accuracy", "kl=1.4") - accuracy(table, "zero_shot_accuracy", "none")
    assert (row["recipe"], row["agree"], row["plain"]) == ("kl=1.4", SEEDS, 0)
    assert row["once"] == pytest.approx(gaps.mean())
    assert [row["once_low"], row["once_high"]] == pytest.approx([*stats.ttest_1samp(gaps, 0).confidence_interval()])
    assert row["once"] < row["value"] - 0.5
    text = technique.recommendation(found)
    assert f"points; over the shortest plain {row['once']:+.1f} [".replace("-", "−") in text
    assert text.count("over the shortest plain") == 4, "of twice and three times, for two outcomes"


def test_where_plain_fine_tuning_itself_is_chosen_the_recommendation_says_so():
    best = technique_table({}, SEEDS).assign(english_accuracy=lambda t: 0.5 + 0.1 * (t["label"] == "none"))
    found = technique.chosen(best)
    assert set(found["plain"]) == {SEEDS}
    assert f"in {SEEDS} of {SEEDS} seeds it is plain itself" in technique.recommendation(found)


def test_choosing_on_the_judged_seed_would_flatter():
    """Without any effect, the recipe chosen on other seeds gains nothing in English; the one of the same seeds does."""
    honest, flattered = [], []
    for n in range(8):
        table = technique_table({}, 6).assign(english_accuracy=lambda t, n=n: noise(t, n))
        found = technique.chosen(table)
        honest += [*found.loc[found["outcome"] == "english_accuracy", "value"]]
        best = technique.differences(table)
        flattered += [*best[best["outcome"] == "english_accuracy"].groupby("level")["value"].max()]
    assert np.mean(flattered) > 0.3
    assert abs(np.mean(honest)) < np.mean(flattered) / 2


def noise(table, seed):
    """Of one point, the same in both rows of a run."""
    codes = table["run_id"].factorize()[0]
    return 0.6 + 0.01 * np.random.default_rng(seed).normal(size=codes.max() + 1)[codes]


def test_a_budget_need_not_be_spent():
    """Where longer training harms, recipes of twice the compute are held against plain fine-tuning of once."""
    table = technique_table({"length=2": -6.0, "length=3": -8.0, "every=2": 1.0}, SEEDS)
    harmed = [y for y in ("english_accuracy", "zero_shot_accuracy", "adapted") if y in table]
    table = table.assign(**{y: table[y] - 0.02 * table["compute"].round() for y in harmed})
    found = technique.differences(table).set_index(["level", "recipe", "outcome"])
    (recipe,) = {name for name in found.loc[2].index.unique("recipe") if name.startswith("fpen")}
    gap = accuracy(table, "zero_shot_accuracy", recipe) - accuracy(table, "zero_shot_accuracy", "none")
    assert found.loc[(2, recipe, "zero_shot_accuracy"), "value"] == pytest.approx(gap.mean())
    nothing = technique.chosen(table.assign(english_accuracy=lambda t: 0.5 + 0.1 * (t["label"] == "none")))
    rows = nothing[nothing["outcome"] == "zero_shot_accuracy"].set_index("level")
    assert [*rows["recipe"]] == ["plain", "plain, once", "plain, once"]
    assert [*rows["value"]] == [0, 0, 0]


def test_the_recommendation_is_made_of_the_recipe_and_its_interval(table):
    found = technique.chosen(table)
    zero_shot, adapted = technique.recommendation(found).split(". ")
    one = found[(found["level"] == 2) & (found["outcome"] == "zero_shot_accuracy")].iloc[0]
    assert zero_shot.startswith("For zero-shot accuracy, the recipe most accurate in English")
    interval = f"{one['value']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}] points"
    once = f"over the shortest plain {one['once']:+.1f} [{one['once_low']:+.1f}, {one['once_high']:+.1f}]"
    assert f"twice {one['recipe']} (chosen in {one['agree']} of {SEEDS} seeds; {interval}; {once})" in zero_shot
    assert adapted.startswith("For accuracy after adaptation, the recipe")
    assert "no rec" not in zero_shot + adapted


def test_that_none_can_be_recommended_is_said_too(null):
    text = technique.recommendation(technique.chosen(null))
    assert text.count("no recipe can be recommended; ") == 2
    for times in ("once", "twice", "three times"):
        assert text.count(f" points at {times} the compute (") == 2
    assert "(no difference)" in text


def test_one_level_may_stand_and_others_not(table, null):
    mixed = pd.concat([table[table["compute"] < 1.5], null[null["compute"] > 1.5]])
    text = technique.recommendation(technique.chosen(mixed))
    assert "no more compute, its length chosen in the same way: once kl=1.4 (chosen in" in text
    assert re.search(r"; no recommendation: \S+ \[.*\] points at twice the compute \(", text)


def test_one_seed_recommends_nothing():
    found = technique.chosen(technique_table({"kl=1.4": 5.0}, 1))
    assert found["value"].isna().all()
    assert technique.recommendation(found).count("nothing can be recommended: too few seeds") == 2
    table = technique_table({"kl=1.4": 5.0}, 1)
    for shown in (technique.printed(found), technique.printed(technique.differences(table))):
        assert not shown.astype(str).apply(lambda column: column.str.contains("nan")).any(axis=None)


def test_a_table_without_a_second_stage_has_no_outcome_of_one():
    table = technique_table({}, 3, second_stage=False)
    outcomes = ["english_accuracy", "zero_shot_accuracy", "log2_trace"]
    assert [*technique.differences(table)["outcome"].unique()] == outcomes
    assert technique.recommendation(technique.chosen(table)).count("For ") == 1
    assert technique.technique_figure(table).axes[2].get_xlabel() == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(compute=t["compute"] + 0.4), "recipe none takes 1.4 times the compute"),
        (lambda t: t[(t["label"] != "none+length=2") | (t["seed"] != 3)], "no plain fine-tuning of 2 times .* seed 3"),
        (lambda t: t.drop(columns="compute"), "no column compute"),
    ],
    ids=["between levels", "no plain run", "an older table"],
)
def test_what_cannot_be_compared_is_refused(table, change, message):
    with pytest.raises(FlatlingoError, match=message):
        technique.differences(change(table))


@pytest.mark.parametrize("seeds", [1, 2, SEEDS])
def test_the_figure_has_a_row_a_level_with_every_recipe(seeds):
    table = technique_table({"kl=1.4": 2.0}, seeds)
    fig = technique.technique_figure(table)
    rows = np.reshape(fig.axes, (3, 4))
    fig.canvas.draw()
    found = technique.differences(table)
    for row, level in zip(rows, (1, 2, 3), strict=True):
        names = [text.get_text() for text in row[0].get_yticklabels()]
        assert names == [*found.loc[found["level"] == level, "recipe"].unique(), technique.CHOSEN]
    assert [ax.get_xlabel() for ax in rows[-1]] == [
        "English (points)", "zero-shot (points)", "after adaptation (points)", "doublings of Tr(F)",
    ]  # fmt: skip


def test_what_is_printed_has_a_line_a_recipe(table):
    found = technique.printed(technique.differences(table))
    assert found.loc[(1, "kl=1.4"), "zero-shot"].endswith("] higher")
    assert found.columns.tolist() == [*technique.SHOWN.values()]
    assert len(found) == technique.with_level(table)["label"].nunique() - 3


BASELINE = {  # what compares conditions with the baseline of their seed
    "figure 1": figures.figure1,
    "figure 2": figures.figure2,
    "methods": methods.methods_figure,
    "levels": matched.levels,
    "pairs": lambda table: matched.pairs_with_control(table, "consistency", "none"),
    "regrets": choosing.regret_table,
    "verdicts": decisions.verdicts,
    "best of family": lambda table: best_of_family(per_run(table)),
}


@pytest.mark.parametrize("name", BASELINE)
def test_what_knows_one_baseline_refuses_several_and_takes_one_level(table, name):
    with pytest.raises(FlatlingoError, match=r"several lengths \(none, none\+length=2, none\+length=3\)"):
        BASELINE[name](table)
    once = table[table["compute"].round() == 1]
    BASELINE[name](once)
