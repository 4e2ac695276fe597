"""Every named method: how to ask for it, whose it is, and what a step costs."""

import json
import math

import pandas as pd

from flatlingo.files import ROOT
from flatlingo.study.families import FAMILIES

BENCHMARK = ROOT / "benchmarks" / "results" / "steps.json"


def catalogue() -> pd.DataFrame:
    """Every named method: how to ask for it, what its weight is, whose it is, and what a step costs.

    Returns:
        Indexed by family: `one line`, at the default weight; `weight`, what that is; `paper`; `passes` that a step
        needs and the `time` measured, both as a ratio to a plain step (benchmarks/results/steps.json; 1 for a setting
        that is no pass of its own, NaN where nothing was measured).
    """
    rows = {row.name: [row.code, row.weight, row.paper] for row in FAMILIES.values() if row.changes != "nothing"}
    page = pd.DataFrame.from_dict(rows, orient="index", columns=["one line", "weight", "paper"])
    measured = json.loads(BENCHMARK.read_text(encoding="utf-8"))["rows"] if BENCHMARK.exists() else []
    costs = {row["family"]: row for row in measured if row["family"]}
    for column in ("passes", "time"):
        page[column] = [costs[name][column] if name in costs else _unmeasured(name, costs) for name in page.index]
    return page


def _unmeasured(name: str, costs: dict) -> float:
    """The cost of a method that the benchmark leaves out: a plain step's if it only sets something, else unknown."""
    return 1.0 if costs and FAMILIES[name].changes != "term" else math.nan
