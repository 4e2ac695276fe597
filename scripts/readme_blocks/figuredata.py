"""The figures that the README speaks of: their data, how many seeds are planned, how verdicts are shown."""

import json
import textwrap
from pathlib import Path

import pandas as pd

from flatlingo.files import ROOT
from flatlingo.report import decisions, judging, shapes
from flatlingo.study.presets import load_preset, planned_seeds

FIGURES = ROOT / "figures"
FILES = {  # figures 1 and 2 of each plan, as the notebooks name them
    "nli": ("figure1.json", "figure2-nli.json"),
    "paraphrase": ("figure1-paraphrase.json", "figure2.json"),
}
METHODS, SETTING, TECHNIQUE = "methods_slopes.json", "using_intervention.json", "using_technique.json"
MEASURES, CHOICES, EARLY = "using_predictors.json", "using_choices.json", "using_early.json"
POWER = "beyond.json"
WIDEST = "mini-nli, every method"
OPEN = ("undecided", judging.TOO_FEW_SEEDS, judging.TOO_FEW)


def read_figure(path: Path) -> dict:
    """A figure's JSON file; nothing where it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def preset_folders(figures: Path) -> dict[str, Path]:
    """By preset where its figures are, of presets that have some."""
    folders = {"small": figures / "small", "mini": figures}
    return {preset: folder for preset, folder in folders.items() if recorded_plans(folder)}


def recorded_plans(folder: Path) -> list[str]:
    """The plans whose figure 1 is in a folder."""
    return [plan for plan, (first, _) in FILES.items() if (folder / first).is_file()]


def judged_runs(able: pd.DataFrame, adapted: list[dict] | None) -> pd.DataFrame:
    """The runs that slopes are of: with the means over languages of their second stages, where there are some."""
    return shapes.language_means(pd.DataFrame(adapted)).merge(able[["run_id"]]) if adapted else able


def of_planned(seeds: int, preset: str, plan: str) -> str:
    """How many seeds there are of those planned: `5 of 10 seeds`."""
    return f"{seeds} of {planned_seeds(load_preset(preset), plan)} seeds"


def as_shown(rows: list[dict]) -> pd.DataFrame:
    """Verdicts as they are shown, from a figure's headline; no row where nothing can be judged."""
    table = pd.DataFrame(rows, columns=decisions.COLUMNS)
    return decisions.printed(table.astype(dict.fromkeys(("value", "low", "high", "p"), float)))


def in_words(row: pd.Series) -> str:
    """`undecided: +0.31 [+0.10, +0.52], p .06`; what is decided is bold."""
    value = f": {row['value']}" if row["value"] else ""
    interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
    p = f", p {row['p'].removeprefix('0')}" if row["p"] and interval else ""
    text = f"{row['verdict']}{value}{interval}{p}"
    return text if row["verdict"] in OPEN else f"**{text}**"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, the names of its columns on top."""
    lines = [[*table.columns], ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def joined(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def filled(text: str) -> str:
    """Text in lines of the README's length."""
    return textwrap.fill(" ".join(text.split()), 116, break_long_words=False, break_on_hyphens=False)
