"""Studies made up with a known answer, to see how often the analysis finds it."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flatlingo.report.judging import judge
from flatlingo.report.matched import ALL, compare, pairs_at_equal_trace
from flatlingo.report.shapes import per_run
from flatlingo.report.slopes import slope as slope_of
from flatlingo.report.statistics import left_variance
from flatlingo.study.families import LEVELS

CONDITIONS = {  # shares of the unregularised model's Tr(F)
    "none": (1.0,),
    "both_views": (0.85,),
    "consistency": LEVELS,
    "fisher_penalty": LEVELS,
    "l2": LEVELS[:2],
    "dropout": LEVELS[:2],
}
LANGUAGES = ("de", "es", "zh")
PLAIN = 300  # Tr(F) of the unregularised model, but for noise
SEED_SD = 1.5  # points between seeds, the same for all conditions and languages
SLOPE, WITHIN, CONTRAST = "slope", "slope within families", "consistency minus Fisher penalty"  # the questions
TRUTHS = {  # a study, and in points what there is to find: the slope, that within families, the contrast at equal trace
    "no effect": ({}, (0, 0, 0)),
    "half a point per halving": ({"slope": 0.5}, (0.5, 0.5, 0)),
    "one point per halving": ({"slope": 1.0}, (1, 1, 0)),
    "two points of one family": ({"family_effects": {"consistency": 2.0}}, (math.nan, 0, 2)),
}


def simulated_study(
    seed: int,
    *,
    slope: float = 0.0,
    gain_slope: float = 0.0,
    family_effects: dict[str, float] | None = None,
    seeds: int = 3,
    rows: int = 4000,
    run_sd: float = 0.5,
    condition_sd: float = 0.0,
    conditions: dict[str, tuple[float, ...]] = CONDITIONS,
) -> pd.DataFrame:
    """The table of a study whose runs were made up: 14 conditions of 6 families by default, in three target languages.

    A run's true accuracy is that of its seed (which scatters by 1.5 points), plus `slope` points per halving of Tr(F),
    plus what its family adds, plus noise of its condition and its own. What is measured is binomial: English and
    zero-shot accuracy on `rows` rows, the held-out accuracies before and after the second stage on half as many. Log
    Tr(F) scatters about its level by .15 between conditions (a weight found on other seeds) and .1 between seeds.

    Args:
        seed: of the study; the global random state is left alone.
        slope: points per halving of English and zero-shot accuracy.
        gain_slope: points per halving of the gain, beyond that of the start.
        family_effects: points by family, of every accuracy but not of the gain.
        seeds: runs of each condition.
        rows: validation rows of a language.
        run_sd: points between runs, of English and each language separately.
        condition_sd: points between conditions that neither trace nor family explains, likewise.
        conditions: shares of the baseline's Tr(F) by family.

    Returns:
        One row per run and target language, with the columns of `study.table` that the analysis reads.

    >>> table = simulated_study(0, seeds=2)
    >>> len(table), table["label"].nunique()
    (84, 14)
    """
    rng = np.random.default_rng(seed)
    family = np.array([name for name, shares in conditions.items() for _ in shares])
    share = np.array([value for shares in conditions.values() for value in shares])
    trace = _traces(rng, share, seeds)
    halvings = -np.log2(trace / PLAIN)
    effects = np.array([(family_effects or {}).get(name, 0.0) for name in family])[:, None]
    points = rng.normal(0, SEED_SD, seeds) + effects + slope * halvings
    draw = _Draw(rng, trace.shape, run_sd, condition_sd)
    english, start, zero_shot = _accuracies(draw, points, rows)
    places = [(c, s) for c in range(len(share)) for s in range(seeds)]
    runs = pd.DataFrame({
        "run_id": [f"{c}-{s}" for c, s in places],
        "family": np.repeat(family, seeds),
        "label": [f"{family[c]}={share[c]:g}" if family[c] != "none" else "none" for c, _ in places],
        "seed": np.tile(np.arange(1, seeds + 1), len(share)),
        "classes": 3.0,
        "validation_rows": rows,
        "trace": trace.ravel(),
        "english_accuracy": english.ravel(),
        "zero_shot_accuracy": zero_shot.ravel(),
        "clean_train_accuracy": 0.95,
        "noisy_fitted": 0.6,
    })  # fmt: skip
    adapted = {code: _in_language(draw, one, gain_slope * halvings, rows) for code, one in start.items()}
    table = pd.concat([runs.assign(language=code, **one) for code, one in adapted.items()], ignore_index=True)
    before = table["zero_shot"]
    return table.assign(gain=table["adapted"] - before, control_gain=table["control"] - before)


@dataclass(frozen=True)
class _Draw:
    """What is random about accuracies (conditions, seeds): the noise of the true ones, and that of measuring them."""

    rng: np.random.Generator
    shape: tuple[int, int]
    run_sd: float
    condition_sd: float

    def truth(self, base: float, points: np.ndarray | float) -> np.ndarray:
        """An accuracy in 0..1 and points more, with the noise of its condition and its own."""
        own = self.rng.normal(0, self.condition_sd, (self.shape[0], 1)) + self.rng.normal(0, self.run_sd, self.shape)
        return base + (points + own) / 100

    def measured(self, accuracy: np.ndarray, rows: int) -> np.ndarray:
        """The share of so many rows that is right."""
        return self.rng.binomial(rows, np.clip(accuracy, 0, 1)) / rows


def _traces(rng: np.random.Generator, share: np.ndarray, seeds: int) -> np.ndarray:
    """Tr(F), (condition, seed), about the shares of the unregularised model's, which has no weight that could miss."""
    regularised = (share < 1)[:, None]
    scatter = rng.normal(0, 0.15, (len(share), 1)) * regularised + rng.normal(0, 0.1, (len(share), seeds))
    return PLAIN * share[:, None] * np.exp(scatter)


