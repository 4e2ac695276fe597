"""Presets, conditions and run ids."""

import json

import pytest
import yaml

from flatlingo import experiment
from flatlingo.errors import FlatlingoError
from flatlingo.experiment import Condition, RunConfig, load_preset, plan


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


@pytest.mark.parametrize("name", experiment.known_presets())
@pytest.mark.parametrize("figure", experiment.FIGURES)
def test_a_shipped_preset_starts_with_the_baseline_and_has_all_of_the_papers_families(name, figure):
    conditions = getattr(load_preset(name), figure).expand()
    assert conditions[0] == Condition(family="none")
    assert {"consistency", "fisher_penalty", "l2"} < {condition.family for condition in conditions}
    assert len(set(conditions)) == len(conditions)


def test_preset_mini_has_enough_conditions_for_both_figures():
    preset = load_preset("mini")
    assert len(preset.figure1.expand()) >= 14
    assert len(preset.figure2.expand()) >= 8


def test_preset_paper_has_the_hyper_parameters_of_wang_et_al():
    study = load_preset("paper").figure1.study
    assert (study.task, study.train_size) == ("xnli", 20_000)
    assert study.training.model_dump() == {"epochs": 5, "batch_size": 32, "learning_rate": 2e-5, "max_length": 128}
    assert study.segmentation.model_dump() == {"p": 0.2, "mode": "faithful"}


def test_preset_xlmr_is_preset_paper_on_another_model():
    xlmr, paper = load_preset("xlmr"), load_preset("paper")
    assert xlmr.model == "FacebookAI/xlm-roberta-base"
    assert (xlmr.seeds, xlmr.figure1, xlmr.figure2) == (paper.seeds, paper.figure1, paper.figure2)


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


def test_ids_identify_configurations():
    configs = plan("figure1", load_preset("smoke"), seeds=3)
    assert len({config.run_id for config in configs}) == len(configs)
    again = [RunConfig.model_validate_json(json.dumps(config.model_dump(mode="json"))) for config in configs]
    assert [config.run_id for config in again] == [config.run_id for config in configs]


def test_optional_settings_at_their_default_leave_ids_as_they_were():
    for config in plan("figure2", load_preset("smoke")):
        written = config.model_dump(mode="json")["study"]
        assert "trace_penalty_every" not in written
        assert "regularized" not in written["adaptation"]


def test_plan_beyond_keeps_the_regulariser_on_and_shares_the_first_stage_with_figure_2():
    preset = load_preset("mini")
    beyond, figure2 = preset.beyond.study, preset.figure2.study
    assert beyond.adaptation == figure2.adaptation.model_copy(update={"regularized": True})
    differing = {"adaptation", "trace_penalty_every"}
    assert beyond.model_dump(exclude=differing) == figure2.model_dump(exclude=differing)
    labels = {condition.label for condition in preset.beyond.expand()}
    assert {label for label in labels if not label.startswith("trpen")} <= {c.label for c in preset.figure2.expand()}


@pytest.mark.parametrize(
    "change",
    [
        {"figure1__study__training__epochs": 7},
        {"figure1__study__label_noise": 0.2},
        {"figure1__study__segmentation__mode": "clean"},
        {"figure1__study__trace_examples": 50},
    ],
    ids=lambda change: next(iter(change)).split("__")[-1],
)
def test_a_changed_setting_changes_the_ids_of_its_figure_only(preset_file, change):
    changed = load_preset(preset_file(**change))
    for figure, same in (("figure1", False), ("figure2", True)):
        before = {config.run_id for config in plan(figure, load_preset("smoke"))}
        after = {config.run_id for config in plan(figure, changed)}
        assert (before == after) is same
        assert same or not before & after


def test_other_weights_of_the_pretrained_model_change_the_ids(tmp_path):
    from flatlingo.paths import MINI_MBERT

    other = tmp_path / "encoder"
    other.mkdir()
    for path in MINI_MBERT.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (before,) = {config.model_sha256 for config in plan("figure1", load_preset("smoke"), model=str(other))}
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    (after,) = {config.model_sha256 for config in plan("figure1", load_preset("smoke"), model=str(other))}
    assert before != after


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"figure1__study__training__epochs": 0}, "figure1.study.training.epochs"),
        ({"figure1__study__training__epoch": 3}, "figure1.study.training.epoch"),
        ({"figure1__conditions": {"consitency": [1]}}, "figure1.conditions.consitency"),
        ({"figure1__study__label_noise": "lots"}, "figure1.study.label_noise"),
        ({"name": "../../elsewhere"}, "name"),
    ],
    ids=["out of range", "misspelt setting", "misspelt family", "not a number", "a path for a name"],
)
def test_a_malformed_preset_is_refused_with_the_field(preset_file, changes, says):
    with pytest.raises(FlatlingoError, match=says):
        load_preset(preset_file(**changes))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: load_preset("mimi"), "did you mean 'mini'"),
        (lambda: load_preset("../presets/mini"), "unknown preset"),
        (lambda: load_preset("absent.yaml"), "unknown preset"),
        (lambda: plan("figure3", load_preset("smoke")), "unknown figure"),
        (lambda: plan("figure1", load_preset("smoke"), seeds=[1, 1]), "seeds"),
        (lambda: plan("figure1", load_preset("smoke"), seeds=[-1]), "seeds"),
        (lambda: plan("figure1", load_preset("smoke"), model="absent/folder/here"), "absent/folder/here"),
    ],
    ids=["preset", "preset outside", "preset file", "figure", "seeds twice", "negative seed", "model"],
)
def test_unknown_names_are_refused(call, says):
    with pytest.raises(FlatlingoError, match=says):
        call()


@pytest.mark.parametrize(
    "values", [{"family": "magic"}, {"family": "l2", "weight": -1}, {"family": "l2", "weight": "nan"}]
)
def test_an_impossible_condition_is_refused(values):
    with pytest.raises(FlatlingoError, match="condition"):
        experiment.validated(Condition, values, "condition")
