"""Whether Tr(F) on the way of a training foretells an outcome, and with which sign; and the predictors' figure."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flatlingo.report import early, predictors

SHARES = (0.02, 0.1, 0.5)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def made_up(conditions=8, seeds=3, signs=(1, 0, -1)):
    """Runs, and their curves: how log Tr(F) at each share goes with zero-shot accuracy, whatever the seed."""
    rng, runs, curves = np.random.default_rng(0), [], []
    for c in range(conditions):
        for seed in range(1, seeds + 1):
            names = {"run_id": f"{c}-{seed}", "family": "l2", "label": f"l2={c}", "seed": seed}
            quality = c + 0.1 * rng.normal()
            runs.append(names | {
                "weight": float(c), "trace": 9.0, "early_trace": 5.0, "train_loss": rng.random(),
                "english_accuracy": 0.8, "zero_shot_accuracy": 0.5 + 0.01 * quality + 0.1 * seed,
            })  # fmt: skip
            for share, sign in zip(SHARES, signs, strict=True):
                log = sign * quality + 0.5 * rng.normal() + 5 * seed
                found = {"early_trace": np.exp(log), "early_log_trace": log - 1, "early_loss": rng.random()}
                curves.append(names | {"share": share} | found)
    return pd.DataFrame(runs), pd.DataFrame(curves)


def picked(found, share, within="seed", measure="Tr(F)"):
    (row,) = found.query("share == @share and within == @within and measure == @measure").itertuples()
    return row


def left(values, *held):
    """Ranks, less what least squares explains by seeds and other ranks."""
    ranks, design = stats.rankdata(values), np.column_stack(held)
    return ranks - design @ np.linalg.lstsq(design, ranks)[0]


def test_the_sign_is_found_at_each_share():
    found = early.early(*made_up())
    assert picked(found, 0.02).low > 0
    assert picked(found, 0.5).high < 0
    assert abs(picked(found, 0.1).value) < 0.6 < min(picked(found, 0.02).value, -picked(found, 0.5).value)
    assert picked(found, 0.02, measure="mean log Tr(F)").value == pytest.approx(picked(found, 0.02).value)


@pytest.mark.parametrize("within", early.WITHIN)
def test_values_are_partial_correlations_of_ranks(within):
    runs, curves = made_up()
    row = picked(early.early(runs, curves), 0.5, within)
    moment = runs.drop(columns="early_trace").merge(curves[curves["share"] == 0.5], on=["run_id", "seed", "label"])
    held = [pd.get_dummies(moment["seed"]).to_numpy(float)]
    held += [stats.rankdata(moment["early_loss"])] if within != "seed" else []
    expected = stats.pearsonr(*(left(moment[name], *held) for name in ("early_trace", "zero_shot_accuracy")))
    assert row.value == pytest.approx(expected.statistic, abs=1e-9)
    assert (row.conditions, row.seeds, row.runs) == (8, 3, 24)


def test_runs_that_are_not_in_the_table_do_not_count():
    runs, curves = made_up()
    found = early.early(runs[runs["label"] < "l2=5"], curves)
    assert set(found["conditions"]) == {5}
    assert found["low"].isna().all()


def test_without_a_curve_there_is_no_row_and_the_panel_says_so():
    runs, curves = made_up()
    nothing = early.early(runs, curves.head(0))
    assert nothing.empty
    fig = early.early_figure({"nli": early.early(runs, curves), "paraphrase": nothing})
    fig.canvas.draw()
    assert [text.get_text() for text in fig.axes[2].texts] == ["Tr(F) was not measured on the way of these\nruns"]
    assert [tick.get_text() for tick in fig.axes[3].get_xticklabels()] == ["0.02", "0.1", "0.5"]


def test_what_is_printed_has_a_line_a_share():
    found = early.printed(early.early(*made_up()))
    assert found.index.tolist() == [*SHARES]
    assert found.loc[0.5, ("zero-shot accuracy", "within seeds")].startswith("−")


def test_the_figure_of_predictors_has_a_line_for_each_measure_that_varies():
    runs, _ = made_up()
    runs = runs.assign(trace=np.exp(runs["zero_shot_accuracy"]), margin=3.0, train_loss=np.nan)
    found = predictors.predictors(runs)
    assert set(found["within"]) == {"seed"}  # no training loss is on record
    fig = predictors.predictors_figure({"nli": found, "paraphrase": found.head(0)})
    fig.canvas.draw()
    first, second = fig.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["Tr(F)"]
    assert [text.get_text() for text in second.texts] == ["not measured in these runs"]
    assert second.get_xlabel() == "ρ with zero-shot accuracy"
