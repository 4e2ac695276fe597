"""What a study decides: over competent conditions, each question with its value, interval, p-value and verdict."""

import math

import pandas as pd

from flatlingo.report.competence import competent_runs
from flatlingo.report.judging import holm, signed
from flatlingo.report.matched import ALL, compare, gains, questions, verdict
from flatlingo.report.shapes import per_seed
from flatlingo.report.slopes import OUTCOMES, outcomes, slopes

COLUMNS = [
    *("question", "outcome", "value", "low", "high", "p", "conditions", "seeds", "halvings"),
    *("least", "most", "verdict"),
]


def memorised_beyond_chance(table: pd.DataFrame) -> pd.Series:
    """Share of wrong training labels reproduced, less what a model without memory reproduces by chance.

    noisy_fitted - (1 - accuracy)/(C - 1): such a model errs as often as on English validation rows, and its errors hit
    one given wrong label of C - 1.

    >>> runs = pd.DataFrame({"noisy_fitted": [0.6], "english_accuracy": [0.8], "classes": [3]})
    >>> memorised_beyond_chance(runs).round(3).tolist()
    [0.5]
    """
    return table["noisy_fitted"] - (1 - table["english_accuracy"]) / (table["classes"] - 1)


def verdicts(table: pd.DataFrame, *, n_permutations: int = 9999) -> pd.DataFrame:
    """Every question that decides, over competent runs; Holm's correction runs over the outcomes of a question.

    The questions: the slope of each outcome per halving of Tr(F), with the seed held fixed, and with the family too;
    consistency minus each rival at the same Tr(F); both views minus none, and consistency minus both views; and the
    gain minus the gain from as many English rows.
    The smallest effect of interest is half a point, per halving or between conditions.

    Args:
        table: one row per run, or per run and target language, of one plan and preset.
        n_permutations: of each slope, at most.

    Returns:
        A row per question and outcome: `question, outcome, value, low, high` (points), `p` (Holm), `conditions` (pairs
        of them, where they are compared in pairs), `seeds`, `halvings` by which the first of a pair is flatter all the
        same, `least` and `most`, between which a slope stays whichever condition is left out, and `verdict`. Where the
        runs are missing, the verdict says so.

    Raises:
        FlatlingoError: as for `competence.learnt` and `slopes.slope`.
    """
    table = competent_runs(table)
    runs = per_seed(table, [])  # once for all questions that ask of means over languages
    rows = []
    for within, question in ((False, "slope"), (True, "slope within families")):
        found = slopes(runs, within_families=within, n_permutations=n_permutations)
        rows += found.assign(question=question).rename_axis("outcome").reset_index().to_dict("records")
    for question, pairs in questions(runs).items():
        rows += _compared(runs, question, pairs)
    if "gain" in outcomes(table) and runs["control_gain"].notna().any():
        rows.append(_beyond_control(runs))
    return pd.DataFrame(rows, columns=COLUMNS)


def printed(found: pd.DataFrame) -> pd.DataFrame:
    """Verdicts to show: points with sign and two decimals, p with two digits, indexed by question and outcome."""
    points = {name: found[name].map(_points) for name in ("value", "low", "high", "halvings", "least", "most")}
    p = found["p"].map(lambda value: "" if math.isnan(value) else f"{value:.2g}")
    return found.assign(**points, p=p).set_index(["question", "outcome"])


def _points(value: float) -> str:
    return "" if math.isnan(value) else signed(value, 2)


def _compared(runs: pd.DataFrame, question: str, pairs: dict[str, tuple[str, str]]) -> list[dict]:
    """The rows of one comparison: over all its pairs, for each outcome."""
    found = {y: compare(runs, y, pairs) for y in outcomes(runs)}
    totals = {y: one.loc[ALL] for y, one in found.items() if not one.empty}
    corrected = dict(zip(totals, holm([row["p"] for row in totals.values()]), strict=True))
    missing = {"question": question, "conditions": 0, "seeds": 0, "verdict": "no pair of conditions"}
    return [
        _row(question, y, totals[y], len(found[y]) - 1, corrected[y])
        if y in totals
        else missing | {"outcome": OUTCOMES[y]}
        for y in found
    ]


def _beyond_control(runs: pd.DataFrame) -> dict:
    """The row of the gain beyond that from as many English rows, over all conditions."""
    found = gains(runs).loc[ALL].rename({"gain minus control": "value"})
    return _row("gain minus gain from English rows", "gain", found, runs["label"].nunique(), found["p"])


def _row(question: str, y: str, found: pd.Series, conditions: int, p: float) -> dict:
    interval = found[["value", "low", "high"]].to_dict()
    number = {"p": p, "conditions": conditions, "seeds": int(found["seeds"])}
    rest = {"halvings": found.get("halvings", math.nan), "verdict": verdict(found, p)}
    return {"question": question, "outcome": OUTCOMES[y]} | interval | number | rest
