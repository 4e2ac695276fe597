"""How much of its task a run has learnt, as a share of what the unregularised run of its seed has. Plain numbers."""

import pandas as pd

COMPETENT = 0.75  # the share from which on a run has learnt its task


def above_chance(runs: pd.DataFrame) -> pd.Series:
    """Accuracy on the clean labels of the training rows, a, less what guessing gives of C classes: a - 1/C."""
    return runs["clean_train_accuracy"] - 1 / runs["classes"]


def competence_of(runs: pd.DataFrame, unregularised: pd.DataFrame) -> pd.Series:
    """(a - 1/C) / (a_none - 1/C) of each row, see `above_chance`.

    Args:
        runs: rows with their `seed`.
        unregularised: one row for each seed, indexed by it.
    """
    return above_chance(runs) / runs["seed"].map(above_chance(unregularised))
