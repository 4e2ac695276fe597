"""The table of families, and from a condition to a term of the loss or a setting of training."""

import inspect

import pytest
from tiny import resolved, sources_of

from flatlingo import regularizers
from flatlingo.errors import FlatlingoError
from flatlingo.hub import load_model, load_tokenizer
from flatlingo.regularizers import SAM
from flatlingo.study.families import FAMILIES, KINDS, family
from flatlingo.study.presets import Condition, load_preset
from flatlingo.study.run import run
from flatlingo.study.terms import settings, terms
from flatlingo.training import finetune


def spec_of(name: str, weight: float = 0.1, plan: str = "methods"):
    first = resolved(plan, "smoke")[0].spec
    return first.model_copy(update={"condition": Condition(family=name, weight=weight)})


@pytest.mark.parametrize("row", FAMILIES.values(), ids=FAMILIES)
def test_a_row_names_something_that_exists(row):
    assert row.kind in KINDS
    if row.changes == "term":
        assert issubclass(getattr(regularizers, row.how), regularizers.Regularizer)
        assert getattr(regularizers, row.how).name == row.name.removesuffix("_faithful")
    elif row.changes == "setting":
        assert row.how in inspect.signature(finetune).parameters
    elif row.changes == "model":
        assert row.how in inspect.signature(load_model).parameters
    assert row.title
    assert row.code


def test_looks_tell_families_apart():
    looks = [row.look for row in FAMILIES.values() if row.look]
    assert len(set(looks)) == len(looks)
    labels = [row.label(1) for row in FAMILIES.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("preset", ["smoke", "mini", "paper"])
def test_every_family_is_run_once_by_plan_methods(preset):
    families = [condition.family for condition in load_preset(preset).plan("methods").expand()]
    # The consistency of preset paper is the faithful one, and xtune has no lexicon there.
    without = {"smoke": set(), "mini": {"both_views"}, "paper": {"both_views", "xtune", "consistency_faithful"}}[preset]
    assert families[0] == "none"
    assert sorted(families) == sorted(set(FAMILIES) - without)


def test_the_methods_are_run_in_the_setup_of_plan_nli():
    preset = load_preset("mini")
    assert preset.plan("methods").setup == preset.plan("nli").setup


@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if row.changes == "term" and row.weight])
def test_a_method_runs_at_the_weight_it_has_by_default(name):
    (weight,) = load_preset("mini").plan("methods").conditions[name]
    (term,) = terms(spec_of(name, weight), load_tokenizer("mini-mbert"))
    (first, *_) = [p for n, p in inspect.signature(type(term)).parameters.items() if n in ("weight", "p")]
    assert term.weight == weight
    assert first.default in (weight, inspect.Parameter.empty)
    assert f"{weight:g}" in family(name).code.replace("1.0", "1")
    assert term.name == name.removesuffix("_faithful")


@pytest.mark.parametrize(("name", "mode"), [("consistency", "clean"), ("consistency_faithful", "faithful")])
def test_consistency_is_of_clean_segmentations_in_the_mini_world_and_of_faithful_ones_where_it_says_so(name, mode):
    (term,) = terms(spec_of(name), load_tokenizer("mini-mbert"))
    assert term.perturbation.mode == term.perturbation.sampler.mode == mode


@pytest.mark.parametrize(
    ("name", "weight", "changes"),
    [
        ("sam", 0.05, {"sam": SAM(0.05)}),
        ("asam", 0.5, {"sam": SAM(0.5, adaptive=True)}),
        ("weight_decay", 0.01, {"weight_decay": 0.01}),
        ("label_smoothing", 0.1, {"label_smoothing": 0.1}),
        ("early_stopping", 3, {"patience": 3}),
        ("dropout", 0.3, {}),
    ],
)
def test_methods_that_are_no_terms_change_the_training(name, weight, changes):
    assert load_preset("mini").plan("methods").conditions[name] == (weight,)
    assert settings(Condition(family=name, weight=weight)) == changes
    assert terms(spec_of(name, weight), None) == []


def test_dropout_reaches_the_model():
    sources = sources_of("methods", "smoke")
    assert sources.load_model(spec_of("dropout", 0.3), "abc").config.hidden_dropout_prob == 0.3


@pytest.mark.parametrize("name", ["xtune", "asam", "early_stopping", "both_views"])
def test_a_method_is_trained_and_measured(name):
    result = run(spec_of(name, 3), sources_of("methods", "smoke")).result
    assert result["trace"]["value"] > 0
    assert set(result["accuracy"]) == {"en", "de", "es", "zh"}


def test_xtune_is_refused_where_there_is_no_lexicon():
    spec = spec_of("xtune")
    spec = spec.model_copy(update={"setup": spec.setup.model_copy(update={"task": "xnli"})})
    with pytest.raises(FlatlingoError, match="lexicon.*xnli"):
        terms(spec, None)


def test_an_unknown_family_is_refused_with_the_nearest():
    with pytest.raises(FlatlingoError, match="did you mean 'consistency'"):
        family("consitency")
