"""The numbers in the README: results from `figures/*.json`, calibrations, a tour that is really taken. None is typed.

Run by `make record`; tests compare the README with both.
"""

import json
import subprocess
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.files import RECORDED, ROOT, replacing
from flatlingo.report import answers, competence, decisions, judging, printing, shapes, slopes
from flatlingo.report.drawing import LANGUAGES
from flatlingo.report.regimes import regime
from flatlingo.study.families import family

TOUR = (
    "flatlingo train --plan paraphrase --output sharp",
    "flatlingo train --plan paraphrase --family consistency --weight 2.7 --output flat",
    "flatlingo rank sharp flat --task mini-paraphrase",
)
NAMED = ("consistency", "fisher_penalty")
FIGURES = ROOT / "figures"
FILES = {  # figures 1 and 2 of each plan, as the notebooks name them
    "nli": ("figure1.json", "figure2-nli.json"),
    "paraphrase": ("figure1-paraphrase.json", "figure2.json"),
}
ASKED = {  # how the table puts a question that prose asks in other words
    "slope": "per halving of Tr(F)",
    "slope within families": "… within families",
    "gain minus gain from English rows": "gain minus that from as many English rows",
}
HEADS = {  # outcome: over the column of points per halving of Tr(F)
    "English accuracy": "English accuracy (figure 1)",
    "zero-shot accuracy": "zero-shot accuracy",
    "gain": "gain of a second stage (figure 2)",
    "accuracy after adaptation": "accuracy after it",
}
ENGLISH, ZERO_SHOT = [*HEADS][:2]
WEIGHT = "weight"
ROWS = HEADS | {WEIGHT: "does Tr(F) fall with the weight?"}
SAID = {  # of one outcome, of several
    "rises": ("rises", "rise"),
    "falls": ("falls", "fall"),
    "no effect": ("stays within half a point", "stay within half a point"),
}
SEEDS = {("small", "nli"): 3, ("small", "paraphrase"): 2, ("mini", "methods"): 5}  # planned; of others ten
SETTING, TECHNIQUE, POWER = "using_intervention.json", "using_technique.json", "beyond.json"
MEASURES, CHOICES, EARLY = "using_predictors.json", "using_choices.json", "using_early.json"
NAMES = {"methods": "every method", "nli": "mini-nli", "paraphrase": "mini-paraphrase"}
METHODS, WIDEST = "methods_slopes.json", "mini-nli, every method"
OPEN = ("undecided", judging.TOO_FEW_SEEDS, judging.TOO_FEW)
UNITS = {"wrong labels reproduced": ""}  # of the regimes; the others are in points


def results(figures: Path = FIGURES) -> str:
    """What was measured of each preset whose figures are there, real rows first."""
    parts = [of_preset(preset, folder) for preset, folder in _folders(figures).items()]
    pairs = _filled(_pairs(_read(figures / POWER)))
    return "\n".join(part for part in [*parts, of_methods(figures), pairs and f"{pairs}\n"] if part)


def lead(figures: Path = FIGURES) -> str:
    """What is said of the paper's claims: in a few sentences, study by study, and what an open answer means."""
    columns, found, over = {"points per halving of Tr(F)": ROWS}, {}, {}
    for preset, folder in _folders(figures).items():
        for plan in _recorded(folder):
            figure = _read(folder / FILES[plan][0])
            runs = pd.DataFrame(figure["data"])
            task, encoder = runs[["task", "encoder"]].iloc[0]
            found[task] = _printed(figure["headline"]["verdicts"])
            over[task] = slopes.of_seeds(_judged(competence.counted(runs), _read(folder / FILES[plan][1]).get("data")))
            gap = _without_gap(plan) if preset == "mini" else ""
            title = f"{task}, {encoder}, {_seeds(runs, preset, plan)}{gap}"
            columns[title] = _column(found[task], "slope", over[task]) | _weights(runs)
    planned = pd.concat(found) if found else pd.DataFrame()
    methods = _read(figures / METHODS)
    if methods:
        runs = pd.DataFrame(methods["data"])
        found[WIDEST] = _printed(methods["headline"]["verdicts"])
        title = f"{WIDEST}, {_seeds(runs, 'mini', 'methods')}"
        over[WIDEST] = slopes.of_seeds(competence.counted(runs))
        columns[title] = _column(found[WIDEST], "slope", over[WIDEST])
    intervention = _read(figures / SETTING)
    setting = _setting(intervention)
    if len(setting):
        title = f"mini-nli, Tr(F) set by one term, {setting['seeds'].iloc[0]} of 10 seeds"
        columns[title] = _column(setting, "")
    everything = pd.concat(found)
    slope = everything.index.get_level_values("question") == "slope"
    told = [_over_regularisers(planned, over), _over_methods(found.get(WIDEST), over.get(WIDEST)), _by_setting(setting)]
    summary = " ".join(filter(None, told))
    table = pd.DataFrame(columns).reindex([*ROWS]).fillna("")
    notes = [_by_target(intervention), _besides(intervention), _choosing(_read(figures / CHOICES))]
    notes += [_early(_read(figures / EARLY), _read(figures / MEASURES)), _trace_or_kl(_read(figures / MEASURES))]
    notes += [_power(_read(figures / POWER), _read(figures / "figure1.json"))]
    notes += [_advice(_read(figures / TECHNIQUE)), _further(everything[~slope])]
    listed = "\n".join(textwrap.indent(_filled(note), "  ").replace("  ", "* ", 1) for note in notes if note)
    return f"\n{_filled(f'**{summary}**')}\n\n{_markdown(table)}\n{listed}\n"


