"""The README's results: a paragraph and tables for each study, from the data and headlines of its figures."""

from pathlib import Path

import pandas as pd

from flatlingo.report import competence, judging, printing, shapes, slopes
from flatlingo.report.drawing import LANGUAGES
from flatlingo.study.families import family
from readme_blocks import notes
from readme_blocks.figuredata import (
    FIGURES,
    FILES,
    METHODS,
    POWER,
    WIDEST,
    as_shown,
    filled,
    in_words,
    judged_runs,
    markdown,
    of_planned,
    preset_folders,
    read_figure,
    recorded_plans,
)
from readme_blocks.sizes import missed_sizes

ASKED = {  # how the table puts a question that prose asks in other words
    "slope": "per halving of Tr(F)",
    "slope within families": "… within families",
    "gain minus gain from English rows": "gain minus that from as many English rows",
}


def results(figures: Path = FIGURES) -> str:
    """What was measured of each preset whose figures are there, real rows first."""
    parts = [of_preset(preset, folder) for preset, folder in preset_folders(figures).items()]
    pairs = filled(notes.pairs(read_figure(figures / POWER)))
    return "\n".join(part for part in [*parts, of_methods(figures), pairs and f"{pairs}\n"] if part)


def of_preset(preset: str, folder: Path) -> str:
    """A paragraph and a table of verdicts for each plan, from the data and headlines of figures 1 and 2."""
    return "\n".join(_of_plan(preset, folder, plan) for plan in recorded_plans(folder))


def of_methods(figures: Path = FIGURES) -> str:
    """A paragraph and a table of verdicts on plan `methods`, whose conditions are in a figure of their own."""
    figure = read_figure(figures / METHODS)
    if not figure:
        return ""
    runs, headline = pd.DataFrame(figure["data"]), figure["headline"]
    able = competence.counted(runs)
    families = f"{able['family'].nunique() - 1} methods at one or two weights"
    title = _title(f"**{WIDEST}** (preset `mini`, plan `methods`; {families})", runs, "mini", "methods")
    sentences = [title, headline["left_out"], _hanging(headline["verdicts"])]
    sentences += [
        _of_single_seeds(able, None),
        _of_other_kinds(able),
        "[The figure](figures/methods_slopes.png) has each.",
    ]
    return f"{filled(' '.join(part for part in sentences if part))}\n{_verdicts(headline['verdicts'])}"


def _of_plan(preset: str, folder: Path, plan: str) -> str:
    figure, second = (read_figure(folder / name) for name in FILES[plan])
    runs, headline = pd.DataFrame(figure["data"]), figure["headline"]
    able = competence.counted(runs)
    task, encoder = runs[["task", "encoder"]].iloc[0]
    title = _title(f"**{task}**, {encoder} (preset `{preset}`, plan `{plan}`)", runs, preset, plan)
    sentences = [title, missed_sizes(plan) if preset == "mini" else "", headline["left_out"]]
    sentences += [_gains(pd.DataFrame(second["data"]))] if second else []
    sentences += [_hanging(headline["verdicts"]), _of_single_seeds(able, second.get("data"))]
    text = filled(" ".join(sentences))
    return f"{text}\n\n{_conditions(able, second.get('data'))}\n{_verdicts(headline['verdicts'])}"


def _title(name: str, runs: pd.DataFrame, preset: str, plan: str) -> str:
    """A study's name, how many of its conditions count and how many seeds there are."""
    able = competence.counted(runs)
    number = f"{able['label'].nunique()} of {runs['label'].nunique()} conditions count"
    return f"{name}: {number}, {of_planned(runs['seed'].nunique(), preset, plan)}."


def _conditions(able: pd.DataFrame, adapted: list[dict] | None) -> str:
    """Tr(F), accuracies and gain of every condition that counts, mean and standard deviation over its seeds.

    Where conditions differ in how many seeds they have, which makes their means hard to compare, it says how many.
    """
    columns = ["trace", "english_accuracy", "zero_shot_accuracy"]
    if adapted:
        means = shapes.language_means(pd.DataFrame(adapted))[["run_id", "gain", "control_gain"]]
        able, columns = able.merge(means, on="run_id"), [*columns, "gain", "control_gain"]
    shown = printing.summary(able, columns).rename(columns={"runs": "seeds"})
    shown = shown.drop(columns="seeds") if shown["seeds"].nunique() == 1 else shown.astype({"seeds": str})
    return markdown(shown.rename_axis("condition").reset_index())


def _gains(adapted: pd.DataFrame) -> str:
    """The gain of the unregularised model in each language, beside that from English rows."""
    none = adapted[adapted["family"] == "none"].groupby("language", sort=False).mean(numeric_only=True)
    parts = [
        f"{100 * row['gain']:.1f} points in {LANGUAGES.get(code, code)}"
        + (f" ({100 * row['control_gain']:.1f} from as many English rows)" if "control_gain" in row else "")
        for code, row in none.iterrows()
    ]
    return f"The second stage adds {', '.join(parts).replace('-', '−')} to the unregularised model."


def _hanging(rows: list[dict]) -> str:
    """Between which values a slope stays whichever condition is left out."""
    if not rows:
        return ""
    found = as_shown(rows)
    parts = [
        f"of {outcome} from {row['least']} to {row['most']}"
        for (question, outcome), row in found.iterrows()
        if question == "slope" and row["least"]
    ]
    return f"Slopes, whichever condition is left out: {', '.join(parts)}." if parts else ""


def _of_single_seeds(able: pd.DataFrame, adapted: list[dict] | None) -> str:
    """Between which values the slopes of single seeds lie, which an interval over conditions does not know of."""
    runs = judged_runs(able, adapted)
    if runs["seed"].nunique() < 2:
        return ""
    found = slopes.of_seeds(runs)
    ends = found[["least", "most"]].map(judging.signed, digits=2)
    parts = [f"of {outcome} from {row['least']} to {row['most']}" for outcome, row in ends.iterrows()]
    return f"Slopes of single seeds: {', '.join(parts)}."


def _of_other_kinds(able: pd.DataFrame) -> str:
    """The slopes without the methods that make two passes agree, which are most of those that lower Tr(F)."""
    rest = able[able["family"].map(lambda name: family(name).kind) != "consistency"]
    rows = slopes.slopes(rest, n_permutations=1)
    told = [f"{outcome} {judging.interval(row, 2)}" for outcome, row in rows.iterrows()]
    number = rest["label"].nunique()
    return (
        f"Without the methods that make two passes agree ({number} conditions are left): {', '.join(told)}."
        if told
        else ""
    )


def _verdicts(rows: list[dict]) -> str:
    """A table in Markdown: a line for each question that has a value, a column for each outcome."""
    if not rows:
        return ""
    found = as_shown(rows)
    found = found[found.groupby("question")["value"].transform(lambda values: (values != "").any())]
    told = found.apply(in_words, axis=1)
    order = {"index": told.index.unique("question"), "columns": told.index.unique("outcome")}
    table = told.unstack("outcome").reindex(**order).fillna("")
    return "\n" + markdown(table.rename(index=ASKED).rename_axis("").reset_index())
