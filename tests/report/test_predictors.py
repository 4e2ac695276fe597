"""Which measure foretells how a model does in other languages, within seeds and at equal fit."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatlingo.errors import FlatlingoError
from flatlingo.report.predictors import MEASURES, predictors, printed, trace_or_kl


def made_up(conditions: int = 10, seeds: int = 3, languages: int = 0) -> pd.DataFrame:
    """Runs whose zero-shot accuracy falls with their sharpness; the trace goes with the training loss alone."""
    rng = np.random.default_rng(0)
    strength, loss = rng.normal(size=conditions), rng.normal(size=conditions)
    rows = []
    for c in range(conditions):
        for seed in range(seeds):
            fit = np.exp(loss[c] + 0.1 * rng.normal())
            row = {
                "run_id": f"{c}-{seed}", "family": "l2", "weight": float(c), "label": f"l2={c}", "seed": seed,
                "train_loss": fit, "trace": 100 / fit**2 * np.exp(0.05 * rng.normal() + seed),
                "sharpness": np.exp(strength[c] + 0.1 * rng.normal()), "margin": rng.normal(),
                "accuracy_de": 0.6, "trace_de": 3.0 + rng.random(), "accuracy_es": 0.6, "trace_es": 5.0 + rng.random(),
                "english_accuracy": 0.8 + 0.01 * rng.normal(),
            }  # fmt: skip
            row["zero_shot_accuracy"] = 0.6 - 0.05 * np.log(row["sharpness"]) - 0.1 * np.log(fit) + 0.05 * seed
            stage = {"zero_shot": 0.6, "adapted": 0.7, "gain": 0.1, "control": 0.6, "control_gain": 0.0}
            stages = [{"language": code} | {k: v + 0.01 * rng.normal() for k, v in stage.items()} for code in "ab"]
            rows += [row | one for one in stages[:languages]] or [row]
    return pd.DataFrame(rows)


def picked(found: pd.DataFrame, measure: str, within: str, outcome: str = "zero-shot accuracy") -> pd.Series:
    (row,) = (found[(found["measure"] == measure) & (found["within"] == within) & (found["outcome"] == outcome)]).iloc
    return row


def partial(runs: pd.DataFrame, x: str, y: str, *held: str) -> float:
    """Pearson's r of what ordinary least squares leaves of the ranks."""
    design = np.column_stack([pd.get_dummies(runs["seed"]).to_numpy(float), *(stats.rankdata(runs[h]) for h in held)])
    left = []
    for name in (x, y):
        ranks = stats.rankdata(runs[name])
        left.append(ranks - design @ np.linalg.lstsq(design, ranks)[0])
    return stats.pearsonr(*left).statistic


def test_values_are_partial_correlations_of_ranks():
    runs = made_up()
    found = predictors(runs)
    runs["target_trace"] = (runs["trace_de"] + runs["trace_es"]) / 2
    columns = {title: name for name, title in MEASURES.items()}
    for row in found.itertuples():
        held = ["train_loss"] if row.within == "seed and fit" else []
        expected = partial(runs, columns[row.measure], "zero_shot_accuracy", *held)
        assert row.value == pytest.approx(expected, abs=1e-9)
        assert (row.conditions, row.seeds, row.runs) == (10, 3, 30)
    assert "Tr(F) of target rows" in set(found["measure"])
    assert "early Tr(F)" not in set(found["measure"])


def test_a_trace_that_only_goes_with_the_fit_foretells_nothing_at_equal_fit():
    found = predictors(made_up(conditions=20))
    trace, equal = (picked(found, "Tr(F)", within) for within in ("seed", "seed and fit"))
    assert trace["low"] > 0
    assert equal["low"] < 0 < equal["high"]
    sharpness = picked(found, "SAM sharpness", "seed and fit")
    assert sharpness["high"] < 0
    assert sharpness["stronger_low"] > 0
    assert np.isnan(trace["stronger"])
    assert "seed and fit" not in set(found.loc[found["measure"] == "training loss", "within"])


def test_of_tr_f_and_the_kl_each_is_asked_at_equal_values_of_the_other():
    runs = made_up(conditions=20)
    rng = np.random.default_rng(1)
    runs["segmentation_kl"] = runs["sharpness"] * np.exp(0.1 * rng.normal(size=len(runs)))
    noise = rng.normal(size=(2, len(runs)))
    runs["trace"] = runs["segmentation_kl"] * np.exp(0.5 * noise[0])  # goes with accuracy by the KL alone
    runs["zero_shot_accuracy"] = 0.6 - 0.05 * np.log(runs["segmentation_kl"]) + 0.02 * noise[1]
    found = trace_or_kl(runs)
    assert list(found["outcome"].unique()) == ["English accuracy", "zero-shot accuracy"]
    for x, other in (("trace", "segmentation_kl"), ("segmentation_kl", "trace")):
        for within, held in (("seed", []), ("seed and the other", [other])):
            expected = partial(runs, x, "zero_shot_accuracy", *held)
            assert picked(found, MEASURES[x], within)["value"] == pytest.approx(expected, abs=1e-9)
    alone, equal = (picked(found, "Tr(F)", within) for within in ("seed", "seed and the other"))
    assert alone["high"] < 0
    assert equal["low"] < 0 < equal["high"]
    assert picked(found, "KL of two segmentations", "seed and the other")["high"] < 0
    assert trace_or_kl(runs.drop(columns="segmentation_kl")).empty
    assert trace_or_kl(runs.assign(segmentation_kl=np.nan)).empty


def test_no_interval_from_fewer_than_six_conditions():
    found = predictors(made_up(conditions=5))
    assert found["value"].notna().all()
    assert found[["low", "high", "stronger_low", "stronger_high"]].isna().all(axis=None)
    assert not printed(found).stack(["outcome", "at equal"]).str.contains("[", regex=False).any()


def test_a_second_stage_adds_its_outcomes_from_means_over_languages():
    table = made_up(languages=2)
    found = predictors(table)
    assert list(found["outcome"].unique()) == ["zero-shot accuracy", "gain", "accuracy after adaptation"]
    means = table.groupby(["label", "seed"], as_index=False)[["sharpness", "gain", "train_loss"]].mean()
    expected = partial(means, "sharpness", "gain", "train_loss")
    assert picked(found, "SAM sharpness", "seed and fit", "gain")["value"] == pytest.approx(expected, abs=1e-9)


def test_what_some_runs_lack_is_judged_on_those_that_have_it():
    runs = made_up()
    runs.loc[runs["label"] == "l2=0", "margin"] = np.nan
    found = predictors(runs)
    assert picked(found, "margin", "seed")["conditions"] == 9
    assert picked(found, "Tr(F)", "seed")["conditions"] == 10


def test_the_printed_table_has_a_row_for_each_measure():
    found = predictors(made_up())
    table = printed(found)
    assert list(table.index) == list(found["measure"].unique())
    assert list(table.columns) == [("zero-shot accuracy", "seed"), ("zero-shot accuracy", "seed and fit")]
    row = picked(found, "SAM sharpness", "seed")
    assert table.loc["SAM sharpness"].iloc[0] == f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]".replace(
        "-", "−"
    )
    assert table.loc["training loss"].iloc[1] == ""


def test_a_table_without_training_loss_is_refused():
    with pytest.raises(FlatlingoError, match="no column train_loss"):
        predictors(made_up().drop(columns="train_loss"))
