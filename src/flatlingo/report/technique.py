"""What to do with once, twice and three times the compute of plain fine-tuning, chosen on English rows alone.

Recipes are compared, seed by seed, with plain fine-tuning that takes as much compute or less: of the lengths that fit
the one that is most accurate in English in other seeds, for a budget need not be spent. Intervals are 95 % t intervals
over seeds. No run is left out as incompetent: one that has not learnt its task counts against its recipe.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flatlingo.errors import FlatlingoError
from flatlingo.report.differences import over_seeds
from flatlingo.report.drawing import beside, check, colour_of_kind, legend_of_kinds, mean_and_seeds
from flatlingo.report.judging import TOO_FEW_SEEDS, holm, interval
from flatlingo.report.matched import WORDS, verdict
from flatlingo.report.saving import STYLE
from flatlingo.report.shapes import per_seed
from flatlingo.report.slopes import OUTCOMES

SHOWN = {  # column: its axis
    "english_accuracy": "English",
    "zero_shot_accuracy": "zero-shot",
    "adapted": "after adaptation",
    "log2_trace": "doublings of Tr(F)",
}
JUDGED = ("zero_shot_accuracy", "adapted")  # what a recipe is recommended for
ROUGHLY = 0.1  # how far from a whole multiple of plain fine-tuning's compute a recipe may be, as a share of it
TIMES = {1: "once", 2: "twice", 3: "three times"}
CHOSEN = "chosen on English"


def with_level(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run, with its `level`: compute as a whole multiple of plain fine-tuning's; log2 of Tr(F).

    The table's column `compute` is passes of a step times the length of training (`RunSpec.compute`); a level has plain
    fine-tuning, of the length that takes as much, and other recipes, which are called without their length.

    Args:
        table: of plan `technique`, one row per run, or per run and target language (then the mean over languages).

    Returns:
        With columns `level`, `recipe`, `log2_trace`.

    Raises:
        FlatlingoError: for a missing column, two runs of one recipe and seed, a recipe whose compute is no whole
            multiple, or a level and seed without plain fine-tuning.

    >>> runs = pd.DataFrame({"family": ["none", "sam"], "label": ["none", "sam=0.05+length=0.5"], "seed": 1,
    ...                      "compute": 1.0, "english_accuracy": 0.6, "zero_shot_accuracy": 0.5, "trace": 4.0})
    >>> with_level(runs)[["recipe", "level"]].values.tolist()
    [['plain', 1], ['sam=0.05', 1]]
    """
    runs = per_seed(table, ["compute", "english_accuracy", "zero_shot_accuracy", "trace"])
    level = runs["compute"].round().clip(lower=1).astype(int)
    if (away := (runs["compute"] / level - 1).abs() > ROUGHLY).any():
        label, compute = runs.loc[away, ["label", "compute"]].iloc[0]
        raise FlatlingoError(
            f"recipe {label} takes {compute:.3g} times the compute of plain fine-tuning; change its length, so that it "
            "takes a whole multiple"
        )
    recipe = runs["label"].str.replace(r"\+length=[^+]*", "", regex=True).where(runs["family"] != "none", "plain")
    runs = runs.assign(level=level, recipe=recipe, log2_trace=np.log2(runs["trace"]))
    twice = runs.duplicated(["level", "recipe", "seed"])
    if twice.any():
        raise FlatlingoError(f"level {level[twice].iloc[0]} has recipe {recipe[twice].iloc[0]} twice in a seed")
    plain = runs.loc[runs["recipe"] == "plain", ["level", "seed"]]
    lacking = runs[["level", "seed"]].drop_duplicates().merge(plain, how="left", indicator=True)
    if (lacking := lacking[lacking["_merge"] == "left_only"]).size:
        at, seed = lacking[["level", "seed"]].iloc[0]
        raise FlatlingoError(f"no plain fine-tuning of {at} times the compute in seed {seed} to compare recipes with")
    return runs


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Each recipe minus plain fine-tuning of at most the same compute (`reference`), paired by seed.

    Args:
        table: as for `with_level`.

    Returns:
        A row for each level, recipe and outcome (`SHOWN`, those measured): `level, recipe, family, outcome`; `mean` of
        the recipe (per cent; log2 of nats²), `value, low, high` (points; doublings; no interval from one seed), `p` (t
        test, Holm over the recipes of a level and outcome), `seeds`, and of accuracies `verdict`: higher, lower, no
        difference (the interval lies within ± half a point), undecided. By level, of falling English accuracy.

    Raises:
        FlatlingoError: as for `with_level`.
    """
    runs = with_level(table)
    rows = []
    for level, part in runs.groupby("level"):
        here = minus_reference(runs, level).query("level == @level")
        order = part.groupby("recipe")["english_accuracy"].mean().sort_values(ascending=False).index
        for y in _measured(runs):
            found = [_row(here[here["recipe"] == recipe].set_index("seed")[y], y) for recipe in order.drop("plain")]
            for recipe, one, p in zip(order.drop("plain"), found, holm([one["p"] for one in found]), strict=True):
                of = part[part["recipe"] == recipe]
                names = {"level": level, "recipe": recipe, "family": of["family"].iloc[0], "outcome": y}
                mean = of[y].mean() * (1 if y == "log2_trace" else 100)
                rows.append(names | {"mean": mean} | one | {"p": p, "verdict": _verdict(one, p, y)})
    return pd.DataFrame(rows)


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """What choosing the recipe by English validation accuracy gains over plain fine-tuning (`reference`).

    In each seed the recipe is that of the highest mean English accuracy over the *other* seeds, of all recipes that
    take as much compute or less and that every seed has, plain fine-tuning among them; so no seed both chooses and
    judges. (The choices of two seeds share most of the runs they rest on, which the t interval over seeds does not know
    of.) The plain fine-tuning chosen in this way may be a longer one that is no better in other languages; so what is
    gained over the shortest is told as well.

    Args:
        table: as for `with_level`.

    Returns:
        A row for each level and outcome: `level, outcome, recipe` (chosen on all seeds), `agree` (in how many seeds the
        others choose it too), `plain` (in how many they choose a plain fine-tuning), `value, low, high` (points;
        doublings), `p` (t test; of zero-shot accuracy and accuracy after adaptation Holm over levels and these),
        `seeds`, `once, once_low, once_high` (over plain fine-tuning of the first level), `verdict`. NaN with one seed.

    Raises:
        FlatlingoError: as for `with_level`.
    """
    runs = with_level(table)
    rows, once = [], plain_outcomes(runs, pd.Series(runs["level"].min(), index=runs["seed"].unique()))
    for level in sorted(runs["level"].unique()):
        bought = runs[runs["level"] <= level]
        bought = bought.assign(recipe=bought["recipe"] + _less(bought["level"], level))
        english = bought.pivot(index="seed", columns="recipe", values="english_accuracy").dropna(axis=1)
        by_seed = {seed: english.drop(index=seed).mean().idxmax() for seed in english.index if len(english) > 1}
        everywhere = english.mean().idxmax()
        picked = bought.set_index(["seed", "recipe"]).loc[[*by_seed.items()]].droplevel("recipe")
        plain = plain_outcomes(runs, reference(runs, level))
        number = {
            "agree": [*by_seed.values()].count(everywhere),
            "plain": int((picked["family"] == "none").sum()),
        }
        for y in _measured(runs):
            over = over_seeds(_scale(y) * (picked[y] - once[y].reindex(picked.index)))
            shortest = {"once": over.value, "once_low": over.low, "once_high": over.high}
            names = {"level": level, "outcome": y, "recipe": everywhere} | number
            rows.append(names | _row(picked[y] - plain[y].reindex(picked.index), y) | shortest)
    found = pd.DataFrame(rows)
    judged = found["outcome"].isin(JUDGED)
    found.loc[judged, "p"] = holm([*found.loc[judged, "p"]])
    return found.assign(verdict=[_verdict(row, row["p"], row["outcome"]) for row in found.to_dict("records")])


def recommendation(found: pd.DataFrame) -> str:
    """What to do, in a sentence for zero-shot accuracy and one for accuracy after adaptation, be it that none is known.

    Args:
        found: what `chosen` gave.
    """
    return " ".join(_advice(found[found["outcome"] == y], OUTCOMES[y]) for y in JUDGED if (found["outcome"] == y).any())


def printed(found: pd.DataFrame) -> pd.DataFrame:
    """What `differences` or `chosen` found, to show: a line for each level and recipe, a column for each outcome.

    What was chosen is a mean over recipes, since each seed's is chosen on the others; the line names the recipe that is
    chosen on all seeds, and in how many seeds the others choose it too.
    """
    if "agree" in found:
        number = found["agree"].astype(str) + " of " + found["seeds"].astype(str)
        found = found.assign(recipe=f"{CHOSEN} (" + found["recipe"] + " in " + number + ")")
    text = found.apply(lambda row: f"{interval(row, 1)} {row['verdict']}".strip(), axis=1)
    cells = found.assign(text=text).pivot(index=["level", "recipe"], columns="outcome", values="text")
    order = pd.MultiIndex.from_frame(found[["level", "recipe"]].drop_duplicates())
    return cells.reindex(index=order, columns=[y for y in SHOWN if y in cells]).rename(columns=SHOWN)


def technique_figure(table: pd.DataFrame) -> Figure:
    """Recipes minus plain fine-tuning (`reference`): a row of panels for each level, a column for each outcome.

    Large dots are means over seeds, small ones seeds, lines 95 % t intervals over three seeds or more. The most
    accurate in English stands on top; under the line, what choosing by English accuracy in other seeds gains.

    Args:
        table: as for `with_level`, with `weight`.

    Raises:
        FlatlingoError: as for `with_level`, and for an empty table or an unknown family.
    """
    check(table, ["run_id", "family", "weight", "label", "seed", "compute", "trace"])
    runs, found, choice = with_level(table), differences(table), chosen(table)
    columns = _measured(runs)
    sizes = found.groupby("level")["recipe"].nunique() + 1
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            len(sizes), len(columns), figsize=(7.2, 1.2 + sum(0.15 * n + 0.35 for n in sizes)),
            height_ratios=sizes + 1, sharex="col", sharey="row", squeeze=False,
        )  # fmt: skip
        for row, level in zip(axes, sizes.index, strict=True):
            gaps = minus_reference(runs, level).query("level == @level")
            at = found[found["level"] == level]
            places = {recipe: -i for i, recipe in enumerate(at["recipe"].unique())}
            last = -len(places) - 0.3
            for ax, y in zip(row, columns, strict=True):
                ax.axvline(0, color="0.4", linewidth=0.8, zorder=0.5)
                ax.axhline(last + 0.65, color="0.7", linewidth=0.5)
                for one in at[at["outcome"] == y].to_dict("records"):
                    name, colour = one["recipe"], colour_of_kind(one["family"])
                    seeds = gaps.loc[gaps["recipe"] == name, y] * _scale(y)
                    mean_and_seeds(ax, places[name], one, seeds, colour=colour, label=name)
                (one,) = choice[(choice["level"] == level) & (choice["outcome"] == y)].to_dict("records")
                mean_and_seeds(ax, last, one, [], colour="0", label=CHOSEN)
            row[0].set_yticks([*places.values(), last], [*places, CHOSEN])
            for ax in row:
                ax.tick_params(axis="y", length=0)
            row[0].set_ylim(last - 0.6, 0.6)
            beside(row[0], f"{_times(level)} the compute", (0, 1), (0, 3), "axes fraction")
        for ax, y in zip(axes[-1], columns, strict=True):
            ax.set_xlabel(SHOWN[y] if y == "log2_trace" else f"{SHOWN[y]} (points)")
        legend_of_kinds(fig, found["family"])
    return fig


def _measured(runs: pd.DataFrame) -> list[str]:
    return [y for y in SHOWN if y in runs and runs[y].notna().any()]


def _scale(y: str) -> float:
    """Accuracies become points."""
    return 1 if y == "log2_trace" else 100


def reference(runs: pd.DataFrame, level: int) -> pd.Series:
    """The plain fine-tuning that recipes of a level are held against, by seed, as its level.

    Of those that the budget can buy, and that every seed has, the one that is most accurate in English in the *other*
    seeds; with one seed that of the level itself.

    Args:
        runs: as `with_level` gives them.
        level: of the budget.
    """
    plain = runs[(runs["recipe"] == "plain") & (runs["level"] <= level)]
    english = plain.pivot(index="seed", columns="level", values="english_accuracy").dropna(axis=1)
    best = {seed: english.drop(index=seed).mean().idxmax() for seed in english.index if len(english) > 1}
    return pd.Series(best or level, index=english.index)


def minus_reference(runs: pd.DataFrame, level: int) -> pd.DataFrame:
    """The runs that a budget can buy, their outcomes less those of the `reference` of their seed."""
    plain, bought = plain_outcomes(runs, reference(runs, level)), runs[runs["level"] <= level]
    return bought.assign(**(bought[plain.columns] - plain.loc[bought["seed"]].to_numpy()))


def plain_outcomes(runs: pd.DataFrame, at: pd.Series) -> pd.DataFrame:
    """What plain fine-tuning reaches in each seed, of the level that is given for it."""
    plain = runs[(runs["recipe"] == "plain") & (runs["level"] == runs["seed"].map(at))]
    return plain.set_index("seed")[_measured(runs)]


def _less(levels: pd.Series, level: int) -> pd.Series:
    """What is said beside a recipe that takes less than the budget."""
    return levels.map(lambda taken: "" if taken == level else f", {_times(taken)}")


def _row(gaps: pd.Series, y: str) -> dict[str, float]:
    """Mean difference over seeds, its interval and the p-value of a t test."""
    return over_seeds(_scale(y) * gaps).row()


def _verdict(found: dict[str, float], p: float, y: str) -> str:
    return "" if y == "log2_trace" else verdict(found, p)


def _advice(found: pd.DataFrame, outcome: str) -> str:
    """The sentence on one outcome."""
    if (found["verdict"] == TOO_FEW_SEEDS).any():
        return f"For {outcome}, nothing can be recommended: {TOO_FEW_SEEDS}."
    lines = found.to_dict("records")
    stands = [row for row in lines if row["verdict"] == WORDS[0]]
    others = ", ".join(
        f"{interval(row, 1)} points at {_times(row['level'])} the compute ({row['verdict']}{_beside(row)})"
        for row in lines
        if row["verdict"] != WORDS[0]
    )
    if not stands:
        return (
            f"For {outcome} no recipe can be recommended; the one most accurate in English in the other seeds, minus "
            f"plain fine-tuning of no more compute, its length chosen in the same way: {others}."
        )
    advice = ", ".join(
        f"{_times(row['level'])} {row['recipe']} (chosen in {row['agree']} of {row['seeds']} seeds; {interval(row, 1)} "
        f"points{_beside(row)})"
        for row in stands
    )
    rest = f"; no recommendation: {others}" if others else ""
    return (
        f"For {outcome}, the recipe most accurate in English in the other seeds beats plain fine-tuning of no more "
        f"compute, its length chosen in the same way: {advice}{rest}."
    )


def _beside(row: dict) -> str:
    """How often plain fine-tuning itself is chosen, and what is gained over the shortest where that is another."""
    itself = f"; in {row['plain']} of {row['seeds']} seeds it is plain itself" if row["plain"] else ""
    other = not np.isclose(row["once"], row["value"])
    once = {"value": row["once"], "low": row["once_low"], "high": row["once_high"]}
    return itself + (f"; over the shortest plain {interval(once, 1)}" if other else "")


def _times(level: int) -> str:
    return TIMES.get(level, f"{level} times")