def _read(path: Path) -> dict:
    """A figure's JSON file; nothing where it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, the names of its columns on top."""
    lines = [[*table.columns], ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _column(found: pd.DataFrame, question: str, over: pd.DataFrame | None = None) -> dict[str, str]:
    """A study's cells, by outcome: what is found of a question, without the p-value, and the interval over seeds."""
    rows = found[found.index.get_level_values("question") == question].droplevel("question")
    cells = {outcome: _told(row) for outcome, row in rows.assign(p="").iterrows()}
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
    which = f": as Tr(F) falls, {_listed(told)}" if told else ""
    held = [f"{outcome} ({task})" for (task, outcome), word in known.items() if over[task]["verdict"][outcome] == word]
    also = _over_seeds(held, len(told))
    return f"Comparing regularisers decides {len(told) or 'none'} of {len(verdicts)} slopes{which}{also}."


def _over_seeds(held: list[str], number: int) -> str:
    """Which of so many verdicts are the same where seeds are what is sampled, and not conditions."""
    if not number:
        return ""
    which = f", {_listed(held)}" if 0 < len(held) < number else ""
    return f"; over seeds instead of conditions {len(held) or 'none'} of these {number}{which}"


def _of_slopes(found: pd.DataFrame) -> pd.Series:
    """The verdicts on slopes, by outcome."""
    return found.loc[found.index.get_level_values("question") == "slope", "verdict"].droplevel("question")


def _over_methods(found: pd.DataFrame | None, over: pd.DataFrame | None) -> str:
    """What the widest comparison of regularisers, which came later, decides, and what of it holds over seeds."""
    if found is None:
        return ""
    verdicts = _of_slopes(found)
    known = {outcome: word for outcome, word in verdicts.items() if word in SAID}
    told = [f"{outcome} {SAID[word][0]}" for outcome, word in known.items()]
    held = [outcome for outcome, word in known.items() if over["verdict"][outcome] == word]
    which = f": {_listed(told)}{_over_seeds(held, len(told))}" if told else ""
    return f"Every method, a comparison made later, decides {len(told) or 'none'} of {len(verdicts)}{which}."


def _further(found: pd.DataFrame) -> str:
    """How many questions beside the slopes have an answer."""
    known = found.loc[found["low"] != "", "verdict"]
    decided = known[~known.isin(OPEN)]
    none = decided.isin(["no effect", "no difference"]).sum()
    return (
        f"Of {len(known)} further questions that have an interval, {len(decided)} are decided, {none} of these by no "
        "effect or no difference ([below](#results))."
    )


def _advice(figure: dict) -> str:
    """What to do with more compute, as notebook 6 found it in plan `technique`."""
    if not figure:
        return ""
    seeds = max(row["seeds"] for row in figure["data"]["chosen"])
    return f"With more compute (mini-nli, {seeds} of 10 seeds): {figure['headline']['recommendation']}"


def _seeds(runs: pd.DataFrame, preset: str, plan: str) -> str:
    """How many seeds there are of those planned: `5 of 10 seeds`."""
    return f"{runs['seed'].nunique()} of {SEEDS.get((preset, plan), 10)} seeds"


def _setting(figure: dict) -> pd.DataFrame:
    """The slopes of plan `intervention`, as they are shown, by what is held and outcome; none if it is not recorded."""
    rows = figure.get("headline", {}).get("verdicts")
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows)
    found = found.assign(question=found["held"], outcome=found["outcome"].map(slopes.OUTCOMES))
    return _printed(found.to_dict("records")).assign(rests_on=found["rests_on"].to_numpy())


