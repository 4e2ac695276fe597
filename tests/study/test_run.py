"""One run of a study, end to end: what it gives and stores, and that it goes on where it was broken off."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import resolved, sources_of

from flatlingo import evaluation, training
from flatlingo.encoding import batches
from flatlingo.errors import FlatlingoError
from flatlingo.fisher import fisher_trace
from flatlingo.regularizers import SampledSegmentation, divergences
from flatlingo.study import measure
from flatlingo.study import run as running
from flatlingo.study.condition import Condition
from flatlingo.study.run import run


@pytest.fixture(scope="module")
def outcome():
    """The baseline of preset smoke's plan paraphrase: what was asked, where things lie, what came out."""
    (config, *_) = resolved("paraphrase", "smoke", seeds=[7])
    sources = sources_of("paraphrase", "smoke")
    return config.spec, sources, run(config.spec, sources)


@pytest.fixture(scope="module")
def validation(outcome):
    spec, sources, _ = outcome
    return sources.load_task(spec.setup, spec.seed).rows("en", "validation")


def test_a_result_tells_rows_accuracies_fit_traces_and_the_second_stage(outcome):
    spec, _, (result, *_) = outcome
    assert set(result["accuracy"]) == set(result["margin"]) == {"en", "de", "es", "zh"}
    assert result["classes"] == 2
    assert result["trace"]["examples"] == spec.setup.measurement.trace_examples
    assert sum(result["trace"]["groups"].values()) == pytest.approx(result["trace"]["value"])
    assert {code: trace["examples"] for code, trace in result["target_trace"].items()} == {"de": 10, "es": 10, "zh": 10}
    assert set(result["second_stage"]) == {"de", "es", "zh"}
    assert all(set(one) == {"zero_shot", "adapted", "control"} for one in result["second_stage"].values())
    assert {row["split"] for row in result["rows"]} == {"train", "validation", "adapt_train", "adapt_validation"}
    assert result["distance"] > 0
    assert result["sharpness"] > 0


def test_losses_margins_and_the_empirical_fisher_are_those_of_the_model(outcome, validation):
    """In the plain way: row by row, by autograd."""
    spec, sources, (result, _, model, tokenizer) = outcome

    def logits(row):
        return model(**tokenizer(row["text_a"], row["text_b"], return_tensors="pt")).logits

    def losses(rows, labels):
        with torch.no_grad():
            return [float(F.cross_entropy(logits(row), torch.tensor([row[labels]]))) for row in rows]

    def margins(rows):
        with torch.no_grad():
            found = [(logits(row)[0], row["label"]) for row in rows]
        return [float(values[label] - values[1 - label]) for values, label in found]

    rows = sources.load_task(spec.setup, spec.seed).rows("en", "train")
    assert any(row["label"] != row["clean_label"] for row in rows)
    assert result["train_loss"] == pytest.approx(np.mean(losses(rows, "label")), rel=1e-4)
    assert result["clean_train_loss"] == pytest.approx(np.mean(losses(rows, "clean_label")), rel=1e-4)
    assert result["validation_loss"]["en"] == pytest.approx(np.mean(losses(validation, "label")), rel=1e-4)
    assert result["train_margin"] == pytest.approx(np.mean(margins(rows)), rel=1e-3, abs=1e-5)
    assert result["margin"]["en"] == pytest.approx(np.mean(margins(validation)), rel=1e-3, abs=1e-5)
    squares = []
    for row in validation.select(range(spec.setup.measurement.trace_examples)):
        loss = F.cross_entropy(logits(row), torch.tensor([row["label"]]))
        squares.append(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters()))))
    assert result["empirical_fisher"] == pytest.approx(np.mean(squares), rel=1e-3)


def test_the_curve_has_losses_and_traces_at_the_steps_asked_for(outcome):
    *_, (result, *_) = outcome
    steps = {name: [e["step"] for e in result["history"] if name in e] for name in ("loss", "trace/value")}
    assert steps == {"loss": [1, 2, 3], "trace/value": [0, 2]}
    losses = [entry for entry in result["history"] if "loss" in entry]
    assert all(entry["loss"] == pytest.approx(entry["loss/task"], rel=1e-3) for entry in losses)


