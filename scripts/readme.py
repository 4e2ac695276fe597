"""The numbers in the README: results from `figures/*.json`, calibrations, a tour that is really taken. None is typed.

Run by `make record`; tests compare the README with both.
"""

import json
import math
import subprocess
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.files import RECORDED, ROOT, replacing
from flatlingo.report import competence, decisions, judging, slopes, statistics
from flatlingo.report.drawing import LANGUAGES
from flatlingo.report.matched import TOO_FEW_SEEDS
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
ALONE = {"slope within families": "per halving of Tr(F) within families"}  # where no line stands above it
HEADS = {  # outcome: over the column of points per halving of Tr(F)
    "English accuracy": "English accuracy (figure 1)",
    "zero-shot accuracy": "zero-shot accuracy",
    "gain": "gain of a second stage (figure 2)",
    "accuracy after adaptation": "accuracy after it",
}
CLAIMED = {
    "English accuracy": "that flatter models are more accurate",
    "gain": "that they gain more from a second stage",
}
SEEDS = {("small", "nli"): 3, ("small", "paraphrase"): 2}  # planned; of preset mini ten
SETTING, TECHNIQUE = "using_intervention.json", "using_technique.json"
TOO_FEW = (TOO_FEW_SEEDS, judging.TOO_FEW)
UNITS = {"wrong labels reproduced": ""}  # of the regimes; the others are in points


def results(figures: Path = FIGURES) -> str:
    """What was measured of each preset whose figures are there, real rows first."""
    return "\n".join(of_preset(preset, folder) for preset, folder in _folders(figures).items())


def lead(figures: Path = FIGURES) -> str:
    """What is said of the paper's claims, a line for each plan recorded; and which further questions are decided."""
    lines, settled, asked = [["points per halving of Tr(F)", *HEADS.values()], ["---"] * (len(HEADS) + 1)], [], 0
    said = {outcome: [] for outcome in CLAIMED}
    for preset, folder in _folders(figures).items():
        for plan in _recorded(folder):
            figure = json.loads((folder / FILES[plan][0]).read_text(encoding="utf-8"))
            runs = pd.DataFrame(figure["data"])
            if not figure["headline"]["verdicts"]:
                lines.append([f"{runs['task'].iloc[0]}: nothing is decided", *[""] * len(HEADS)])
                continue
            found = _printed(figure["headline"]["verdicts"])
            told, task = found.apply(_told, axis=1), runs["task"].iloc[0]
            gap = _without_gap(plan) if preset == "mini" else ""
            number = found.loc["slope", "conditions"].iloc[0]
            title = f"{task}, {runs['encoder'].iloc[0]}: {number} conditions, {_seeds(runs, preset, plan)}{gap}"
            lines.append([title, *(told.get(("slope", outcome), "") for outcome in HEADS)])
            for outcome in {*CLAIMED} & {*found.loc["slope"].index}:
                said[outcome].append(found.loc[("slope", outcome), "verdict"])
            rest = found[(found["low"] != "") & (found.index.get_level_values("question") != "slope")]
            asked += len(rest)
            settled += [
                f"* {task}: {outcome}, {_alone(question)}: {told[question, outcome]}{_ends(told, question, outcome)}\n"
                for question, outcome in rest[~rest["verdict"].isin(("undecided", *TOO_FEW))].index
            ]
    path = figures / SETTING
    intervention = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    setting = _setting(intervention)
    lines += _set(setting)
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    claims = "; ".join(f"{_tally(said[outcome])} {words}" for outcome, words in CLAIMED.items())
    rest = f"Of {asked} further questions that have an interval, {len(settled)} are decided{':' if settled else '.'}"
    setting = " ".join([_by_setting(setting), _by_target(intervention), _besides(intervention)])
    text = _filled(f"**Over regularisers, {claims}.** {setting}")
    parts = [text, table.strip(), rest, "".join(settled).strip(), _advice(figures / TECHNIQUE)]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n"


def _advice(path: Path) -> str:
    """What to do with more compute, as notebook 6 found it in plan `technique`; nothing where that is not recorded."""
    if not path.is_file():
        return ""
    figure = json.loads(path.read_text(encoding="utf-8"))
    seeds = max(row["seeds"] for row in figure["data"]["chosen"])
    return _filled(
        f"**What to do with more compute** (mini-nli, {seeds} of 10 seeds): {figure['headline']['recommendation']}"
    )