def _by_setting(found: pd.DataFrame) -> str:
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
    effects = "; ".join(f"{_listed(names)} {SAID[word][len(names) > 1]}" for word, names in parts.items() if names)
    held = [name for name, verdict in settled.items() if said["at equal loss"].get(name) == verdict]
    too = "adjusted for training loss the same holds"
    too += "" if [*settled] == held else f" of {_listed(held)}"
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


def _by_target(figure: dict) -> str:
    """Zero-shot accuracy where Tr(F) was set, minus that of plain training, target by target from the highest."""
    rows = [row for row in figure.get("data", {}).get("effects", []) if row["outcome"] == "zero_shot_accuracy"]
    if not rows:
        return ""
    rows.sort(key=lambda row: -row["trace"])
    told = [f"{judging.signed(row['value'], 1)} at {printing.rounded(row['trace'])} ({row['verdict']})" for row in rows]
    plain = printing.rounded(rows[0]["plain"])
    return (
        f"Zero-shot accuracy where Tr(F) was set, minus that of plain training at {plain}, by the Tr(F) reached: "
        f"{_listed(told)} points ([6](notebooks/6_using_the_trace.ipynb))."
    )


def _besides(figure: dict) -> str:
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


def _choosing(figure: dict) -> str:
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
        f"many points below the best: {_listed(told)} ([6](notebooks/6_using_the_trace.ipynb))."
    )


def _unsigned(row: dict) -> str:
    """`8.0 [3.9, 12.5]`."""
    return "{value:.1f} [{low:.1f}, {high:.1f}]".format(**row)


def _early(early: dict, late: dict) -> str:
    """Whether Tr(F) goes with zero-shot accuracy early in training, and with which sign, beside that at its end."""
    plans = [plan for plan in NAMES if early.get("data", {}).get(plan) and late.get("data", {}).get(plan)]
    if not plans:
        return ""
    share = min(row["share"] for row in early["data"][plans[0]] if row["share"] > 0)
    wanted = {"measure": "Tr(F)", "outcome": "zero_shot_accuracy", "within": "seed", "share": share}
    first = _listed([f"{_only(early['data'][plan], wanted)} ({NAMES[plan]})" for plan in plans])
    wanted = {"measure": "Tr(F)", "outcome": ZERO_SHOT, "within": "seed"}
    last = _listed([f"{_only(late['data'][plan], wanted)}" for plan in plans])
    return (
        "Exploration, not corrected: early in training FUN with Fisher (Liu et al. 2024) reports the other sign. Rank "
        f"correlation of Tr(F) with zero-shot accuracy at {100 * share:g} % of the training: {first}; at its end: "
        f"{last} ([6](notebooks/6_using_the_trace.ipynb))."
    )


def _only(rows: list[dict], wanted: dict[str, object]) -> str:
    """The value with its interval of the one row that has what is wanted."""
    (row,) = (row for row in rows if all(row[name] == value for name, value in wanted.items()))
    return judging.interval({name: np.nan if row[name] is None else row[name] for name in ("value", "low", "high")}, 2)


def _trace_or_kl(figure: dict) -> str:
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
        one: _listed([f"{judging.interval(found[plan, one, ENGLISH], 2)} ({NAMES[plan]})" for plan in plans])
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


def _power(figure: dict, study: dict) -> str:
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


def _pairs(figure: dict) -> str:
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


