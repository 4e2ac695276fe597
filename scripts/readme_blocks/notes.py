"""The notes under the README's first table, each from the data of a figure or two; "" where these are not there."""

import numpy as np
import pandas as pd

from flatlingo.report import competence, judging, printing, slopes
from flatlingo.report.slopes import OUTCOMES
from readme_blocks.figuredata import joined, of_planned

ENGLISH, ZERO_SHOT = OUTCOMES["english_accuracy"], OUTCOMES["zero_shot_accuracy"]
NAMES = {"methods": "every method", "nli": "mini-nli", "paraphrase": "mini-paraphrase"}


def by_target(figure: dict) -> str:
    """Zero-shot accuracy where Tr(F) was set, minus that of plain training, target by target from the highest."""
    rows = [row for row in figure.get("data", {}).get("effects", []) if row["outcome"] == "zero_shot_accuracy"]
    if not rows:
        return ""
    rows.sort(key=lambda row: -row["trace"])
    told = [f"{judging.signed(row['value'], 1)} at {printing.rounded(row['trace'])} ({row['verdict']})" for row in rows]
    plain = printing.rounded(rows[0]["plain"])
    return (
        f"Zero-shot accuracy where Tr(F) was set, minus that of plain training at {plain}, by the Tr(F) reached: "
        f"{joined(told)} points ([6](notebooks/6_using_the_trace.ipynb))."
    )


def besides(figure: dict) -> str:
    """What the term that sets Tr(F) does besides, at equal Tr(F), to zero-shot accuracy."""
    rows = [row for row in figure.get("headline", {}).get("besides", []) if row["outcome"] == "zero_shot_accuracy"]
    if not rows or rows[0]["low"] is None:
        return ""
    verdicts = {row["held"]: row["verdict"] for row in rows}
    return (
        "Side effect of that term: at equal Tr(F), runs with a target minus plain training differ by "
        f"{judging.interval(rows[0], 1)} points of zero-shot accuracy ({verdicts['']}; adjusted for training loss: "
        f"{verdicts['at equal loss']})."
    )


def choosing(figure: dict) -> str:
    """What choosing the checkpoint to adapt by Tr(F) alone loses in mini-nli, and what choosing otherwise does."""
    rows = [row for row in figure.get("data", {}).get("nli", []) if row["group"] == "regret"]
    found = {row["label"]: row for row in rows if row["low"] is not None}
    names = {"smallest Tr(F)": "the flattest", "at random": "one drawn at random"}
    names["highest English accuracy"] = "the most accurate in English"
    if not found.keys() >= names.keys():
        return ""
    told = [f"{words} {_unsigned(found[label])}" for label, words in names.items()]
    return (
        "Not a rule for choosing: of the competent checkpoints of a seed (mini-nli), the one that is adapted ends so "
        f"many points below the best: {joined(told)} ([6](notebooks/6_using_the_trace.ipynb))."
    )


def _unsigned(row: dict) -> str:
    """`8.0 [3.9, 12.5]`."""
    return "{value:.1f} [{low:.1f}, {high:.1f}]".format(**row)


def early_sign(early: dict, late: dict) -> str:
    """Whether Tr(F) goes with zero-shot accuracy early in training, and with which sign, beside that at its end."""
    plans = [plan for plan in NAMES if early.get("data", {}).get(plan) and late.get("data", {}).get(plan)]
    if not plans:
        return ""
    share = min(row["share"] for row in early["data"][plans[0]] if row["share"] > 0)
    wanted = {"measure": "Tr(F)", "outcome": "zero_shot_accuracy", "within": "seed", "share": share}
    first = joined([f"{_only(early['data'][plan], wanted)} ({NAMES[plan]})" for plan in plans])
    wanted = {"measure": "Tr(F)", "outcome": ZERO_SHOT, "within": "seed"}
    last = joined([f"{_only(late['data'][plan], wanted)}" for plan in plans])
    return (
        "Exploration, not corrected: early in training FUN with Fisher (Liu et al. 2024) reports the other sign. Rank "
        f"correlation of Tr(F) with zero-shot accuracy at {100 * share:g} % of the training: {first}; at its end: "
        f"{last} ([6](notebooks/6_using_the_trace.ipynb))."
    )