def _seeds(runs: pd.DataFrame, preset: str, plan: str) -> str:
    """How many seeds there are of those planned: `5 of 10 seeds`."""
    return f"{runs['seed'].nunique()} of {SEEDS.get((preset, plan), 10)} seeds"


def _tally(verdicts: list[str]) -> str:
    """How many studies say what: `of 3 studies none confirms and none refutes`."""
    numbers = [sum(verdict == word for verdict in verdicts) for word in ("rises", "falls", "no effect")]
    confirm, refute, nothing = (str(number) if number else "none" for number in numbers)
    more = f" ({nothing} says that there is no effect)" if numbers[2] else ""
    studies = "1 study" if len(verdicts) == 1 else f"{len(verdicts)} studies"
    return f"of {studies} {confirm} confirms and {refute} refutes{more}"


def _ends(told: pd.Series, question: str, outcome: str) -> str:
    """A gain is read beside where it starts and ends."""
    both = [(question, other) for other in ("zero-shot accuracy", "accuracy after adaptation")]
    if outcome != "gain" or not all(key in told for key in both):
        return ""
    return f" (zero-shot accuracy {told[both[0]]}; accuracy after adaptation {told[both[1]]})"


def _alone(question: str) -> str:
    return ALONE.get(question, ASKED.get(question, question))


def _setting(figure: dict) -> pd.DataFrame:
    """The slopes of plan `intervention`, as they are shown, by what is held and outcome; none if it is not recorded."""
    rows = figure.get("headline", {}).get("verdicts")
    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame(rows).assign(halvings=math.nan, least=math.nan, most=math.nan)
    found = found.assign(question=found["held"], outcome=found["outcome"].map(slopes.OUTCOMES))
    return _printed(found.to_dict("records"))


def _set(found: pd.DataFrame) -> list[list[str]]:
    """The lines of the table on runs whose Tr(F) was set."""
    if found.empty:
        return []
    told = found.apply(_told, axis=1)
    title = f"mini-nli, Tr(F) set: {found['targets'].iloc[0]} targets, {found['seeds'].iloc[0]} of 10 seeds"
    titles = {"": title, "at equal loss": "… at equal training loss"}
    return [[titles[held], *(told.get((held, outcome), "") for outcome in HEADS)] for held in titles]


def _by_setting(found: pd.DataFrame) -> str:
    """The outcomes that rise, fall or stay the same as Tr(F) falls by being set, and what of it holds at equal loss."""
    if found.empty:
        return ""
    words = {"rises": "rise", "falls": "fall", "no effect": "stay the same"}
    said = {held: dict(part["verdict"].droplevel("question")) for held, part in found.groupby("question")}
    settled = {name: said[""][name] for name in HEADS if said[""].get(name) in words}
    if not settled:
        return "Where one and the same term sets Tr(F), its effect is undecided too."
    parts = {word: [name for name, verdict in settled.items() if verdict == word] for word in words}
    effects = "; ".join(f"{_listed(names)} {words[word]}" for word, names in parts.items() if names)
    too = [name for name, verdict in settled.items() if said["at equal loss"].get(name) == verdict]
    return (
        f"Where one and the same term sets Tr(F) in the second half of training, above and below that of plain "
        f"training, {effects} as it falls; "
        f"at equal training loss {f'the same holds of {_listed(too)}' if too else 'this is undecided'}."
    )


def _by_target(figure: dict) -> str:
    """English accuracy where Tr(F) was set, minus that of plain training, target by target from the highest."""
    rows = [row for row in figure.get("data", {}).get("effects", []) if row["outcome"] == "english_accuracy"]
    if not rows:
        return ""
    rows.sort(key=lambda row: -row["trace"])
    told = [f"{row['value']:+.1f} at {statistics.rounded(row['trace'])} ({row['verdict']})" for row in rows]
    text = f"whose Tr(F) is {statistics.rounded(rows[0]['plain'])}, by the Tr(F) reached: {_listed(told)}."
    return f"English accuracy minus that of plain training, {text.replace('-', '−')}"


def _besides(figure: dict) -> str:
    """What the term that sets Tr(F) does besides, at equal Tr(F)."""
    rows = [row for row in figure.get("headline", {}).get("besides", []) if row["held"] == ""]
    if not rows:
        return ""
    known = [row for row in rows if row["value"] is not None and row["low"] is not None]
    told = [f"{slopes.OUTCOMES[row['outcome']]} {_interval(row)} ({row['verdict']})" for row in known]
    return (
        f"With a target minus plain training, at equal Tr(F) on the line of the targets: {_listed(told)}."
        if told
        else ""
    )


