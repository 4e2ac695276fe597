"""What the README opens with: a few sentences, a table of slopes study by study, and notes on it."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from flatlingo.report import answers, competence, judging, slopes
from flatlingo.study.families import family
from readme_blocks import notes
from readme_blocks.figuredata import (
    CHOICES,
    EARLY,
    FIGURES,
    FILES,
    MEASURES,
    METHODS,
    OPEN,
    POWER,
    SETTING,
    TECHNIQUE,
    WIDEST,
    as_shown,
    filled,
    in_words,
    joined,
    judged_runs,
    markdown,
    of_planned,
    preset_folders,
    read_figure,
    recorded_plans,
)
from readme_blocks.sizes import without_gap

NAMED = ("consistency", "fisher_penalty")
HEADS = {  # outcome: over the column of points per halving of Tr(F)
    "English accuracy": "English accuracy (figure 1)",
    "zero-shot accuracy": "zero-shot accuracy",
    "gain": "gain of a second stage (figure 2)",
    "accuracy after adaptation": "accuracy after it",
}
WEIGHT = "weight"
ROWS = HEADS | {WEIGHT: "does Tr(F) fall with the weight?"}
SAID = {  # of one outcome, of several
    "rises": ("rises", "rise"),
    "falls": ("falls", "fall"),
    "no effect": ("stays within half a point", "stay within half a point"),
}


def lead(figures: Path = FIGURES) -> str:
    """What is said of the paper's claims: in a few sentences, study by study, and what an open answer means."""
    columns, found, over = _studies(figures)
    setting = slopes_where_set(read_figure(figures / SETTING))
    if len(setting):
        title = f"mini-nli, Tr(F) set by one term, {of_planned(setting['seeds'].iloc[0], 'mini', 'intervention')}"
        columns[title] = _column(setting, "")
    planned = pd.concat({study: rows for study, rows in found.items() if study != WIDEST})
    told = [_over_regularisers(planned, over), _over_methods(found.get(WIDEST), over.get(WIDEST)), by_setting(setting)]
    summary = filled(f"**{' '.join(filter(None, told))}**")
    table = pd.DataFrame({"points per halving of Tr(F)": ROWS} | columns).reindex([*ROWS]).fillna("")
    return f"\n{summary}\n\n{markdown(table)}\n{_notes(figures, pd.concat(found))}\n"


