"""Estimates: the arithmetic of the paper's preset, and a measurement from end to end."""

import pytest
import torch
from tiny import write_preset
from typer.testing import CliRunner

from flatlingo import estimate, experiment
from flatlingo.cli import app
from flatlingo.encoding import encode


@pytest.mark.parametrize(
    ("figure", "steps", "adaptation", "predicted", "traced"),
    [
        ("figure1", 5 * 625, 0, 20_000 + 4 * 2_490, 2_490),
        ("figure2", 5 * 1_544, 3 * 5 * 32, 49_401 + 4 * 2_000 + 3 * 2 * 1_000, 2_000),
    ],
)
def test_the_work_of_a_run_of_the_papers_size(figure, steps, adaptation, predicted, traced):
    config = experiment.plan(figure, experiment.load_preset("paper"))[0]
    sizes, rows, tokenizer = estimate._made_up(config)
    assert estimate._work(config, sizes) == (
        {"english": steps, "adaptation": adaptation},
        {"predicted": predicted, "traced": traced},
    )
    assert {len(item["input_ids"]) for item in encode(list(rows), tokenizer, max_length=128)} == {128}
    assert max(rows["label"]) < sizes.classes


@pytest.mark.parametrize(("preset", "parameters"), [("paper", 177_855_747), ("xlmr", 278_045_955 + 768)])
def test_models_on_the_hub_are_timed_at_their_shape(preset, parameters, monkeypatch):
    """XLM-R's is timed with a second token type, of 768 numbers."""
    config = experiment.plan("figure1", experiment.load_preset(preset))[0]
    monkeypatch.setattr(estimate.study, "device", lambda: torch.device("meta"))  # no memory, no time
    with torch.device("meta"):
        assert estimate._parameters(estimate._classifier(config, 3)) == parameters


def test_a_dry_run_tells_runs_rows_steps_hours_and_memory(tmp_path):
    path = write_preset(tmp_path, figure2={"none": [0], "consistency": [0.6, 2], "dropout": [0]})
    found = estimate.estimate("figure2", preset=path, seeds=2)
    assert found.families["runs"].to_dict() == {"none": 2, "consistency": 4, "dropout": 2}
    assert (found.families[["step_seconds", "run_hours"]] > 0).all(axis=None)
    assert found.families.loc["dropout", "step_seconds"] == found.families.loc["none", "step_seconds"]
    for part in ("8 runs of mini-mbert (1.1 M parameters)", "96 rows, 1 epochs, 3 steps of 32", "de, es, zh", " GB "):
        assert part in str(found)


def test_the_command_needs_a_store_or_a_dry_run():
    assert "--dry-run" in str(CliRunner().invoke(app, ["sweep", "figure1"]).exception)
