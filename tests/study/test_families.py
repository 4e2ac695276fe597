"""The table of families, and from a condition to a term of the loss or a setting of training."""

import inspect
import re

import pandas as pd
import pytest
from test_segmentation_unigram import make_unigram
from tiny import resolved, sources_of

from flatlingo import regularizers
from flatlingo.errors import FlatlingoError
from flatlingo.files import RECORDED
from flatlingo.models import load_model, load_tokenizer
from flatlingo.regularizers import SAM
from flatlingo.study.condition import Condition
from flatlingo.study.families import FAMILIES, KINDS, family
from flatlingo.study.presets import load_preset
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


def test_methods_of_two_passes_are_counted_as_such():
    assert all(row.passes >= 6 for row in FAMILIES.values() if row.kind in ("consistency", "gradient"))
    assert all(row.passes == 3 for row in FAMILIES.values() if row.kind not in ("consistency", "gradient"))


@pytest.mark.parametrize(("which", "names"), [("head", "pooler|classifier"), (None, "bert")], ids=str)
def test_a_recipe_says_which_parameters_a_penalty_is_of(which, names):
    recipe = Condition(family="trace_penalty", weight=0.1, parameters=which, every=2)
    spec = spec_of("trace_penalty").model_copy(update={"condition": recipe})
    (term,) = terms(spec, load_tokenizer("mini-mbert"))
    assert (term.parameters, term.every) == (which, 2)
    term.start(load_model("mini-mbert", num_labels=3, seed=0), seed=0)
    assert re.search(names, next(iter(term.penalised())))


def test_looks_tell_families_apart():
    looks = [row.look for row in FAMILIES.values() if row.look]
    assert len(set(looks)) == len(looks)
    labels = [row.label(1) for row in FAMILIES.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("preset", ["smoke", "mini", "paper"])
def test_every_family_is_run_by_plan_methods(preset):
    families = list(load_preset(preset).plan("methods").conditions)
    unrecorded = {"both_views", "trace_target"}
    # The consistency of preset paper is the faithful one, and xtune has no lexicon there.
    without_paper = {"both_views", "xtune", "trace_target", "consistency_faithful"}
    without = {"smoke": set(), "mini": unrecorded, "paper": without_paper}[preset]
    assert families[0] == "none"
    assert sorted(families) == sorted(set(FAMILIES) - without)


def test_the_methods_are_run_in_the_setup_of_plan_nli():
    preset = load_preset("mini")
    assert preset.plan("methods").setup == preset.plan("nli").setup.model_copy(update={"second_stage": None})


def test_methods_whose_default_weight_does_not_halve_the_trace_are_run_at_the_one_that_does():
    plan = load_preset("mini").plan("methods")
    half = pd.concat(
        table[(table["what"] == "level") & (table["level"] == 0.5)].set_index("family")["weight"]
        for table in (pd.read_csv(RECORDED / "mini" / f"calibration-{name}.csv") for name in ("nli", "methods"))
    ).dropna()
    for name, (_default, *matched) in plan.conditions.items():
        assert matched in ([], [half.get(name)]), name
    at_default = {"r_drop", "fisher_penalty", "trace_penalty"}  # half of it within a tenth, at which a share is known
    assert {name for name in half.index if len(plan.conditions[name]) == 1} == at_default


SET = ("trace_target", "l2")  # the weight is where the trace is pulled to; the mini world unlearns at L2's default


@pytest.mark.parametrize(
    "name", [name for name, row in FAMILIES.items() if row.changes == "term" and row.weight and name not in SET]
)
def test_a_method_runs_at_the_weight_it_has_by_default(name):
    weight, *_matched = load_preset("mini").plan("methods").conditions[name]
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
        ("weight_averaging", 0.25, {"average": 0.25}),
        ("dropout", 0.3, {}),
    ],
)
def test_methods_that_are_no_terms_change_the_training(name, weight, changes):
    assert load_preset("smoke").plan("methods").conditions[name] == (weight,)
    assert settings(Condition(family=name, weight=weight)) == changes
    assert terms(spec_of(name, weight), None) == []


def test_dropout_reaches_the_model():
    sources = sources_of("methods", "smoke")
    assert sources.load_model(spec_of("dropout", 0.3), "abc").config.hidden_dropout_prob == 0.3


def test_a_condition_of_several_families_is_all_of_them():
    also = {"weight_averaging": 0.5, "trace_penalty": 0.01, "dropout": 0.3, "sam": 0.05}
    spec = spec_of("l2")
    condition = Condition(family="l2", weight=0.1, also=also, every=3)
    spec = spec.model_copy(update={"condition": condition})
    first, second = terms(spec, None)
    assert (first.name, first.weight) == ("l2", 0.1)
    assert (second.name, second.weight, second.every) == ("trace_penalty", 0.01, 3)
    assert settings(condition) == {"average": 0.5, "sam": SAM(0.05)}
    assert sources_of("methods", "smoke").load_model(spec, "abc").config.hidden_dropout_prob == 0.3


def test_the_setup_thins_the_exact_trace_penalty_alone():
    condition = Condition(family="trace_penalty", weight=0.1, also={"fisher_penalty": 0.01, "trace_target": 300})
    spec = spec_of("l2").model_copy(update={"condition": condition})
    spec = spec.model_copy(update={"setup": spec.setup.model_copy(update={"trace_penalty_every": 2})})
    assert [(term.name, term.every) for term in terms(spec, None)] == [
        ("trace_penalty", 2), ("fisher_penalty", 1), ("trace_target", 1),
    ]  # fmt: skip
    assert spec.compute == pytest.approx(1 + 3 / 2 + 2 + 3)  # passes: plain, three of a trace, two of a Fisher penalty


def test_a_trace_target_is_held_from_the_step_that_the_setup_names():
    spec = spec_of("trace_target", 300)
    spec = spec.model_copy(update={"setup": spec.setup.model_copy(update={"trace_target_after": 7})})
    (term,) = terms(spec, None)
    assert (term.target, term.after, term.every) == (300, 7, 1)


def test_a_condition_trains_for_its_length():
    spec = spec_of("none", 0)
    spec = spec.model_copy(update={"condition": Condition(family="none", length=3)})
    history = run(spec, sources_of("methods", "smoke")).result["history"]
    assert max(entry["step"] for entry in history) == 3 * 2  # 32 rows in batches of 16


@pytest.mark.parametrize("name", ["xtune", "asam", "early_stopping", "both_views", "weight_averaging", "trace_target"])
def test_a_method_is_trained_and_measured(name):
    weight = {"weight_averaging": 0.5, "both_views": 0}.get(name, 3)
    result = run(spec_of(name, weight), sources_of("methods", "smoke")).result
    assert result["trace"]["value"] > 0
    assert set(result["accuracy"]) == {"en", "de", "es", "zh"}


def test_xtune_is_refused_where_there_is_no_lexicon():
    spec = spec_of("xtune")
    spec = spec.model_copy(update={"setup": spec.setup.model_copy(update={"task": "xnli"})})
    with pytest.raises(FlatlingoError, match="lexicon.*xnli"):
        terms(spec, None)


def test_faithful_consistency_is_refused_where_no_piece_can_be_lost():
    with pytest.raises(FlatlingoError, match="consistency_faithful loses pieces as WordPiece"):
        terms(spec_of("consistency_faithful"), make_unigram())


def test_an_unknown_family_is_refused_with_the_nearest():
    with pytest.raises(FlatlingoError, match="did you mean 'consistency'"):
        family("consitency")
