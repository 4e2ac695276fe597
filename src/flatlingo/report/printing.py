"""Tables as notebooks and README print them: conditions with means and spread, correlations, the best of families."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import gmean

from flatlingo.errors import FlatlingoError
from flatlingo.report.correlations import Correlation
from flatlingo.report.differences import difference
from flatlingo.report.shapes import SHARES_OF_LANGUAGES, check_one_baseline, require
from flatlingo.study.families import title

HEADINGS = {
    "english_accuracy": "English accuracy (%)",
    "train_accuracy": "train accuracy (%)",
    "noisy_fitted": "noisy labels fitted (%)",
    "trace": "Tr(F)",
    "zero_shot": "zero-shot accuracy (%)",
    "zero_shot_accuracy": "zero-shot accuracy (%)",
    "adapted": "adapted accuracy (%)",
    "gain": "gain (points)",
    "control_gain": "gain from as many English rows (points)",
}


def summary(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A table to print: `mean ± sd` over seeds (sd with n - 1; left out for a single seed), one row per condition.

    Rows of different languages stay apart. Accuracies and gains are in per cent, traces in nats². Columns without any
    value (wrong labels, where none are known) are left out.

    Raises:
        FlatlingoError: for a column that the table lacks, or that is neither a share nor a trace.
    """
    require(table, ["label", *columns])
    columns = [name for name in columns if table[name].notna().any()]
    groups = table.groupby(["label", *(name for name in ("language",) if name in table)], sort=False)
    printed = {"runs": groups.size()}
    for name in columns:
        language = name.removeprefix("accuracy_")
        heading = HEADINGS.get(name, name if language == name else f"{language} (%)")
        show = _text_of(name)
        printed[heading] = [show(*pair) for pair in zip(groups[name].mean(), groups[name].std(), strict=True)]
    return pd.DataFrame(printed)


def _text_of(name: str) -> Callable[[float, float], str]:
    """How the mean and standard deviation of a column are printed."""
    if "trace" in name:
        return _trace_text
    if "accuracy" in name or name in ("noisy_fitted", *SHARES_OF_LANGUAGES):
        return _percent_text
    raise FlatlingoError(f"column {name} is neither a share nor a trace, which is all that a summary prints; drop it")


def _percent_text(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f}" if np.isnan(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _trace_text(mean: float, sd: float) -> str:
    return rounded(mean) if np.isnan(sd) else f"{rounded(mean)} ± {rounded(sd, 2)}"


def rounded(value: float, digits: int = 3) -> str:
    """A trace to some significant digits, written out.

    >>> rounded(1489.2), rounded(27.64), rounded(0.0123, 2)
    ('1490', '27.6', '0.012')
    """
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def as_table(correlations: dict[object, Correlation]) -> pd.DataFrame:
    """Correlations to print, one row each; the keys (words, or tuples for several levels) become the index."""
    columns = {"value": "value", "low": "low", "high": "high", "p_value": "p", "n": "rows", "conditions": "conditions"}
    values = {heading: [getattr(row, name) for row in correlations.values()] for name, heading in columns.items()}
    keys = list(correlations)
    index = pd.MultiIndex.from_tuples(keys) if isinstance(keys[0], tuple) else keys
    return pd.DataFrame(values, index=index).round({"value": 2, "low": 2, "high": 2, "p": 4})


def best_of_family(table: pd.DataFrame) -> pd.DataFrame:
    """The condition of each family that gains most English accuracy over no regulariser, on the seeds that both have.

    Conditions may lack different seeds, whose means cannot be compared; so differences choose and are shown. Choosing
    on the rows that are then reported favours families with many conditions.

    Args:
        table: one row per run.

    Returns:
        Indexed by the family's title: `best condition`, how many `seeds` it shares with no regulariser and, over them,
        `minus none (points)` of English accuracy, its 95 % t interval `low, high`, and `Tr(F) / none's` (geometric
        mean).

    Raises:
        FlatlingoError: for several baselines (`check_one_baseline`), or conditions without a seed in common.
    """
    check_one_baseline(table)
    gaps = {label: difference(table, label, "none", "english_accuracy") for label in table["label"].unique()}
    family = table.drop_duplicates("label").set_index("label")["family"]
    best = pd.Series({label: gap.value for label, gap in gaps.items()}).groupby(family, sort=False).idxmax()
    traces = table.pivot(index="seed", columns="label", values="trace")
    ratios = traces.div(traces["none"], axis=0)
    rows = [
        {
            "best condition": label,
            "seeds": gaps[label].n,
            "minus none (points)": round(100 * gaps[label].value, 1),
            "low": round(100 * gaps[label].low, 1),
            "high": round(100 * gaps[label].high, 1),
            "Tr(F) / none's": rounded(gmean(ratios[label].dropna()), 2),
        }
        for label in best
    ]
    return pd.DataFrame(rows, index=[*map(title, best.index)])
