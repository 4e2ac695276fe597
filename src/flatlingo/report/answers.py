"""What notebooks and README say of a study, in words and tables."""

import numpy as np
import pandas as pd

from flatlingo.report import decisions
from flatlingo.report.competence import counted, left_out, undecidable
from flatlingo.report.correlations import rank_correlation
from flatlingo.report.printing import as_table
from flatlingo.report.shapes import per_run
from flatlingo.report.slopes import OUTCOMES
from flatlingo.study.families import family

ENGLISH = ("english_accuracy", "zero_shot_accuracy")  # outcomes known after English
ADAPTED = ("gain", "adapted")  # of the second stage


def decided(table: pd.DataFrame, **options) -> pd.DataFrame:
    """`decisions.verdicts`, or a table without rows where nothing can be decided; `competence.undecidable` says why."""
    return pd.DataFrame(columns=decisions.COLUMNS) if undecidable(table) else decisions.verdicts(table, **options)


def verdict_text(table: pd.DataFrame, found: pd.DataFrame, ys: tuple[str, ...]) -> str:
    """To print: what was left out, and the verdicts on some outcomes."""
    shown = found[found["outcome"].isin([OUTCOMES[y] for y in ys])]
    return "\n".join([left_out(table), *([decisions.printed(shown).to_string()] if len(shown) else [])])


def trace_falls(table: pd.DataFrame) -> pd.DataFrame:
    """In how many seeds Tr(F) of competent runs falls from each weight of a family to the next larger one.

    Returns:
        Indexed by the title of each family of two weights or more: `weights`, and `falls in seeds`, as "2 of 3".

    >>> runs = pd.DataFrame({"family": "l2", "weight": [0.1, 1.0], "seed": 1, "trace": [30.0, 20.0]})
    >>> trace_falls(runs)["falls in seeds"].to_dict()
    {'L2 to zero': '1 of 1'}
    """
    rows = []
    for name, part in per_run(counted(table).query("weight > 0")).groupby("family", sort=False):
        traces = part.pivot(index="seed", columns="weight", values="trace").dropna()
        if traces.shape[1] > 1:
            falls = (np.diff(traces.to_numpy(), axis=1) < 0).all(axis=1)
            rows.append((family(name).title, traces.shape[1], f"{falls.sum()} of {len(falls)}"))
    return pd.DataFrame(rows, columns=["family", "weights", "falls in seeds"]).set_index("family")


def given_the_start(table: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations with Tr(F) in each language: of the gain, also at equal zero-shot accuracy, its start and end.

    Over competent runs, within seeds (`correlations.rank_correlation`). What is held equal is the zero-shot accuracy on
    rows that the gain is not measured on (`start`): one on the same rows goes with it by its own error, with opposite
    sign.

    Returns:
        To print, see `printing.as_table`.
    """
    table = counted(table)
    questions = {
        "gain": ("gain", ()),
        "gain, given zero-shot": ("gain", ("start",)),
        "adapted accuracy": ("adapted", ()),
        "zero-shot accuracy": ("zero_shot", ()),
    }
    found = {
        (language, name): rank_correlation(part, y, given=given)
        for language, part in table.groupby("language", sort=False)
        for name, (y, given) in questions.items()
    }
    return as_table(found)
