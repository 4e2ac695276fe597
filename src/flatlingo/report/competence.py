"""Which runs have learnt their task, in the forms that figures and notebooks need (`decisions.competent` decides)."""

import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.report import decisions


def undecidable(table: pd.DataFrame) -> str:
    """Why competence cannot be judged, and so nothing can be decided; "" if it can."""
    try:
        decisions.competent(table)
    except FlatlingoError as error:
        return str(error)
    return ""


def with_competence(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `able`, see `decisions.competent`; all are where it cannot be judged."""
    return table.assign(able=True if undecidable(table) else decisions.competent(table))


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that count: of competent ones, or of all where this cannot be judged (`left_out` says so)."""
    return table if undecidable(table) else decisions.competent_runs(table)


def incompetent(table: pd.DataFrame) -> dict[str, str]:
    """What is left out: by condition the seeds of which it has not learnt the task, and whether others go with them."""
    if undecidable(table):
        return {}
    runs = with_competence(table).assign(learnt=decisions.learnt(table)).drop_duplicates(["label", "seed"])
    out = {}
    for label, part in runs[~runs.groupby("label")["able"].transform("all")].groupby("label", sort=False):
        seeds = sorted(part.loc[~part["learnt"], "seed"])
        words = "every seed" if len(seeds) == len(part) else f"seed {', '.join(map(str, seeds))}"
        out[label] = words if part["able"].any() or len(seeds) == len(part) else f"{words}, so it counts in none"
    return out


def left_out(table: pd.DataFrame) -> str:
    """A sentence that names the conditions that are not competent, and in which seeds; or why none can be judged."""
    if reason := undecidable(table):
        return f"Nothing is decided, and every run counts as competent: {reason}."
    names = [f"{label} ({seeds})" for label, seeds in incompetent(table).items()]
    return f"Left out because they did not learn the task: {', '.join(names)}." if names else "Every run is competent."