def _listed(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _folders(figures: Path) -> dict[str, Path]:
    """By preset where its figures are, of presets that have some."""
    folders = {"small": figures / "small", "mini": figures}
    return {preset: folder for preset, folder in folders.items() if _recorded(folder)}


def of_preset(preset: str, folder: Path) -> str:
    """A paragraph and a table of verdicts for each plan, from the data and headlines of figures 1 and 2."""
    return "\n".join(_of_plan(preset, folder, plan) for plan in _recorded(folder))


def of_methods(figures: Path = FIGURES) -> str:
    """A paragraph and a table of verdicts on plan `methods`, whose conditions are in a figure of their own."""
    figure = _read(figures / METHODS)
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
    return f"{_filled(' '.join(part for part in sentences if part))}\n{_verdicts(headline['verdicts'])}"


def _recorded(folder: Path) -> list[str]:
    """The plans whose figure 1 is in a folder."""
    return [plan for plan, (first, _) in FILES.items() if (folder / first).is_file()]


def _of_plan(preset: str, folder: Path, plan: str) -> str:
    figure, second = (_read(folder / name) for name in FILES[plan])
    runs, headline = pd.DataFrame(figure["data"]), figure["headline"]
    able = competence.counted(runs)
    task, encoder = runs[["task", "encoder"]].iloc[0]
    title = _title(f"**{task}**, {encoder} (preset `{preset}`, plan `{plan}`)", runs, preset, plan)
    sentences = [title, _missed(plan) if preset == "mini" else "", headline["left_out"]]
    sentences += [_gains(pd.DataFrame(second["data"]))] if second else []
    sentences += [_hanging(headline["verdicts"]), _of_single_seeds(able, second.get("data"))]
    text = _filled(" ".join(sentences))
    return f"{text}\n\n{_conditions(able, second.get('data'))}\n{_verdicts(headline['verdicts'])}"


def _title(name: str, runs: pd.DataFrame, preset: str, plan: str) -> str:
    """A study's name, how many of its conditions count and how many seeds there are."""
    able = competence.counted(runs)
    number = f"{able['label'].nunique()} of {runs['label'].nunique()} conditions count"
    return f"{name}: {number}, {_seeds(runs, preset, plan)}."


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
    return _markdown(shown.rename_axis("condition").reset_index())


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
    found = _printed(rows)
    parts = [
        f"of {outcome} from {row['least']} to {row['most']}"
        for (question, outcome), row in found.iterrows()
        if question == "slope" and row["least"]
    ]
    return f"Slopes, whichever condition is left out: {', '.join(parts)}." if parts else ""


def _of_single_seeds(able: pd.DataFrame, adapted: list[dict] | None) -> str:
    """Between which values the slopes of single seeds lie, which an interval over conditions does not know of."""
    runs = _judged(able, adapted)
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


def _judged(able: pd.DataFrame, adapted: list[dict] | None) -> pd.DataFrame:
    """The runs that slopes are of: with the means over languages of their second stages, where there are some."""
    return shapes.language_means(pd.DataFrame(adapted)).merge(able[["run_id"]]) if adapted else able


def _regime(plan: str) -> pd.DataFrame:
    """What was asked of the sizes of preset mini before the runs, and what holds."""
    return regime(pd.read_csv(RECORDED / "mini-regimes.csv")).loc[plan]


def _without_gap(plan: str) -> str:
    """Said of a plan of preset mini whose unregularised model is not as far ahead in English as was asked."""
    found = _regime(plan)
    return "" if found.loc["English less zero-shot", "holds"] else "; no transfer gap, English is not ahead"


def _missed(plan: str) -> str:
    """What was asked of the sizes of preset mini before the runs and was not reached."""
    found = _regime(plan)
    missed = [
        f"{what} {row.value:.1f}{UNITS.get(what, ' points')} (at least {row.least:g} was asked)".replace(" -", " −")
        for what, row in found[~found["holds"]].iterrows()
    ]
    return f"Asked of these sizes beforehand, and not reached: {', '.join(missed)}." if missed else ""


def _printed(rows: list[dict]) -> pd.DataFrame:
    """Verdicts as they are shown, from a figure's headline; no row where nothing can be judged."""
    table = pd.DataFrame(rows, columns=decisions.COLUMNS)
    return decisions.printed(table.astype(dict.fromkeys(("value", "low", "high", "p"), float)))


def _verdicts(rows: list[dict]) -> str:
    """A table in Markdown: a line for each question that has a value, a column for each outcome."""
    if not rows:
        return ""
    found = _printed(rows)
    found = found[found.groupby("question")["value"].transform(lambda values: (values != "").any())]
    told = found.apply(_told, axis=1)
    order = {"index": told.index.unique("question"), "columns": told.index.unique("outcome")}
    table = told.unstack("outcome").reindex(**order).fillna("")
    return "\n" + _markdown(table.rename(index=ASKED).rename_axis("").reset_index())


def _told(row: pd.Series) -> str:
    """`undecided: +0.31 [+0.10, +0.52], p .06`; what is decided is bold."""
    value = f": {row['value']}" if row["value"] else ""
    interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
    p = f", p {row['p'].removeprefix('0')}" if row["p"] and interval else ""
    text = f"{row['verdict']}{value}{interval}{p}"
    return text if row["verdict"] in OPEN else f"**{text}**"


def calibration(folder: Path = RECORDED / "small", figures: Path = FIGURES / "small") -> str:
    """The weights that bring Tr(F) to each share of the unregularised model's, a table for each calibrated plan.

    And how many seeds of each plan are recorded.
    """
    tables = [_of_calibration(path, figures) for path in sorted(folder.glob("calibration-*.csv"))]
    return "\n".join([*tables, f"**{_progress('small', figures)}.**\n"])


def _progress(preset: str, folder: Path) -> str:
    """`Of plan nli 2 of 3 seeds are recorded, of plan paraphrase none`."""
    told = []
    for plan, (first, _) in FILES.items():
        runs = folder / first
        table = pd.DataFrame(json.loads(runs.read_text(encoding="utf-8"))["data"]) if runs.is_file() else None
        there = "none" if table is None else _seeds(table, preset, plan).replace(" seeds", " planned seeds")
        told.append(f"of plan `{plan}` {there}")
    return f"Recorded: {', '.join(told)}"


def _reached(figure: Path) -> dict[tuple[str, float], str]:
    """By family and weight the share of the unregularised model's Tr(F) that the recorded seeds reached."""
    if not figure.is_file():
        return {}
    runs = pd.DataFrame(json.loads(figure.read_text(encoding="utf-8"))["data"])
    none = runs[runs["family"] == "none"].set_index("seed")["trace"]
    shares = np.log(runs["trace"] / runs["seed"].map(none)).groupby([runs["family"], runs["weight"]]).mean()
    return {key: f" ({np.exp(value):.2f})" for key, value in shares.items()}


def _of_calibration(path: Path, figures: Path) -> str:
    found = pd.read_csv(path)
    plan = path.stem.removeprefix("calibration-")
    reached = _reached(figures / FILES[plan][0]) if plan in FILES else {}
    levels, runs = found[found["what"] == "level"], found[found["what"] == "run"]
    none = runs.loc[runs["family"] == "none", "trace"].mean()
    weights = [f"{row.weight:g}{reached.get((row.family, row.weight), '')}" for row in levels.itertuples()]
    text = pd.Series(weights, levels.index).where(levels["weight"].notna(), levels["verdict"])
    cells = levels.assign(text=text).pivot(index="family", columns="level", values="text").iloc[:, ::-1]
    head = f"share of Tr(F) = {printing.rounded(none)} that is asked for, plan `{plan}`"
    table = cells.loc[levels["family"].unique()].rename(lambda name: family(name).title).rename_axis(head)
    return _markdown(table.rename(columns="{:g}".format).reset_index())


def tour(folder: Path) -> str:
    """The commands of the tour and what they print, as they do it now in an empty folder: about two minutes."""
    lines = []
    for command in TOUR:
        done = subprocess.run(command.split(), cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        lines += [f"$ {command}", *map(str.rstrip, done.stdout.splitlines())]
    return "\n".join(["```console", *lines, "```", ""])


def captions(folder: Path) -> str:
    """The README of a folder of figures: each with its caption, from its JSON file."""
    texts = {path.stem: json.loads(path.read_text(encoding="utf-8"))["caption"] for path in folder.glob("*.json")}
    shown = [f"## {name}\n\n![{name}]({name}.png)\n\n{_filled(texts[name])}\n" for name in sorted(texts)]
    head = "Written by `make record` from the JSON file beside each figure, which has its data and where they are from."
    return "\n".join([f"# Figures\n\n{head}\n", *shown])


def _filled(text: str) -> str:
    """Text in lines of the README's length."""
    return textwrap.fill(" ".join(text.split()), 116, break_long_words=False, break_on_hyphens=False)


def parts(text: str, name: str) -> list[str]:
    """The README's text up to a block that is written here, the block, and the rest.

    Raises:
        FlatlingoError: if the lines that mark the block are missing.
    """
    start, end = f"<!-- {name}: written by `make record` -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(start)
    block, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise FlatlingoError(f"README.md lacks the lines {start.strip()!r} and {end!r} around its {name}")
    return [before + start, block, end + after]


if __name__ == "__main__":
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        blocks = {"lead": lead(), "results": results(), "calibration": calibration(), "tour": tour(Path(folder))}
        for name, new in blocks.items():
            before, _, after = parts(text, name)
            text = before + new + after
    pages = {path: text} | {figures / "README.md": captions(figures) for figures in _folders(FIGURES).values()}
    for page, content in pages.items():
        with replacing(page) as temporary:
            temporary.write_text(content, encoding="utf-8")
