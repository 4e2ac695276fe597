"""Shapes of the tables of a sweep: what is asked of their columns, one row per run, and one per run and language."""

import pandas as pd

from flatlingo.errors import FlatlingoError

SHARES_OF_LANGUAGES = ["start", "zero_shot", "adapted", "gain", "control", "control_gain"]  # of a run in each language


def require(table: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        FlatlingoError: naming what is missing and what there is.
    """
    missing = [name for name in columns if name not in table]
    if missing:
        raise FlatlingoError(f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")


def check_one_baseline(table: pd.DataFrame) -> None:
    """Refuse a table in which plain fine-tuning has several lengths, where conditions are compared with the baseline.

    Such are recipes at several budgets of compute, which only those of one budget can be compared with.

    Raises:
        FlatlingoError: naming the baselines and what to do.
    """
    baselines = list(table.loc[table["family"] == "none", "label"].unique())
    if len(baselines) > 1:
        raise FlatlingoError(
            f"plain fine-tuning was run at several lengths ({', '.join(baselines)}), so that there is no one baseline; "
            "compare recipes at equal compute (report.technique), or give the rows of one length"
        )


def per_run(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run: of a table with a second stage, without what belongs to one language; else the table itself."""
    if "language" not in table:
        return table
    of_languages = ["language", *SHARES_OF_LANGUAGES]
    return table.drop(columns=of_languages, errors="ignore").drop_duplicates("run_id", ignore_index=True)


def language_means(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run of a table with a second stage, with the means over the target languages."""
    measured = [name for name in table.select_dtypes("number") if name not in ("weight", "seed")]
    keys = [name for name in table if name not in measured and name != "language"]
    return table.groupby(keys, sort=False, dropna=False)[measured].mean().reset_index()


def per_seed(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """One row per condition and seed that has all the columns; of a table with a second stage the mean over languages.

    Raises:
        FlatlingoError: for a column that the table lacks, or two runs of one condition and seed.
    """
    require(table, ["family", "label", "seed", *columns])
    runs = language_means(table) if "language" in table else table
    twice = runs.duplicated(["label", "seed"])
    if twice.any():
        label, seed = runs.loc[twice, ["label", "seed"]].iloc[0]
        raise FlatlingoError(f"condition {label} has two runs of seed {seed}; give the runs of one plan and preset")
    return runs.dropna(subset=columns)


def zero_shot_rows(table: pd.DataFrame) -> pd.DataFrame:
    """One row per run and target language, with its `zero_shot` accuracy, from columns `accuracy_<language>`."""
    table = per_run(table)
    columns = [name for name in table if name.startswith("accuracy_")]
    rows = table.melt([c for c in table if c not in columns], columns, "language", "zero_shot")
    return rows.assign(language=rows["language"].str.removeprefix("accuracy_"))
