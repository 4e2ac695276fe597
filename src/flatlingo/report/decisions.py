"""What a study decides: over competent conditions, each question with its value, interval, p-value and verdict."""

import math

import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.report.judging import holm, judge
from flatlingo.report.matched import (
    ALL,
    TOO_FEW_SEEDS,
    WORDS,
    compare,
    gains,
    questions,
    with_baseline,
)
from flatlingo.report.slopes import OUTCOMES, outcomes, per_seed, slopes
from flatlingo.report.statistics import per_run
from flatlingo.study.calibration import COMPETENT

COLUMNS = [
    *("question", "outcome", "value", "low", "high", "p", "conditions", "seeds", "halvings"),
    *("least", "most", "verdict"),
]
MOST = 0.5  # a condition counts if it has learnt the task in more than this share of its seeds


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
    able = learnt(table)
    return able & (able.groupby(table["label"]).transform("mean") > MOST)


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
    runs = table.assign(learnt=table["clean_train_accuracy"] - 1 / table["classes"])
    once = per_run(runs) if "language" in runs else runs
    baseline = with_baseline(once, "learnt").groupby("seed")["learnt_baseline"].first()
    if (baseline <= 0).any():
        raise FlatlingoError(f"the unregularised run of seed {baseline.idxmin()} learnt nothing; train it longer")
    return runs["learnt"] / runs["seed"].map(baseline) >= COMPETENT - 1e-12


def competent_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of competent runs.

    Raises:
        FlatlingoError: as for `competent`.
    """
    return table[competent(table)]


def memorised(table: pd.DataFrame) -> pd.Series:
    """Share of wrong training labels reproduced, less what a model without memory reproduces by chance.

    noisy_fitted - (1 - accuracy)/(C - 1): such a model errs as often as on English validation rows, and its errors hit
    one given wrong label of C - 1.

    >>> runs = pd.DataFrame({"noisy_fitted": [0.6], "english_accuracy": [0.8], "classes": [3]})
    >>> memorised(runs).round(3).tolist()
    [0.5]
    """
    return table["noisy_fitted"] - (1 - table["english_accuracy"]) / (table["classes"] - 1)


def verdicts(table: pd.DataFrame, *, seed: int = 0, n_permutations: int = 9999) -> pd.DataFrame:
    """Every question that decides, over competent runs; Holm's correction runs over the outcomes of a question.

    The questions: the slope of each outcome per halving of Tr(F), with the seed held fixed, and with the family too;
    consistency minus each rival at the same Tr(F); both views minus none, and consistency minus both views; and the
    gain minus the gain from as many English rows.
    The smallest effect of interest is half a point, per halving or between conditions.

    Args:
        table: one row per run, or per run and target language, of one plan and preset.
        seed: of permutations.
        n_permutations: at most.

    Returns:
        A row per question and outcome: `question, outcome, value, low, high` (points), `p` (Holm), `conditions` (pairs
        of them, where they are compared in pairs), `seeds`, `halvings` by which the first of a pair is flatter all the
        same, `least` and `most`, between which a slope stays whichever condition is left out, and `verdict`. Where the
        runs are missing, the verdict says so.

    Raises:
        FlatlingoError: as for `competent` and `slopes.slope`.
    """
    table = table[competent(table)]
    runs = per_seed(table, [])  # once for all questions that ask of means over languages
    rows = []
    for within, question in ((False, "slope"), (True, "slope within families")):
        found = slopes(runs, within_families=within, seed=seed, n_permutations=n_permutations)
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
    return "" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


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
    verdict = judge(**interval, p_value=p, words=WORDS, too_few=TOO_FEW_SEEDS)
    rest = {"p": p, "conditions": conditions, "seeds": int(found["seeds"])}
    halvings = found.get("halvings", math.nan)
    return {"question": question, "outcome": OUTCOMES[y], **interval, **rest, "halvings": halvings, "verdict": verdict}
