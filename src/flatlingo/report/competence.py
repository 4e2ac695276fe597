"""Which runs have learnt their task, so that they count, and how that is said."""

import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.report.matched import unregularised
from flatlingo.report.shapes import per_run
from flatlingo.study.competence import COMPETENT, above_chance, competence_of

MOST = 0.5  # a condition counts if it has learnt the task in more than this share of its seeds


def learnt(table: pd.DataFrame) -> pd.Series:
    """Whether each row's run has learnt its task: at least 3/4 of what the unregularised run of its seed learnt.

    (a - 1/C) / (a_none - 1/C) >= .75 with a the accuracy on the clean labels of the training rows, C classes.

    Args:
        table: one row per run, or per run and target language.

    Returns:
        Booleans, indexed as the table.

    Raises:
        FlatlingoError: if a run has no baseline of its seed, if a baseline is not above chance, or if the clean
            training accuracy or the number of classes is unknown.

    >>> runs = pd.DataFrame({"family": ["none", "l2", "l2"], "label": ["none", "l2=1", "l2=9"], "seed": 1, "classes": 2,
    ...                      "clean_train_accuracy": [0.9, 0.8, 0.7]})
    >>> learnt(runs).tolist()
    [True, True, False]
    """
    for name in ("clean_train_accuracy", "classes"):
        if name not in table or table[name].isna().any():
            raise FlatlingoError(f"{name} is not known of every run, so none can be judged competent; run them again")
    baseline = unregularised(per_run(table))
    of_baseline = above_chance(baseline)
    if (of_baseline <= 0).any():
        raise FlatlingoError(f"the unregularised run of seed {of_baseline.idxmin()} learnt nothing; train it longer")
    return competence_of(table, baseline) >= COMPETENT - 1e-12


def competent(table: pd.DataFrame) -> pd.Series:
    """Whether each row's run counts: it has `learnt` its task, as its condition has in more than half of its seeds.

    A model that has learnt nothing is flat; it says nothing about flatness. Of a condition that fails in half of its
    seeds or more the seeds that got through would be a selection.

    Args:
        table: one row per run, or per run and target language.

    Returns:
        Booleans, indexed as the table.

    Raises:
        FlatlingoError: as for `learnt`.
    """
    return _counting(table, learnt(table))


def competent_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of competent runs.

    Raises:
        FlatlingoError: as for `learnt`.
    """
    return table[competent(table)]


def undecidable(table: pd.DataFrame) -> str:
    """Why competence cannot be judged, and so nothing can be decided; "" if it can."""
    try:
        learnt(table)
    except FlatlingoError as error:
        return str(error)
    return ""


def with_competence(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `able`, see `competent`; all are where it cannot be judged."""
    try:
        able = competent(table)
    except FlatlingoError:
        able = pd.Series(True, index=table.index)
    return table.assign(able=able)


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that count: of competent ones, or of all where this cannot be judged (`left_out` says so)."""
    return table[with_competence(table)["able"]]


def counted_beside(kept: pd.DataFrame, dropped: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that count (`counted`) of a plan that has no unregularised runs, held against those of another.

    Args:
        kept: of plan `regularized_second_stage`, one row per run and target language.
        dropped: of plan `paraphrase`, whose first stages are the same.
    """
    both = counted(pd.concat([kept, dropped[dropped["label"] == "none"]]))
    return kept[kept["run_id"].isin(both["run_id"])]


def incompetent(table: pd.DataFrame) -> dict[str, str]:
    """What is left out: by condition the seeds of which it has not learnt the task, and whether others go with them.

    Raises:
        FlatlingoError: as for `learnt`.
    """
    runs = table.assign(learnt=learnt(table))
    runs = runs.assign(able=_counting(runs, runs["learnt"])).drop_duplicates(["label", "seed"])
    out = {}
    for label, part in runs[~runs.groupby("label")["able"].transform("all")].groupby("label", sort=False):
        seeds = sorted(part.loc[~part["learnt"], "seed"])
        words = "every seed" if len(seeds) == len(part) else f"seed {', '.join(map(str, seeds))}"
        out[label] = words if part["able"].any() or len(seeds) == len(part) else f"{words}, so it counts in none"
    return out


def left_out(table: pd.DataFrame) -> str:
    """A sentence that names the conditions that are not competent, and in which seeds; or why none can be judged."""
    try:
        names = [f"{label} ({seeds})" for label, seeds in incompetent(table).items()]
    except FlatlingoError as error:
        return f"Nothing is decided, and every run counts as competent: {error}."
    return f"Left out because they did not learn the task: {', '.join(names)}." if names else "Every run is competent."


def _counting(table: pd.DataFrame, able: pd.Series) -> pd.Series:
    """Of what has been learnt, that of conditions which most seeds have learnt."""
    return able & (able.groupby(table["label"]).transform("mean") > MOST)
