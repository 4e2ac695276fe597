"""Presets, plans, conditions and run ids."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import resolved

from flatlingo.errors import FlatlingoError
from flatlingo.files import MINI_MBERT
from flatlingo.settings import validated
from flatlingo.study import presets
from flatlingo.study.condition import Condition
from flatlingo.study.presets import expand, load_preset
from flatlingo.study.runspec import RunConfig
from flatlingo.study.sweep import sweep


@pytest.fixture
def preset_file(tmp_path):
    """Write a changed copy of preset smoke; returns the function that does."""

    def write(**changes):
        settings = load_preset("smoke").model_dump(mode="json")
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            holder = settings
            for name in path:
                holder = holder[name]
            holder[last] = value
        path = tmp_path / "changed.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


@pytest.mark.parametrize("name", sorted(set(presets.known_presets()) - {"small"}))
@pytest.mark.parametrize("plan", ["nli", "paraphrase"])
def test_a_shipped_preset_starts_with_the_baseline_and_has_all_of_the_papers_families(name, plan):
    conditions = load_preset(name).plan(plan).expand()
    assert conditions[0] == Condition(family="none")
    # in the paraphrases of the mini world no weight of L2 lowers Tr(F) without losing the task
    other = "dropout" if plan == "paraphrase" and name in ("mini", "quick") else "l2"
    assert {"consistency", "fisher_penalty", other} < {condition.family for condition in conditions}
    assert len(set(conditions)) == len(conditions)


def test_preset_mini_has_enough_conditions_for_both_figures():
    preset = load_preset("mini")
    assert len(preset.plan("nli").expand()) >= 11
    assert len(preset.plan("paraphrase").expand()) >= 8


def test_preset_quick_is_a_part_of_preset_mini():
    quick, mini = load_preset("quick"), load_preset("mini")
    for plan in quick.plans:
        rows = {"validation_size": 2000}  # of which a second stage has half, as many as in the paper
        setup = mini.plan(plan).setup.model_copy(update=rows)
        assert quick.plan(plan).setup == setup
        labels = [{condition.label for condition in preset.plan(plan).expand()} for preset in (quick, mini)]
        assert labels[0] < labels[1]


def test_a_plan_has_as_many_seeds_as_it_plans_or_else_its_preset(preset_file):
    asked = preset_file(seeds=3, plans__nli__seeds=2)
    preset = load_preset(asked)
    seeds = {plan: [spec.seed for spec in expand(plan, preset)] for plan in ("nli", "paraphrase")}
    assert {plan: [*dict.fromkeys(found)] for plan, found in seeds.items()} == {"nli": [1, 2], "paraphrase": [1, 2, 3]}
    assert {spec.seed for spec in expand("nli", preset, seeds=4)} == {1, 2, 3, 4}


def test_preset_paper_has_the_hyper_parameters_of_wang_et_al():
    setup = load_preset("paper").plan("nli").setup
    assert (setup.task, setup.train_size) == ("xnli", 20_000)
    assert setup.training.model_dump() == {"epochs": 5, "batch_size": 32, "learning_rate": 2e-5, "max_length": 128}
    assert setup.segmentation.model_dump() == {"p": 0.2, "mode": "faithful", "shared_pass": True}


def test_preset_xlmr_is_preset_paper_on_another_encoder():
    xlmr, paper = load_preset("xlmr"), load_preset("paper")
    assert xlmr.encoder.source == "FacebookAI/xlm-roberta-base"
    assert xlmr.seeds == paper.seeds
    assert all(xlmr.plan(plan) == paper.plan(plan) for plan in ("nli", "paraphrase"))


def test_the_weights_of_the_fisher_penalty_span_those_of_its_authors_code():
    weights = load_preset("paper").plan("nli").conditions["fisher_penalty"]
    assert [64 * weight for weight in weights] == pytest.approx([0.001, 0.01, 0.1, 1, 10], rel=0.03)


@pytest.mark.parametrize(
    ("condition", "label"),
    [
        (("none", 0), "none"),
        (("consistency", 0.6), "kl=0.6"),
        (("fisher_penalty", 1e-3), "fpen=0.001"),
        (("l2", 1), "l2=1"),
    ],
)
def test_a_condition_is_labelled_as_in_the_paper(condition, label):
    assert Condition(family=condition[0], weight=condition[1]).label == label


RECIPE = {"family": "fisher_penalty", "weight": 0.001, "also": {"weight_averaging": 0.25}, "every": 2, "length": 0.5}


def test_a_condition_may_say_more_and_older_ids_do_not_know_of_it():
    recipe = Condition.model_validate(RECIPE)
    assert recipe.label == "fpen=0.001+average=0.25+every=2+length=0.5"
    assert recipe.method == "fisher_penalty+weight_averaging+every=2"
    assert Condition.model_validate(json.loads(recipe.model_dump_json())) == recipe
    assert Condition(family="l2", weight=1).model_dump() == {"family": "l2", "weight": 1.0}
    spec = expand("nli", load_preset("smoke"))[0]
    assert spec.model_copy(update={"condition": recipe}).epochs == 1
    longer = recipe.model_copy(update={"length": 2.6})
    assert spec.model_copy(update={"condition": longer}).epochs == round(2.6 * spec.setup.training.epochs)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"also": {"magic": 1}}, "magic"),
        ({"every": 0}, "every"),
        ({"length": 0}, "length"),
        ({"parameters": "tail"}, "parameters"),
        ({"family": "l2"}, "every=2 is of penalties on the gradient, and l2 is none"),
        ({"family": "l2", "every": 1, "parameters": "head"}, "parameters=head is of Fisher and trace penalty"),
        ({"family": "sam", "every": 1, "also": {"asam": 0.5}}, r"family that sets the same \(sam\)"),
    ],
    ids=[
        "another family",
        "never",
        "no training",
        "other layers",
        "every without penalty",
        "head without penalty",
        "two of a setting",
    ],
)
def test_an_impossible_recipe_is_refused(change, named):
    with pytest.raises(FlatlingoError, match=named):
        validated(Condition, RECIPE | change, "condition")


COMPUTE = {  # of what is below, in that of plain fine-tuning
    "none": (1, {"family": "none"}),
    "setting": (1, {"family": "weight_averaging", "weight": 0.25}),
    "longer": (3, {"family": "none", "length": 3}),
    "two passes": (2, {"family": "consistency"}),
    "shorter": (1, {"family": "r_drop", "length": 0.5}),
    "SAM": (2, {"family": "sam"}),
    "penalty": (3, {"family": "fisher_penalty"}),
    "every second step": (2, {"family": "fisher_penalty", "every": 2}),
    "of three labels": (4, {"family": "trace_penalty"}),
    "by the setup": (1.75, {"family": "trace_penalty"}),
    "of the head": (1, {"family": "trace_penalty", "parameters": "head"}),
    "of the last layer, every second step": (
        1.25,
        {"family": "fisher_penalty", "parameters": "last_layer", "every": 2},
    ),
    "two terms": (3.5, {"family": "consistency", "every": 2, "also": {"trace_penalty": 0.0003}}),
    "whole epochs": (9 / 14, {"family": "none", "length": 0.65}),
    "SAM with a term": (4, {"family": "sam", "also": {"consistency": 0.6}}),
}


@pytest.mark.parametrize("name", COMPUTE)
def test_compute_is_counted_in_passes(name):
    expected, condition = COMPUTE[name]
    spec = expand("nli", load_preset("mini"))[0].model_copy(update={"condition": Condition.model_validate(condition)})
    setup = spec.setup.model_copy(update={"trace_penalty_every": 4 if name == "by the setup" else 1})
    assert spec.model_copy(update={"setup": setup}).compute == pytest.approx(expected)


def test_methods_are_compared_at_equal_compute():
    """Passes of a step times the length of training: once, twice and three times those of plain fine-tuning."""
    runs = expand("technique", load_preset("mini"), seeds=1)
    assert all(abs(spec.compute / round(spec.compute) - 1) < 0.05 for spec in runs)
    assert {round(spec.compute) for spec in runs} == {1, 2, 3}
    plain = [round(spec.compute) for spec in runs if spec.condition.family == "none"]
    assert sorted(plain) == [1, 2, 3]
    assert len({spec.condition.label for spec in runs}) == len(runs)


def test_a_penalty_of_some_parameters_is_another_condition():
    recipe = Condition.model_validate(RECIPE | {"parameters": "last_layer"})
    assert recipe.label == "fpen=0.001+average=0.25+parameters=last_layer+every=2+length=0.5"
    assert recipe.method == "fisher_penalty+weight_averaging+parameters=last_layer+every=2"
    assert Condition.model_validate(json.loads(recipe.model_dump_json())) == recipe


def test_ids_identify_configurations():
    configs = resolved("nli", "smoke", seeds=3)
    assert len({config.run_id for config in configs}) == len(configs)
    again = [RunConfig.model_validate_json(json.dumps(config.model_dump(mode="json"))) for config in configs]
    assert again == configs
    assert [config.run_id for config in again] == [config.run_id for config in configs]
    assert all(config.run_id.startswith(f"{config.spec.name}-") for config in configs)


def test_seeds_are_any_numbers_in_any_order():
    seeds = [spec.seed for spec in expand("nli", load_preset("smoke"), seeds=range(4, 2, -1))]
    assert list(dict.fromkeys(seeds)) == [4, 3]


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_a_preset_of_ones_own_is_found_as_a_task_is(monkeypatch, preset_file, tmp_path, ending):
    Path(preset_file(name="mine")).rename(tmp_path / f"mine.{ending}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (f"~/mine.{ending}", str(tmp_path / f"mine.{ending}")):
        assert load_preset(path).name == "mine"


def test_seeds_are_the_outer_loop_so_that_every_finished_seed_is_a_study():
    specs = expand("paraphrase", load_preset("smoke"), seeds=2)
    half = len(specs) // 2
    assert [spec.seed for spec in specs] == [1] * half + [2] * half
    assert [spec.condition for spec in specs[:half]] == [spec.condition for spec in specs[half:]]


def test_optional_settings_at_their_default_are_left_out_of_ids():
    for spec in expand("paraphrase", load_preset("smoke")):
        written = spec.model_dump(mode="json")["setup"]
        assert "trace_penalty_every" not in written
        assert not {"warmup", "group_by_length"} & set(written["training"])


def test_the_regularised_second_stage_shares_its_first_stage_with_plan_paraphrase():
    preset = load_preset("mini")
    kept, dropped = (preset.plan(name).setup for name in ("regularized_second_stage", "paraphrase"))
    assert kept.second_stage == dropped.second_stage.model_copy(update={"regularized": True})
    differing = {"second_stage", "trace_penalty_every"}
    assert kept.model_dump(exclude=differing) == dropped.model_dump(exclude=differing)
    labels = {condition.label for condition in preset.plan("regularized_second_stage").expand()}
    shared = {label for label in labels if not label.startswith("trpen")}
    assert shared <= {condition.label for condition in preset.plan("paraphrase").expand()}


@pytest.mark.parametrize(
    "change",
    [
        {"plans__nli__setup__training__epochs": 7},
        {"plans__nli__setup__training__group_by_length": True},
        {"plans__nli__setup__label_noise": 0.2},
        {"plans__nli__setup__precision": "bf16"},
        {"plans__nli__setup__segmentation__mode": "faithful"},
        {"plans__nli__setup__measurement__trace_examples": 50},
    ],
    ids=lambda change: next(iter(change)).split("__")[-1],
)
def test_a_changed_setting_changes_the_ids_of_its_plan_only(preset_file, change):
    changed = preset_file(**change)
    for plan, same in (("nli", False), ("paraphrase", True)):
        before, after = ({config.run_id for config in resolved(plan, preset)} for preset in ("smoke", changed))
        assert (before == after) is same
        assert same or not before & after


def test_other_weights_of_the_pretrained_encoder_change_the_ids(tmp_path):
    other = tmp_path / "encoder"
    other.mkdir()
    for path in MINI_MBERT.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    before = resolved("nli", "smoke", model=other)[0]
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    again = tmp_path / "again" / "encoder"
    again.mkdir(parents=True)
    for path in other.iterdir():
        (again / path.name).write_bytes(weights if path.suffix == ".safetensors" else path.read_bytes())
    after = resolved("nli", "smoke", model=again)[0]
    assert before.spec == after.spec, "the same encoder by name"
    assert before.run_id != after.run_id


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"plans__nli__setup__training__epochs": 0}, "plans.nli.setup.training.epochs"),
        ({"plans__nli__setup__training__epoch": 3}, "plans.nli.setup.training.epoch"),
        ({"plans__nli__conditions": {"consitency": [1]}}, "did you mean 'consistency'"),
        ({"plans__nli__conditions": {}}, "plans.nli.conditions"),
        ({"plans__nli__conditions": {"l2": []}}, "no family has a weight"),
        ({"plans__nli__conditions": {"l2": [-0.1]}}, "plans.nli.conditions.l2.0"),
        ({"plans__nli__conditions": {"l2": [0.1, 0.1]}}, "l2=0.1 is asked for twice"),
        ({"plans__nli__setup__label_noise": "lots"}, "plans.nli.setup.label_noise"),
        ({"plans__nli__setup__precision": "fp16"}, "plans.nli.setup.precision"),
        ({"plans": {"figure1": {}}}, "unknown plan 'figure1'"),
        ({"plans": {}}, "plans"),
        ({"name": "../../elsewhere"}, "name"),
    ],
    ids=[
        "out of range", "misspelt setting", "misspelt family", "no conditions", "no weights", "negative weight",
        "twice the same", "not a number", "unknown precision",
        "unknown plan", "no plan", "a path for a name",
    ],
)  # fmt: skip
def test_a_malformed_preset_is_refused_with_the_field(preset_file, changes, says):
    with pytest.raises(FlatlingoError, match=says):
        load_preset(preset_file(**changes))


def test_a_preset_may_hold_any_plans(preset_file):
    settings = load_preset("smoke").model_dump(mode="json")
    only = load_preset(preset_file(plans={"paraphrase": settings["plans"]["paraphrase"]}))
    assert list(only.plans) == ["paraphrase"]
    with pytest.raises(FlatlingoError, match="has no plan 'nli'; it has paraphrase"):
        only.plan("nli")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: load_preset("mimi"), "did you mean 'mini'"),
        (lambda: load_preset("../presets/mini"), "unknown preset"),
        (lambda: load_preset("absent.yaml"), "absent.yaml: cannot be read: No such file"),
        (lambda: expand("figure1", load_preset("smoke")), "unknown plan"),
        (lambda: expand("nli", load_preset("smoke"), seeds=[1, 1]), "seeds"),
        (lambda: expand("nli", load_preset("smoke"), seeds=[-1]), "seeds"),
        (lambda: expand("nli", load_preset("smoke"), seeds=0), "seeds must be different numbers, .*got 0"),
        (lambda: sweep("nli", preset="mini", store="recorded", seeds=0), "seeds must be different numbers, .*got 0"),
        (lambda: resolved("nli", "smoke", model="absent/folder/here"), "absent/folder/here"),
    ],
    ids=[
        *("preset", "preset outside", "preset file", "plan", "seeds twice", "negative seed", "no seed"),
        *("no recorded seed", "encoder"),
    ],
)
def test_unknown_names_are_refused(call, says):
    with pytest.raises(FlatlingoError, match=says):
        call()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"family": "magic"}, "condition"),
        ({"family": "l2", "weight": -1}, "condition"),
        ({"family": "l2", "weight": "nan"}, "condition"),
        ({"family": "none", "weight": 1}, "none at 1: this family has no weight"),
        ({"family": "mixout", "weight": 1}, "mixout at 1: a probability is below 1"),
        ({"family": "none", "also": {"weight_averaging": 1.5}}, "weight_averaging at 1.5: a share is at most 1"),
        ({"family": "early_stopping", "weight": 0.5}, "early_stopping at 0.5: epochs are a whole number"),
        ({"family": "none", "also": {"sam": 0.05, "asam": 0.5}}, "condition: .*sam is given twice, .*sets the same"),
    ],
    ids=["family", "negative", "no number", "no weight", "probability", "share", "epochs", "two of SAM"],
)
def test_an_impossible_condition_is_refused(values, says):
    with pytest.raises(FlatlingoError, match=says):
        presets.validated(Condition, values, "condition")


LIGHT = """
import sys
from pathlib import Path
from flatlingo.study.presets import expand, known_presets, load_preset
specs = [expand(plan, preset)[0] for preset in map(load_preset, known_presets()) for plan in preset.plans]
print([name for name in ("torch", "transformers", "datasets", "numpy", "flatlingo.tasks") if name in sys.modules])
"""


def test_a_configuration_needs_neither_torch_nor_the_tasks():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