def test_the_first_point_of_the_curve_is_the_trace_of_the_model_before_training(outcome, validation):
    spec, sources, (result, *_) = outcome
    start, tokenizer = sources.load_model(spec, ["different", "paraphrase"]), sources.load_tokenizer()
    few = validation.select(range(spec.setup.measurement.curve_examples))
    trace = fisher_trace(start, batches(tokenizer, few, max_length=64, batch_size=32))
    first = next(entry for entry in result["history"] if entry["step"] == 0)
    assert first["trace/value"] == pytest.approx(trace.value, rel=1e-4)
    assert first["trace/log_mean"] == pytest.approx(np.log(trace.per_example).mean(), rel=1e-4)


def test_the_numbers_are_those_of_the_model_it_returns(outcome, validation):
    *_, (result, _, model, tokenizer) = outcome
    assert evaluation.accuracy(model, tokenizer, validation, max_length=64) == result["accuracy"]["en"]
    again = evaluation.trace_of_rows(model, tokenizer, validation.select(range(40)), max_length=64)
    assert again.value == pytest.approx(result["trace"]["value"], rel=1e-6)
    assert {name: again.groups[name] for name in again.groups} == pytest.approx(result["trace"]["groups"], rel=1e-5)


def test_what_is_stored_row_by_row_and_tensor_by_tensor_makes_the_numbers(outcome):
    *_, (result, rows, model, _) = outcome
    for language, accuracy in result["accuracy"].items():
        assert rows[f"correct/{language}"].mean() == pytest.approx(accuracy)
    assert rows["trace/en"].mean() == pytest.approx(result["trace"]["value"], rel=1e-6)
    assert np.log(rows["trace/de"]).mean() == pytest.approx(result["target_trace"]["de"]["log_mean"], rel=1e-5)
    assert rows["tensor/trace"].sum() == pytest.approx(result["trace"]["value"], rel=1e-5)
    assert (rows["tensor/trace"] * rows["tensor/squared_norm"]).sum() == pytest.approx(result["scale_aware"], rel=1e-4)
    assert rows["tensor/squared_distance"].sum() ** 0.5 == pytest.approx(result["distance"], rel=1e-5)
    assert list(rows["tensor/name"]) == [name for name, _ in model.named_parameters()]
    assert rows["fitted/train"].mean() == pytest.approx(result["train_accuracy"])
    assert rows["fitted/train"][rows["noisy/train"]].mean() == pytest.approx(result["noisy_fitted"])
    for language, found in result["second_stage"].items():
        assert rows[f"adapted/{language}/{language}"].mean() == pytest.approx(found["adapted"])
        assert rows[f"adapted/en/{language}"].mean() == pytest.approx(found["control"])


def test_zero_shot_is_the_accuracy_of_the_first_stage_on_the_held_out_half(outcome):
    spec, sources, (result, _, model, tokenizer) = outcome
    held_out = sources.load_task(spec.setup, spec.seed).rows("es", "adapt_validation")
    accuracy = evaluation.accuracy(model, tokenizer, held_out, max_length=64)
    assert result["second_stage"]["es"]["zero_shot"] == pytest.approx(accuracy)


def test_segmentations_are_compared_row_by_row_by_the_mean_of_both_divergences(outcome, validation):
    spec, _, (result, rows, model, tokenizer) = outcome
    view = SampledSegmentation(tokenizer, **spec.setup.segmentation.model_dump(include={"p", "mode"}))
    few = validation.select(range(20))
    found = []
    for row in few:
        own = tokenizer(row["text_a"], row["text_b"], return_tensors="pt")
        drawn = view.features(row, seed=0, epoch=0, max_length=64)
        with torch.no_grad():
            p = model(**own).logits
            q = model(**{name: torch.tensor([values]) for name, values in drawn.items()}).logits
        found.append(float(divergences.mean_symmetric_kl(p, q)))
    np.testing.assert_allclose(rows["segmentation_kl/en"], found, rtol=1e-3, atol=1e-7)
    assert result["segmentation_kl"] == pytest.approx(np.mean(found), rel=1e-3)
    assert max(found) > 0


