"""The README's table of calibrated weights, and how far the recorded seeds are."""

from pathlib import Path

import numpy as np
import pandas as pd

from flatlingo.files import RECORDED
from flatlingo.report import printing
from flatlingo.study.families import family
from readme_blocks.figuredata import FIGURES, FILES, markdown, of_planned, read_figure


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
        seeds = {run["seed"] for run in read_figure(folder / first).get("data", ())}
        there = of_planned(len(seeds), preset, plan).replace(" seeds", " planned seeds")
        told.append(f"of plan `{plan}` {there if seeds else 'none'}")
    return f"Recorded: {', '.join(told)}"


def _reached(figure: Path) -> dict[tuple[str, float], str]:
    """By family and weight the share of the unregularised model's Tr(F) that the recorded seeds reached."""
    runs = pd.DataFrame(read_figure(figure).get("data", ()))
    if runs.empty:
        return {}
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
    return markdown(table.rename(columns="{:g}".format).reset_index())
