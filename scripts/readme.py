"""The numbers in the README: results from `figures/*.json`, calibrations, a tour that is really taken. None is typed.

Run by `make record`; tests compare the README with both.
"""

import json
import subprocess
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.files import RECORDED, ROOT, replacing
from flatlingo.report import decisions, judging, statistics
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
    "regret of the smallest Tr(F) minus that of always none": "lost by adapting the flattest, beyond always none",
    "regret of the smallest Tr(F) minus that of always the best family": "… beyond always the best family",
}
CLAIMS = {  # question and outcome: the claim of the paper
    ("slope", "English accuracy"): "English accuracy, points per halving of Tr(F) (figure 1)",
    ("slope", "gain"): "gain of a second stage, points per halving of Tr(F) (figure 2)",
}
TOO_FEW = (TOO_FEW_SEEDS, judging.TOO_FEW)
UNITS = {"wrong labels reproduced": ""}  # of the regimes; the others are in points


def results(figures: Path = FIGURES) -> str:
    """What was measured of each preset whose figures are there, real rows first."""
    return "\n".join(of_preset(preset, folder) for preset, folder in _folders(figures).items())


def lead(figures: Path = FIGURES) -> str:
    """The paper's two claims with their verdicts, a line for each plan recorded; and which questions are decided."""
    lines, decided, asked = [["", *CLAIMS.values()], ["---"] * (len(CLAIMS) + 1)], [], 0
    for folder in _folders(figures).values():
        for plan in _recorded(folder):
            figure = json.loads((folder / FILES[plan][0]).read_text(encoding="utf-8"))
            runs = pd.DataFrame(figure["data"])
            task, encoder = runs[["task", "encoder"]].iloc[0]
            found = _printed(figure["headline"]["verdicts"])
            told = found.apply(_told, axis=1)
            title = f"{task}, {encoder}: {runs['label'].nunique()} conditions, seeds: {runs['seed'].nunique()}"
            lines.append([title, *(told.get(question, "") for question in CLAIMS)])
            with_interval = found[found["low"] != ""]
            asked += len(with_interval)
            settled = with_interval[~with_interval["verdict"].isin(("undecided", *TOO_FEW))]
            decided += [
                f"* {task}, {outcome}, {ASKED.get(question, question)}: {told[question, outcome]}\n"
                for question, outcome in settled.index
            ]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = f"Of {asked} questions that have an interval, {len(decided)} are decided{':' if decided else ''}"
    return f"\n{table}\n{text}\n\n{''.join(decided)}"


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
    means = statistics.condition_means(runs).set_index("label")
    sentences = [_traces(means), _accuracies(means)]
    if second.is_file():
        sentences.append(_gains(pd.DataFrame(json.loads(second.read_text(encoding="utf-8"))["data"])))
    if preset == "mini":
        sentences.append(_missed(plan))
    task, encoder = runs[["task", "encoder"]].iloc[0]
    title = (
        f"**{task}**, {encoder} (preset `{preset}`, plan `{plan}`; {runs['label'].nunique()} conditions, "
        f"seeds: {runs['seed'].nunique()})"
    )
    text = textwrap.fill(
        f"{title}. {' '.join(sentences)} {headline['left_out']}", 116, break_long_words=False, break_on_hyphens=False
    )
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
    return f"The second stage gains the unregularised model {', '.join(parts).replace('-', '−')}."


def _missed(plan: str) -> str:
    """What was asked of the sizes of preset mini before the runs and does not hold, from `mini-regimes.csv`."""
    found = regime(pd.read_csv(RECORDED / "mini-regimes.csv")).loc[plan]
    missed = [
        f"{what} {row.value:.1f}{UNITS.get(what, ' points')} (at least {row.least:g} was asked)".replace(" -", " −")
        for what, row in found[~found["holds"]].iterrows()
    ]
    return f"Asked of these sizes beforehand and not so: {', '.join(missed)}." if missed else ""


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
    """The weights that bring Tr(F) to each share of the unregularised model's, a table for each calibrated plan."""
    return "\n".join(_of_calibration(path, figures) for path in sorted(folder.glob("calibration-*.csv")))


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
    """The commands of the tour and what they print, as they do it now in an empty folder: about a minute."""
    lines = []
    for command in TOUR:
        done = subprocess.run(command.split(), cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        lines += [f"$ {command}", *map(str.rstrip, done.stdout.splitlines())]
    return "\n".join(["```console", *lines, "```", ""])


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
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