def _studies(figures: Path) -> tuple[dict[str, dict], dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """The table's columns by their titles; and by study its verdicts, over conditions, and its slopes over seeds."""
    columns, found, over = {}, {}, {}
    for preset, folder in preset_folders(figures).items():
        for plan in recorded_plans(folder):
            first, second = (read_figure(folder / name) for name in FILES[plan])
            runs = pd.DataFrame(first["data"])
            task, encoder = runs[["task", "encoder"]].iloc[0]
            found[task] = as_shown(first["headline"]["verdicts"])
            over[task] = slopes.of_seeds(judged_runs(competence.counted(runs), second.get("data")))
            gap = without_gap(plan) if preset == "mini" else ""
            title = f"{task}, {encoder}, {of_planned(runs['seed'].nunique(), preset, plan)}{gap}"
            columns[title] = _column(found[task], "slope", over[task]) | _weights(runs)
    if methods := read_figure(figures / METHODS):
        runs = pd.DataFrame(methods["data"])
        found[WIDEST] = as_shown(methods["headline"]["verdicts"])
        over[WIDEST] = slopes.of_seeds(competence.counted(runs))
        title = f"{WIDEST}, {of_planned(runs['seed'].nunique(), 'mini', 'methods')}"
        columns[title] = _column(found[WIDEST], "slope", over[WIDEST])
    return columns, found, over


def _notes(figures: Path, found: pd.DataFrame) -> str:
    """The notes under the table, as a list."""
    intervention, measures = read_figure(figures / SETTING), read_figure(figures / MEASURES)
    told = [
        notes.by_target(intervention),
        notes.besides(intervention),
        notes.choosing(read_figure(figures / CHOICES)),
        notes.early_sign(read_figure(figures / EARLY), measures),
        notes.trace_or_kl(measures),
        notes.power(read_figure(figures / POWER), read_figure(figures / FILES["nli"][0])),
        notes.advice(read_figure(figures / TECHNIQUE)),
        _further(found[found.index.get_level_values("question") != "slope"]),
    ]
    return "\n".join(textwrap.indent(filled(note), "  ").replace("  ", "* ", 1) for note in told if note)


def _column(found: pd.DataFrame, question: str, over: pd.DataFrame | None = None) -> dict[str, str]:
    """A study's cells, by outcome: what is found of a question, without the p-value, and the interval over seeds."""
    rows = found[found.index.get_level_values("question") == question].droplevel("question")
    cells = {outcome: in_words(row) for outcome, row in rows.assign(p="").iterrows()}
    ends = {} if over is None else over.dropna(subset=["low"])[["low", "high"]].map(judging.signed, digits=2).T
    return cells | {name: f"{cells[name]}; seeds [{ends[name]['low']}, {ends[name]['high']}]" for name in ends}


def _weights(runs: pd.DataFrame) -> dict[str, str]:
    """In how many seeds Tr(F) falls with the weight, of the two families that the paper asks this of."""
    falls = answers.trace_falls(runs).reindex([family(name).title for name in NAMED])["falls in seeds"].dropna()
    return {WEIGHT: "; ".join(f"{title}: in {number} seeds" for title, number in falls.items())}


def _over_regularisers(found: pd.DataFrame, over: dict[str, pd.DataFrame]) -> str:
    """What comparing regularisers decides: how many slopes of how many, which, and what of it holds over seeds."""
    verdicts = _of_slopes(found)
    known = {(task, outcome): word for (task, outcome), word in verdicts.items() if word in SAID}
    told = [f"{outcome} {SAID[word][0]} ({task})" for (task, outcome), word in known.items()]
    which = f": as Tr(F) falls, {joined(told)}" if told else ""
    held = [f"{outcome} ({task})" for (task, outcome), word in known.items() if over[task]["verdict"][outcome] == word]
    also = _over_seeds(held, len(told))
    return f"Comparing regularisers decides {len(told) or 'none'} of {len(verdicts)} slopes{which}{also}."


def _over_methods(found: pd.DataFrame | None, over: pd.DataFrame | None) -> str:
    """What the widest comparison of regularisers, which came later, decides, and what of it holds over seeds."""
    if found is None:
        return ""
    verdicts = _of_slopes(found)
    known = {outcome: word for outcome, word in verdicts.items() if word in SAID}
    told = [f"{outcome} {SAID[word][0]}" for outcome, word in known.items()]
    held = [outcome for outcome, word in known.items() if over["verdict"][outcome] == word]
    which = f": {joined(told)}{_over_seeds(held, len(told))}" if told else ""
    return f"Every method, a comparison made later, decides {len(told) or 'none'} of {len(verdicts)}{which}."


def _over_seeds(held: list[str], number: int) -> str:
    """Which of so many verdicts are the same where seeds are what is sampled, and not conditions."""
    if not number:
        return ""
    which = f", {joined(held)}" if 0 < len(held) < number else ""
    return f"; over seeds instead of conditions {len(held) or 'none'} of these {number}{which}"


def _of_slopes(found: pd.DataFrame) -> pd.Series:
    """The verdicts on slopes, by outcome."""
    return found.loc[found.index.get_level_values("question") == "slope", "verdict"].droplevel("question")


def slopes_where_set(figure: dict) -> pd.DataFrame:
    """The slopes of plan `intervention`, as they are shown, by what is held and outcome; none if it is not recorded."""
    rows = figure.get("headline", {}).get("verdicts")
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows)
    found = found.assign(question=found["held"], outcome=found["outcome"].map(slopes.OUTCOMES))
    return as_shown(found.to_dict("records")).assign(rests_on=found["rests_on"].to_numpy())


def by_setting(found: pd.DataFrame) -> str:
    """The outcomes that rise, fall or stay the same as Tr(F) falls by being set, and what of it holds at equal loss.

    And what rests on a single target.
    """
    if found.empty:
        return ""
    said = {held: dict(part["verdict"].droplevel("question")) for held, part in found.groupby("question")}
    settled = {name: said[""][name] for name in HEADS if said[""].get(name) in SAID}
    if not settled:
        return "Setting Tr(F) by one term (mini-nli) is undecided too."
    parts = {word: [name for name, verdict in settled.items() if verdict == word] for word in SAID}
    effects = "; ".join(f"{joined(names)} {SAID[word][len(names) > 1]}" for word, names in parts.items() if names)
    held = [name for name, verdict in settled.items() if said["at equal loss"].get(name) == verdict]
    too = "adjusted for training loss the same holds"
    too += "" if [*settled] == held else f" of {joined(held)}"
    alone = _without(found.loc[""], settled) or ", whichever target is left out"
    also = too + _without(found.loc["at equal loss"], held) if held else "adjusted for training loss this is undecided"
    return (
        f"Setting Tr(F) by one term (mini-nli) decides {len(settled)} of {len(said[''])}: as it falls, "
        f"{effects}{alone}; {also}."
    )


def _without(found: pd.DataFrame, names: Iterable[str]) -> str:
    """That not all of what is said of some outcomes holds without one of the targets; "" if it does."""
    targets = sorted({target for name in names for target in found.loc[name, "rests_on"]}, reverse=True)
    listed = " or ".join(f"{target:g}" for target in targets)
    return f", but not all of it without the target {listed}" if targets else ""


def _further(found: pd.DataFrame) -> str:
    """How many questions beside the slopes have an answer."""
    known = found.loc[found["low"] != "", "verdict"]
    decided = known[~known.isin(OPEN)]
    none = decided.isin(["no effect", "no difference"]).sum()
    return (
        f"Of {len(known)} further questions that have an interval, {len(decided)} are decided, {none} of these by no "
        "effect or no difference ([below](#results))."
    )