def _interval(row: dict) -> str:
    """`−0.8 [−1.4, −0.3]`."""
    value, low, high = (f"{row[name]:+.1f}".replace("-", "−") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


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


def _recorded(folder: Path) -> list[str]:
    """The plans whose figure 1 is in a folder."""
    return [plan for plan, (first, _) in FILES.items() if (folder / first).is_file()]


def _of_plan(preset: str, folder: Path, plan: str) -> str:
    first, second = (folder / name for name in FILES[plan])
    figure = json.loads(first.read_text(encoding="utf-8"))
    runs, headline = pd.DataFrame(figure["data"]), figure["headline"]
    means = statistics.condition_means(competence.counted(runs)).set_index("label")
    sentences = [_traces(means), _accuracies(means)]
    if second.is_file():
        sentences.append(_gains(pd.DataFrame(json.loads(second.read_text(encoding="utf-8"))["data"])))
    if preset == "mini":
        sentences.append(_missed(plan))
    task, encoder = runs[["task", "encoder"]].iloc[0]
    title = (
        f"**{task}**, {encoder} (preset `{preset}`, plan `{plan}`; {runs['label'].nunique()} conditions, "
        f"{_seeds(runs, preset, plan)})"
    )
    sentences += [headline["left_out"], _hanging(headline["verdicts"])]
    text = _filled(f"{title}. {' '.join(sentences)}")
    return f"{text}\n{_verdicts(headline['verdicts'])}"


def _traces(means: pd.DataFrame) -> str:
    parts = [f"{statistics.rounded(means.trace['none'])} without a regulariser"]
    for name in NAMED:
        family_means = means[means["family"] == name].sort_values("weight")
        if len(family_means):
            ends = [
                f"{statistics.rounded(family_means.trace[label])} at `{label}`" for label in family_means.index[[0, -1]]
            ]
            parts.append(f"{family(name).title} {' to '.join(dict.fromkeys(ends))}")
    return f"Tr(F), mean over seeds: {'; '.join(parts)}."


def _accuracies(means: pd.DataFrame) -> str:
    parts = [_accuracy(means.loc["none"], "without a regulariser")]
    for name in NAMED:
        family_means = means[means["family"] == name]
        if len(family_means):
            best = family_means["english_accuracy"].idxmax()
            parts.append(
                _accuracy(
                    means.loc[best], f"with the {family(name).title} that is best in English on these rows (`{best}`)"
                )
            )
    return f"Accuracy in English and, zero-shot, in the other languages: {'; '.join(parts)}."


def _accuracy(row: pd.Series, what: str) -> str:
    return f"{100 * row['english_accuracy']:.1f} and {100 * row['zero_shot_accuracy']:.1f} % {what}"


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
    """Verdicts as they are shown, from a figure's headline."""
    return decisions.printed(pd.DataFrame(rows).astype(dict.fromkeys(("value", "low", "high", "p"), float)))


def _verdicts(rows: list[dict]) -> str:
    """A table in Markdown: a line for each question that has a value, a column for each outcome."""
    if not rows:
        return ""
    found = _printed(rows)
    found = found[found.groupby("question")["value"].transform(lambda values: (values != "").any())]
    told = found.apply(_told, axis=1)
    outcomes = told.index.unique("outcome")
    lines = [["", *outcomes], ["---"] * (len(outcomes) + 1)]
    for question in told.index.unique("question"):
        lines.append([ASKED.get(question, question), *(told.get((question, outcome), "") for outcome in outcomes)])
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _told(row: pd.Series) -> str:
    """`undecided: +0.31 [+0.10, +0.52], p .06`."""
    value = f": {row['value']}" if row["value"] else ""
    interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
    p = f", p {row['p'].removeprefix('0')}" if row["p"] and interval else ""
    return f"{row['verdict']}{value}{interval}{p}"


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
    head = [f"Tr(F) of plan `{plan}`, of {statistics.rounded(none)}", *(f"{level:g} of it" for level in cells.columns)]
    lines = [head, ["---"] * len(head)]
    lines += [[family(name).title, *cells.loc[name]] for name in levels["family"].unique()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