def _accuracies(draw: _Draw, points: np.ndarray, rows: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """English accuracy as measured; by language the true accuracy without adaptation; the mean of it as measured."""
    english = draw.measured(draw.truth(0.78, points), rows)
    start = {code: draw.truth(0.66, points) for code in LANGUAGES}
    return english, start, np.mean([draw.measured(one, rows) for one in start.values()], axis=0)


def _in_language(draw: _Draw, start: np.ndarray, points: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """Accuracies on the held-out half of a language's rows: before, after adaptation, after as many English rows."""
    gain, control = draw.truth(0.03, points), draw.truth(0.01, 0.0)
    true = {"zero_shot": start, "adapted": start + gain, "control": start + control}
    return {name: draw.measured(accuracy, rows // 2).ravel() for name, accuracy in true.items()}


def design(table: pd.DataFrame) -> dict:
    """What makes up a study like a recorded one, as `simulated_study` takes it: its conditions, seeds and spread.

    A condition's share is the geometric mean over seeds of its Tr(F) by the unregularised model's. `run_sd` is what
    conditions and seeds leave of English accuracy, less the error of scoring so many rows; 0.5 points where a study is
    too small to tell. `condition_sd` is what a condition has of its own beside the slope in log Tr(F), from the
    residuals of the slope (RSS₁, with a factor for the seed) and of conditions and seeds (of variance σ²):
    σ_c² = (RSS₁ - σ² (n - S - 1)) / tr(Z'MZ), Z the conditions' indicators and M what the first fit leaves.

    Args:
        table: of competent runs, one row per run or per run and target language.

    >>> found = design(simulated_study(0, seeds=6, run_sd=2.0, condition_sd=3.0))
    >>> found["seeds"], len(found["conditions"]["consistency"]), 1.5 < found["run_sd"] < 2.5 < found["condition_sd"] < 4
    (6, 4, True)
    """
    runs, rows = per_run(table), int(table["validation_rows"].iloc[0])
    logarithm = np.log(runs["trace"])
    none = logarithm[runs["family"] == "none"].groupby(runs["seed"]).mean()
    shares = np.exp((logarithm - runs["seed"].map(none)).groupby(runs["label"], sort=False).mean())
    families = runs.drop_duplicates("label").set_index("label")["family"]
    conditions = {name: tuple(shares[labels]) for name, labels in families.groupby(families, sort=False).groups.items()}
    english = 100 * runs["english_accuracy"]
    variance, freedom = left_variance(runs.assign(english=english), "english")
    scoring = (english * (100 - english)).mean() / rows
    run_sd = math.sqrt(max(variance - scoring, 0)) if freedom >= 5 else 0.5
    own = _of_conditions(runs, english, variance) if freedom >= 5 else 0.0
    spread = {"run_sd": run_sd, "condition_sd": math.sqrt(max(own, 0))}
    return {"conditions": conditions, "seeds": runs["seed"].nunique(), "rows": rows} | spread


def _of_conditions(runs: pd.DataFrame, y: pd.Series, variance: float) -> float:
    """The variance of y between conditions that neither the slope in log Tr(F) nor `variance` between runs explains."""
    seeds, conditions = (pd.get_dummies(runs[name].astype(str)).to_numpy(dtype=float) for name in ("seed", "label"))
    fitted = np.column_stack([seeds, np.log(runs["trace"])])
    left = np.eye(len(runs)) - fitted @ np.linalg.pinv(fitted)
    freedom = len(runs) - np.linalg.matrix_rank(fitted)
    return float((y @ left @ y - variance * freedom) / np.trace(conditions.T @ left @ conditions))


def right_verdicts(studies: int, **options) -> pd.DataFrame:
    """How often the analysis is right, wrong or undecided about each of `TRUTHS`; arguments as for `verdict_rates`.

    Returns:
        By truth and question: `truth` (points; NaN where there is none to find), shares of studies judged `right`,
        `wrong` and `undecided`, `covered` and `half_width`. Right is no effect for 0 and the sign for half a point or
        more. Of a slope that only a family makes nothing is right; wrong is then that it rises or falls.
    """
    rows = {}
    for words, (study, truths) in TRUTHS.items():
        rates = verdict_rates(studies, **study, **options)
        for (question, rate), truth in zip(rates.iterrows(), truths, strict=True):
            right = math.nan if math.isnan(truth) else rate["up"] if truth else rate["none"]
            wrong = rate["down"] + (rate["none"] if truth > 0 else rate["up"])
            shares = {"truth": truth, "right": right, "wrong": wrong}
            rows[words, question] = shares | rate[["undecided", "covered", "half_width"]].to_dict()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["study", "question"])


def verdict_rates(studies: int, *, n_permutations: int = 499, **study) -> pd.DataFrame:
    """How often the analysis of English accuracy says what, in studies of known answer.

    Args:
        studies: how many, of seeds 0, 1, …
        n_permutations: of each slope.
        **study: as for `simulated_study`: the truth, and the size of a study.

    Returns:
        For the slope, the slope within families, and consistency minus the Fisher penalty at equal trace: the shares of
        studies judged `up`, `down`, `none` and `undecided` (also where there is no interval), and `covered`, whose
        interval holds the true value; and the median `half_width` of the interval in points. With family effects the
        slope across families has no true value. English accuracy is judged alone, without the correction for the other
        outcomes that is made in a study (`decisions.verdicts`), so that fewer are decided there.
    """
    effects = study.get("family_effects") or {}
    slope = study.get("slope", 0.0)
    contrast = effects.get("consistency", 0.0) - effects.get("fisher_penalty", 0.0)
    truth = {SLOPE: math.nan if effects else slope, WITHIN: slope, CONTRAST: contrast}
    found = [_answers(seed, n_permutations, study) for seed in range(studies)]
    rates = {question: _rates([one[question] for one in found], true) for question, true in truth.items()}
    return pd.DataFrame.from_dict(rates, orient="index")


def _answers(seed: int, n_permutations: int, study: dict) -> dict[str, tuple[float, float, float, float]]:
    """What is found of one made-up study, by question: value, interval and p-value; NaN where there is none."""
    runs = simulated_study(seed, **study).query("language == 'de'").drop(columns="language")
    found = {}
    for question in (SLOPE, WITHIN):
        within = question == WITHIN
        one = slope_of(runs, "english_accuracy", within_families=within, seed=seed, n_permutations=n_permutations)
        found[question] = (one.value, one.low, one.high, one.p_value)
    pairs = pairs_at_equal_trace(runs, "consistency", "fisher_penalty")
    together = compare(runs, "english_accuracy", pairs).reindex([ALL]).loc[ALL]  # NaN if no pair is equal enough
    return found | {CONTRAST: tuple(together[["value", "low", "high", "p"]])}


def _rates(answers: list[tuple[float, float, float, float]], truth: float) -> dict[str, float]:
    """How often answers to one question say what, and how often their intervals hold the truth (NaN for none)."""
    words = ("up", "down", "none")
    said = pd.Series([judge(*answer, words=words, too_few="undecided") for answer in answers])
    shares = said.value_counts(normalize=True).reindex([*words, "undecided"], fill_value=0.0)
    _, low, high, _ = np.array(answers, dtype=float).T
    known = not math.isnan(truth) and not np.isnan(low).all()
    covered = ((low <= truth) & (truth <= high)).mean() if known else math.nan
    return shares.to_dict() | {"covered": covered, "half_width": float(pd.Series(high - low).median() / 2)}