@pytest.fixture
def adaptations(monkeypatch):
    """The rows, settings and dropout of every second stage, none of which is trained."""
    seen = []

    def watched(model, tokenizer, rows, **settings):
        terms = [(term.name, getattr(term, "after", 0)) for term in settings.get("regularizers", [])]
        probabilities = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        seen.append({"rows": rows["row_id"], "terms": terms, "dropout": probabilities} | settings)
        return copy.deepcopy(model)

    monkeypatch.setattr(training, "adapt", watched)
    return seen


def test_a_second_stage_of_fewer_rows_has_the_same_ones_in_every_language(outcome, adaptations):
    spec, sources, _ = outcome
    stage = spec.setup.second_stage.model_copy(update={"rows": 8})
    run(spec.model_copy(update={"setup": spec.setup.model_copy(update={"second_stage": stage})}), sources)
    every = sources.load_task(spec.setup, spec.seed).rows("de", "adapt_train")["row_id"]
    adapted = [found["rows"] for found in adaptations]
    assert len(adapted) == 4
    assert all(rows == adapted[0] for rows in adapted)
    assert len(adapted[0]) == 8 < len(every)
    assert set(adapted[0]) <= set(every)


@pytest.mark.parametrize("regularized", [False, True])
def test_a_second_stage_has_the_regulariser_only_if_asked_for(outcome, adaptations, regularized):
    spec, sources, _ = outcome
    stage = spec.setup.second_stage.model_copy(update={"regularized": regularized})
    setup = spec.setup.model_copy(update={"second_stage": stage, "trace_target_after": 2})
    also = {"dropout": 0.25, "weight_averaging": 0.5, "label_smoothing": 0.2}
    condition = Condition(family="trace_target", weight=50.0, also=also)
    run(spec.model_copy(update={"setup": setup, "condition": condition}), sources)
    assert len(adaptations) == 4
    for found in adaptations:
        assert found["terms"] == ([("trace_target", 0)] if regularized else [])
        assert found["dropout"] == ({0.25} if regularized else {0.1})
        assert (found.get("average"), found.get("label_smoothing")) == ((0.5, 0.2) if regularized else (None, None))


def test_the_same_run_gives_the_same_result(outcome):
    spec, sources, (result, rows, *_) = outcome
    again = run(spec, sources)
    assert again.result == result
    assert all(np.array_equal(rows[name], values) for name, values in again.rows.items())


def test_a_run_that_is_broken_off_keeps_its_training_and_its_finished_languages(outcome, tmp_path, monkeypatch):
    spec, sources, (result, rows, *_) = outcome
    adapt, adapted = training.adapt, []

    def failing(*arguments, **settings):
        adapted.append(1)
        if len(adapted) == 3:
            raise RuntimeError("the power is off")
        return adapt(*arguments, **settings)

    monkeypatch.setattr(training, "adapt", failing)
    with pytest.raises(RuntimeError, match="power"):
        run(spec, sources, work=tmp_path)
    monkeypatch.undo()
    (tmp_path / "accuracy-de.npz").write_bytes(b"")  # as a file system may leave it when the power goes
    steps = []
    monkeypatch.setattr(
        training, "adapt", lambda *given, **settings: steps.append("adapt") or adapt(*given, **settings)
    )
    monkeypatch.setattr(running, "_train", lambda *given: steps.append("train"))
    monkeypatch.setattr(measure, "trace", lambda *given: steps.append("trace"))
    again = run(spec, sources, work=tmp_path)
    assert steps == ["adapt", "adapt"], "the third language and the English control"
    assert again.result == result
    assert all(np.array_equal(rows[name], values) for name, values in again.rows.items())


def test_a_target_language_that_the_task_lacks_is_refused_before_training(outcome):
    spec, sources, _ = outcome
    second_stage = spec.setup.second_stage.model_copy(update={"languages": ("fr",)})
    setup = spec.setup.model_copy(update={"second_stage": second_stage})
    with pytest.raises(FlatlingoError, match="fr"):
        sources.check(spec.model_copy(update={"setup": setup}))
