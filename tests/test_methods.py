"""The plan of every named method: from a condition to a term of the loss or a setting of training."""

import inspect
import json
import re
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import yaml
from tiny import write_preset

import flatlingo.regularizers
from flatlingo import experiment, methods, study
from flatlingo.errors import FlatlingoError
from flatlingo.experiment import Condition, Family, load_preset, plan
from flatlingo.hub import load_tokenizer
from flatlingo.regularizers import SAM
from flatlingo.training import finetune


def config_of(family: str, weight: float = 0.1):
    first = plan("methods", load_preset("smoke"))[0]
    return first.model_copy(update={"condition": Condition(family=family, weight=weight)})


@pytest.mark.parametrize("preset", ["smoke", "mini", "paper"])
def test_every_family_is_run_once_by_plan_methods(preset):
    families = [condition.family for condition in load_preset(preset).methods.expand()]
    without = {"xtune"} if preset == "paper" else set()  # it needs a lexicon
    assert families[0] == "none"
    assert sorted(families) == sorted(set(get_args(Family)) - without)


def test_the_methods_are_run_in_the_study_of_figure_1():
    preset = load_preset("mini")
    assert preset.methods.study == preset.figure1.study


@pytest.mark.parametrize("family", [*methods.TERMS, "consistency", "xtune"])
def test_a_method_runs_at_the_weight_it_has_by_default(family):
    (weight,) = load_preset("mini").methods.conditions[family]
    (term,) = methods.terms(config_of(family, weight), load_tokenizer("mini-mbert"))
    (first, *_) = [p for n, p in inspect.signature(type(term)).parameters.items() if n in ("weight", "p")]
    table = re.search(rf"`{type(term).__name__}\((?:weight=|p=)?([\d.]+)\)`", flatlingo.regularizers.__doc__)
    default = float(table.group(1)) if first.default is inspect.Parameter.empty else first.default
    assert term.weight == weight == default
    assert term.name == family


@pytest.mark.parametrize(
    ("family", "weight", "changes"),
    [
        ("sam", 0.05, {"sam": SAM(0.05)}),
        ("asam", 0.5, {"sam": SAM(0.5, adaptive=True)}),
        ("weight_decay", 0.01, {"weight_decay": 0.01}),
        ("label_smoothing", 0.1, {"label_smoothing": 0.1}),
        ("early_stopping", 3, {"patience": 3}),
        ("dropout", 0.3, {}),
    ],
)
def test_methods_that_are_no_terms_change_the_training(family, weight, changes):
    assert load_preset("mini").methods.conditions[family] == (weight,)
    assert methods.settings(Condition(family=family, weight=weight)) == changes
    assert set(changes) <= set(inspect.signature(finetune).parameters)
    assert methods.terms(config_of(family, weight), None) == []


@pytest.mark.parametrize("family", ["xtune", "asam", "early_stopping"])
def test_a_method_is_trained_and_measured(family):
    config = config_of(family, 3)
    result, *_ = study.run(config)
    assert result["trace"]["value"] > 0
    assert set(result["accuracy"]) == {"en", "de", "es", "zh"}


def test_the_catalogue_has_every_method_and_its_lines_are_those_of_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "BENCHMARK", tmp_path / "steps.json")
    rows = [{"family": "none", "floor": 1, "time": 1}, {"family": "consistency", "floor": 2, "time": 1.9}]
    methods.BENCHMARK.write_text(json.dumps({"rows": [*rows, {"family": "", "floor": 2, "time": 9}]}))
    runs = pd.DataFrame({"family": ["none", "none", "consistency"], "trace": [100.0, 300.0, 50.0]})
    runs["english_accuracy"] = [0.5, 0.6, 0.57]
    page = methods.catalogue(runs)
    assert sorted(["none", *page.index]) == sorted(get_args(Family))
    assert page.loc["consistency", ["passes", "time", "Tr(F)", "English"]].tolist() == pytest.approx([2, 1.9, 0.25, 2])
    assert page.loc["weight_decay", "time"] == 1
    assert page["Tr(F)"].isna().sum() == page["English"].isna().sum() == len(page) - 1
    for line, paper in zip(page["one line"], page["paper"], strict=True):
        (row,) = [row for row in flatlingo.regularizers.__doc__.splitlines() if f"`{line}`" in row]
        assert row.endswith(paper)


def test_xtune_is_refused_where_there_is_no_lexicon():
    config = config_of("xtune")
    config = config.model_copy(update={"study": config.study.model_copy(update={"task": "xnli"})})
    with pytest.raises(FlatlingoError, match="lexicon.*xnli"):
        methods.terms(config, None)


def test_a_preset_may_do_without_the_plan(tmp_path):
    path = Path(write_preset(tmp_path))
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["methods"]
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    preset = load_preset(str(path))
    assert "methods" not in preset.plans
    with pytest.raises(FlatlingoError, match="no plan 'methods'; it has figure1, figure2"):
        experiment.plan("methods", preset)