def _only(rows: list[dict], wanted: dict[str, object]) -> str:
    """The value with its interval of the one row that has what is wanted."""
    (row,) = (row for row in rows if all(row[name] == value for name, value in wanted.items()))
    return judging.interval({name: np.nan if row[name] is None else row[name] for name in ("value", "low", "high")}, 2)


def trace_or_kl(figure: dict) -> str:
    """What Tr(F) and the KL of two segmentations go with, each at equal values of the other."""
    found = {
        (plan, row["measure"], row["outcome"]): row
        for plan, rows in figure.get("headline", {}).get("trace or KL", {}).items()
        for row in rows
        if row["within"] != "seed" and row["low"] is not None
    }
    plans = [plan for plan in NAMES if any(key[0] == plan for key in found)]
    if not plans:
        return ""
    trace, kl = dict.fromkeys(key[1] for key in found)
    told = {
        one: joined([f"{judging.interval(found[plan, one, ENGLISH], 2)} ({NAMES[plan]})" for plan in plans])
        for one in (trace, kl)
    }
    others = [row for (_, _, outcome), row in found.items() if outcome == ZERO_SHOT]
    open_ones = sum(row["low"] <= 0 <= row["high"] for row in others)
    return (
        "Exploration, not corrected: is it Tr(F), or the KL of predictions for two segmentations, which consistency "
        f"trains? Rank correlation with English accuracy of Tr(F) at equal KL: {told[trace]}; of the KL at equal "
        "Tr(F): "
        f"{told[kl]}. With zero-shot accuracy {open_ones} of the {len(others)} such intervals include 0 "
        "([6](notebooks/6_using_the_trace.ipynb))."
    )


def power(figure: dict, study: dict) -> str:
    """How often a true slope of one point would be found by a study like that of mini-nli, and on what that hangs."""
    known = figure.get("headline", {}).get("one point per halving")
    if not known:
        return ""
    number = round(known["right"] * known["studies"])
    return (
        f"*Undecided* is no evidence against: of {known['studies']} made-up studies of mini-nli's size, in which "
        f"English accuracy does rise by one point per halving, {number} find it. (Their intervals reach "
        f"{known['half_width']:.1f} points to either side, by the median; "
        f"[5](notebooks/5_beyond_the_paper.ipynb).){_hinge(study)}"
    )


def _hinge(figure: dict) -> str:
    """The condition that a study's slope of English accuracy hangs on most."""
    if not figure:
        return ""
    runs = competence.counted(pd.DataFrame(figure["data"]))
    every = slopes.slope(runs, "english_accuracy", n_permutations=1).value
    parts = {label: runs[runs["label"] != label] for label in runs["label"].unique()}
    left = {label: slopes.slope(part, "english_accuracy", n_permutations=1).value for label, part in parts.items()}
    label = max(left, key=lambda name: abs(left[name] - every))
    return (
        f" mini-nli's own slope hangs on one condition: without `{label}` it is {judging.signed(left[label], 2)} "
        f"instead of {judging.signed(every, 2)}."
    )


def pairs(figure: dict) -> str:
    """How often a study like that of mini-nli finds two families different at equal Tr(F) that are not."""
    known = figure.get("headline", {}).get("equal families")
    if not known:
        return ""
    number = round(known["wrong"] * known["studies"])
    return (
        "*Higher* and *lower* of a pair speak of the weights that were run, not of their families: of "
        f"{known['studies']} made-up studies in which families do not differ, but single weights do as in mini-nli, "
        f"{number} find consistency and Fisher penalty different at equal Tr(F) "
        "([5](notebooks/5_beyond_the_paper.ipynb))."
    )


def advice(figure: dict) -> str:
    """What to do with more compute, as notebook 6 found it in plan `technique`."""
    if not figure:
        return ""
    seeds = of_planned(max(row["seeds"] for row in figure["data"]["chosen"]), "mini", "technique")
    return f"With more compute (mini-nli, {seeds}): {figure['headline']['recommendation']}"
