"""Estimates: what a run computes, seconds from steps of two sizes, and a dry run from end to end."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from tiny import make_model, make_rows, make_tokenizer, resolved, write_preset
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import TrainerControl, TrainerState
from typer.testing import CliRunner

from flatlingo import devices
from flatlingo.cli import app
from flatlingo.encoding import EncodedRows, LengthGroupedSampler
from flatlingo.errors import FlatlingoError
from flatlingo.files import PRESETS
from flatlingo.study import clock, measure
from flatlingo.study.clock import Clock, Line
from flatlingo.study.condition import Condition
from flatlingo.study.estimate import _measured, estimate
from flatlingo.study.measure import Classifier
from flatlingo.study.presets import expand, load_preset
from flatlingo.study.setup import Measurement
from flatlingo.study.store import Store
from flatlingo.study.workload import Amount, Workload, shuffled, workload


def rows_of(sizes, length):
    """Rows of one length, of which a task has so many in every language."""
    return SimpleNamespace(
        task=SimpleNamespace(languages=("en", "de", "es", "zh")),
        of=lambda _, split: np.full(sizes[split], length),
    )


SIZES = {"train": 20_000, "validation": 2_490, "adapt_train": 1_245, "adapt_validation": 1_245}


def test_the_work_of_a_run_of_the_papers_size():
    spec = expand("nli", load_preset("paper"))[0]
    work = workload(spec, rows_of(SIZES, 100), devices.CPU)
    assert work.english == Amount(5 * 625, 5 * 20_000 * 100)
    # German, Spanish, Chinese, and English as a control
    assert work.second_stage == Amount(4 * 5 * 39, 4 * 5 * 1_245 * 100)
    # training rows, four languages, sharpness, two segmentations, five points of the curve; three adapted models, and
    # the control's three
    rows = 20_000 + 4 * 2_490 + 4 * 300 + 2 * 500 + 5 * 100 + 6 * 1_245
    assert work.predicted == Amount(1 + 4 + 4 + 2 + 5 + 6, rows * 100)
    assert work.traced == Amount(1, 2_490 * 100)
    assert work.traced_briefly == Amount(3 + 5, (3 * 300 + 5 * 100) * 100)


@pytest.mark.parametrize(
    ("setup", "part", "expected"),
    [
        ({"second_stage": None}, "second_stage", Amount(0, 0)),
        ({"second_stage": {"english_control": False}}, "second_stage", Amount(3 * 5 * 39, 3 * 5 * 1_245 * 100)),
        ({"measurement": {"curve": ()}}, "traced_briefly", Amount(3, 900 * 100)),
        ({"measurement": {"target_examples": 0}}, "traced_briefly", Amount(5, 500 * 100)),
        ({"measurement": {"trace_examples": 1000}}, "traced", Amount(1, 1000 * 100)),
        ({"training": {"batch_size": 64}}, "english", Amount(5 * math.ceil(20_000 / 64), 5 * 20_000 * 100)),
    ],
    ids=["no second stage", "no control", "no curve", "no targets", "fewer rows traced", "larger batches"],
)
def test_only_what_a_setup_asks_for_is_counted(setup, part, expected):
    spec = expand("nli", load_preset("paper"))[0]
    changes = {
        name: getattr(spec.setup, name).model_copy(update=change) if change else None for name, change in setup.items()
    }
    spec = spec.model_copy(update={"setup": spec.setup.model_copy(update=changes)})
    assert getattr(workload(spec, rows_of(SIZES, 100), devices.CPU), part) == expected


def test_predictions_are_counted_in_the_batches_that_the_device_takes():
    lengths = SimpleNamespace(
        task=SimpleNamespace(languages=("en", "de")), of=lambda *_: np.repeat([1, 100], [192, 64])
    )
    spec = expand("nli", load_preset("smoke"))[0]
    setup = spec.setup.model_copy(update={"second_stage": None, "measurement": Measurement()})
    spec = spec.model_copy(update={"setup": setup})
    # training rows and two languages
    assert workload(spec, lengths, devices.CPU).predicted == Amount(3, 3 * (3 * 64 + 64 * 100))
    assert workload(spec, lengths, torch.device("cuda")).predicted == Amount(3, 3 * 256 * 100)


@pytest.fixture
def imitated(monkeypatch):
    """Steps that take 0.5 s whatever their rows and 10 ms per token, the first a minute, one in two disturbed."""
    now = [0.0]

    def finetune(model, tokenizer, rows, *, batch_size, callbacks, **_):
        for step in range(len(rows) // batch_size):
            tokens = batch_size * max(rows["length"][step * batch_size : (step + 1) * batch_size])
            now[0] += 0.5 + 0.01 * tokens + 60 * (step == 0) + 7 * (step % 2)
            for callback in callbacks:
                callback.on_step_end(None, TrainerState(), TrainerControl())

    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(clock.training, "finetune", finetune)


@pytest.mark.parametrize("length", [7, 50])
def test_the_constant_part_of_a_step_is_not_multiplied_with_its_rows(imitated, length):
    lengths = np.arange(200) % 100
    rows = Dataset.from_dict({"length": list(lengths)})
    spec = expand("nli", load_preset("smoke"))[0]
    line = Clock(Classifier(make_model(), make_tokenizer(), 64), rows, lengths).step(spec, 32, length)
    assert line(Amount(10, 10 * 32 * length)) == pytest.approx(10 * (0.5 + 0.01 * 32 * length), rel=0.05)


@pytest.mark.parametrize("slow", [1.0, 0.5], ids=["as fast", "faster"])
def test_more_rows_that_take_no_longer_make_a_line_without_slope(slow):
    assert clock.fitted([(10, 1.0), (20, slow)]) == Line(slow, 0.0)


def test_a_line_has_no_negative_constant():
    assert clock.fitted([(10, 1.0), (20, 3.0)]) == Line(0.0, 0.15)


def test_a_dry_run_tells_runs_rows_steps_hours_and_memory(tmp_path):
    path = write_preset(tmp_path, paraphrase={"none": [0], "consistency": [0.6, 2], "dropout": [0], "sam": [0.05]})
    found = estimate("paraphrase", preset=path, seeds=2)
    families = found.families
    assert families["runs"].to_dict() == {"none": 2, "consistency": 4, "dropout": 2, "sam": 2}
    assert (families[["step_seconds", "run_hours"]] > 0).all(axis=None)
    assert families.loc["dropout", "step_seconds"] == families.loc["none", "step_seconds"]
    assert families.loc["sam", "step_seconds"] != families.loc["none", "step_seconds"], "timed on its own"
    for part in (
        "10 runs of mini-mbert (1.1 M parameters)",
        "1 epochs, 3 steps of 32",
        "de, es, zh and English",
        " GB ",
    ):
        assert part in str(found)


def test_second_stages_take_their_own_step_unless_regularisers_stay_on(monkeypatch):
    """The same step of the family three times as long as the plain one: in the second stage too, or not."""
    monkeypatch.setattr("flatlingo.study.estimate._measured", lambda *_: 0.0)
    monkeypatch.setattr(
        Clock, "step", lambda _, spec, *__: Line(1.0 if spec.condition == Condition(family="none") else 3.0, 0.0)
    )
    hours = {
        plan: 3600 * estimate(plan, preset="smoke").families["run_hours"]
        for plan in ("paraphrase", "regularized_second_stage")
    }
    # 3 steps of English, 2 steps in each of four second stages
    assert hours["paraphrase"]["consistency"] == pytest.approx(3 * 3 + 8)
    assert hours["regularized_second_stage"]["consistency"] == pytest.approx(3 * 3 + 3 * 8)
    # in every second step
    assert hours["regularized_second_stage"]["trace_penalty"] == pytest.approx(2 * 3 + 2 * 8)


def test_of_a_method_only_its_largest_weight_is_timed_once(monkeypatch, tmp_path):
    timed = []
    monkeypatch.setattr("flatlingo.study.estimate._measured", lambda *_: 0.0)
    monkeypatch.setattr(Clock, "step", lambda _, spec, *__: timed.append(spec.condition.label) or Line(1.0, 0.0))
    estimate("paraphrase", preset=write_preset(tmp_path, paraphrase={"none": [0], "consistency": [2, 0.6]}), seeds=3)
    assert timed == ["none", "kl=2"]


def test_a_penalty_in_every_second_step_beside_a_method_of_every_step(monkeypatch, tmp_path):
    monkeypatch.setattr("flatlingo.study.estimate._measured", lambda *_: 0.0)
    costs = {"none": 1.0, "consistency": 3.0, "consistency+trace_penalty": 7.0}
    monkeypatch.setattr(Clock, "step", lambda _, spec, *__: Line(costs[spec.condition.method], 0.0))
    preset = yaml.safe_load((PRESETS / "smoke.yaml").read_text(encoding="utf-8"))
    recipe = {"family": "consistency", "weight": 0.6, "every": 2, "also": {"trace_penalty": 0.001}}
    preset["plans"] = {"nli": preset["plans"]["nli"] | {"conditions": {"none": [0]}, "recipes": [recipe]}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")
    families = estimate("nli", preset=str(tmp_path / "recipes.yaml")).families
    assert families["step_seconds"].to_dict() == {"none": 1.0, "consistency+trace_penalty+every=2": (3 + 7) / 2}


def test_a_penalty_that_the_setup_thins_beside_one_of_every_step(monkeypatch, tmp_path):
    monkeypatch.setattr("flatlingo.study.estimate._measured", lambda *_: 0.0)
    costs = {"none": 1.0, "fisher_penalty": 3.0, "trace_penalty+fisher_penalty": 7.0}
    monkeypatch.setattr(Clock, "step", lambda _, spec, *__: Line(costs[spec.condition.method], 0.0))
    preset = yaml.safe_load((PRESETS / "smoke.yaml").read_text(encoding="utf-8"))
    plan = preset["plans"]["nli"] | {"conditions": {"none": [0]}}
    plan["recipes"] = [{"family": "trace_penalty", "weight": 0.1, "also": {"fisher_penalty": 0.001}}]
    plan["setup"] |= {"trace_penalty_every": 2}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(preset | {"plans": {"nli": plan}}), encoding="utf-8")
    families = estimate("nli", preset=str(tmp_path / "recipes.yaml")).families
    assert families["step_seconds"].to_dict() == {"none": 1.0, "trace_penalty+fisher_penalty": (3 + 7) / 2}


def test_on_a_gpu_the_first_weights_of_a_dry_run_lie_where_measurements_want_them(monkeypatch):
    """Imitated by tensors without numbers, which refuse to be mixed with those of another device."""

    def trace(classifier, rows, start):
        for name, parameter in classifier.model.named_parameters():
            assert parameter.device.type == "cuda"
            parameter.detach().double().cpu() - start[name].double()

    monkeypatch.setattr(measure, "trace", trace)
    monkeypatch.setattr(Classifier, "logits", lambda *_: None)
    monkeypatch.setattr(Classifier, "traces", lambda *_: None)

    class Timer:
        def __init__(self, classifier):
            self.classifier = classifier

        def measurement(self, measure, batch_size):
            measure(None)
            return Line(0.0, 0.0)

    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(3, device="cuda"))
        model = SimpleNamespace(named_parameters=lambda: [("weight", weight)])
        assert _measured(Workload(*[Amount()] * 5), Timer(Classifier(model, None, 64))) == 0.0


def test_an_encoder_needs_its_configuration_and_tokenizer_but_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "step", lambda *_: Line(1.0, 0.0))
    monkeypatch.setattr("flatlingo.study.estimate._measured", lambda *_: 0.0)
    make_model(num_hidden_layers=1).config.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert f"runs of {tmp_path.name} (" in str(estimate("nli", preset="smoke", model=tmp_path))


def test_bf16_is_timed_where_there_is_some(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "has_bf16", lambda: False)
    preset = write_preset(tmp_path, setup={"precision": "bf16"})
    with pytest.raises(FlatlingoError, match="a dry run times steps in bf16, .* call it where the runs are"):
        estimate("nli", preset=preset)


def test_an_encoder_that_is_not_at_hand_is_told_with_the_command(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FlatlingoError, match=r"example/encoder: neither a folder nor .* `hf download example/encoder"):
        estimate("nli", preset="smoke", model="example/encoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "no classifier can be made of config.json"),
        ({"vocab_size": 5}, "tokenizer has .* do not belong together"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "config.json asks to run code"),
    ],
    ids=["heads", "another tokenizer", "own code"],
)
def test_an_encoder_that_no_run_would_load_is_not_timed(tmp_path, changes, message):
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FlatlingoError, match=message):
        estimate("nli", preset="smoke", model=tmp_path)


def test_rows_that_are_not_at_hand_are_told(monkeypatch, tmp_path):
    with pytest.raises(FlatlingoError, match="no such folder"):
        estimate("nli", preset="smoke", data=tmp_path / "nowhere")


def test_what_is_stored_is_not_estimated_again(monkeypatch, tmp_path):
    monkeypatch.setattr(Clock, "step", lambda *_: Line(1.0, 0.0))
    monkeypatch.setattr("flatlingo.study.estimate._measured", lambda *_: 0.0)
    runs, configs = Store(tmp_path), resolved("nli", "smoke")
    for config in configs[1:]:
        runs.write(config, {"trace": {"value": 1.0}}, {"seconds": 1.0})
    found = estimate("nli", preset="smoke", store=tmp_path)
    assert found.families["runs"].to_dict() == {configs[0].condition.family: 1}
    assert f"{len(configs) - 1} of {len(configs)} runs are stored" in str(found)
    runs.write(configs[0], {"trace": {"value": 1.0}}, {"seconds": 1.0})
    assert str(estimate("nli", preset="smoke", store=tmp_path)).endswith("runs are stored: nothing to do")


def test_the_command_needs_a_store_or_a_dry_run():
    assert "--dry-run" in str(CliRunner().invoke(app, ["sweep", "nli"]).exception)


@pytest.mark.parametrize("grouped", [False, True])
def test_padding_is_counted_as_training_pads(grouped):
    """Exactly where batches are grouped by length; else in the mean over the random order."""
    rows = EncodedRows(make_rows(400), make_tokenizer(), max_length=64)
    lengths = np.array([len(item["input_ids"]) for item in rows.clean])
    sampler = LengthGroupedSampler(rows, 8, seed=3)
    order = list(sampler) if grouped else list(range(400))
    batches = [lengths[order[start : start + 8]] for start in range(0, 400, 8)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    assert shuffled(lengths, 8, grouped).calls == len(batches)
    assert shuffled(lengths, 8, grouped).tokens == pytest.approx(padded, rel=0.0 if grouped else 0.03)
