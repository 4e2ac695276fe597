import copy
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import make_model, make_rows, make_tokenizer
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainingArguments

from flatlingo.encoding import EncodedRows, PairCollator, encode
from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import accuracy, batches
from flatlingo.regularizers import (
    L2,
    L2SP,
    LNSR,
    R3F,
    R4F,
    SAM,
    SMART,
    VAT,
    CodeSwitching,
    FisherPenalty,
    GradientNormPenalty,
    Mixout,
    RDrop,
    Regularizer,
    SubwordConsistency,
    WeightNoise,
    XTune,
)
from flatlingo.training import RegularizedTrainer, adapt, finetune

SETTINGS = {"seed": 1, "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "max_length": 32}
TOKENIZER = make_tokenizer()
KINDS = {
    "consistency": lambda weight: SubwordConsistency(TOKENIZER, weight, p=0.5),
    "clean consistency": lambda weight: SubwordConsistency(TOKENIZER, weight, p=0.5, mode="clean"),
    "fisher_penalty": FisherPenalty,
    "l2": L2,
    "l2_sp": L2SP,
    "r3f": lambda weight: R3F(weight, epsilon=0.1),
    "r4f": lambda weight: R4F(weight, epsilon=0.1, distribution="normal"),
    "r_drop": RDrop,
    "smart": SMART,
    "vat": VAT,
    "lnsr": LNSR,
    "xtune": lambda weight: XTune(CodeSwitching(TOKENIZER, {"cat": "Hund", "big": ["grün", "small"]}), weight),
    "weight_noise": lambda weight: WeightNoise(weight, sigma=0.05),
    "gradient_norm": GradientNormPenalty,
    "mixout": Mixout,
}


def train(*regularizers: Regularizer, rows=None, model=None, **settings):
    """A model trained on few rows, and its log."""
    model = model or make_model(dropout=0.1)
    log = finetune(model, TOKENIZER, rows or make_rows(24), regularizers=regularizers, **SETTINGS | settings)
    return model, log


@cache
def plain() -> torch.Tensor:
    """Weights after training without terms."""
    return weights(train()[0])


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def arguments(folder, **settings) -> TrainingArguments:
    defaults = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    return TrainingArguments(output_dir=str(folder), **defaults | settings)


def trainer_of(folder, *, rows=None, regularizers=(), model=None, settings=None, **kwargs) -> RegularizedTrainer:
    return RegularizedTrainer(
        model=model or make_model(),
        args=arguments(folder, **settings or {}),
        train_dataset=rows or make_rows(16),
        processing_class=TOKENIZER,
        regularizers=regularizers,
        **{"max_length": 64} | kwargs,
    )


class Watching(Regularizer):
    """Adds nothing, remembers the epochs its features were asked for."""

    name = "watching"

    def __init__(self):
        super().__init__(weight=1.0)
        self.epochs = Counter()

    def features(self, row, *, seed, epoch, max_length):
        self.epochs[epoch] += 1
        return {"epoch": [epoch]}

    def __call__(self, model, batch, outputs):
        assert model.training
        return outputs.logits.new_zeros(()), {"epoch": self.columns(batch)["epoch"].double()}


class Breaking(Regularizer):
    """Becomes NaN at its third call."""

    name = "breaking"
    calls = 0

    def __call__(self, model, batch, outputs):
        self.calls += 1
        return outputs.logits.sum() * (float("nan") if self.calls == 3 else 0.0), {}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_lowers_the_loss_and_is_reproducible_bit_by_bit(kind):
    first, log = train(kind(0.01))
    random.seed(99), torch.manual_seed(99), np.random.seed(99)  # noqa: NPY002
    again, _ = train(kind(0.01))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), plain())
    losses = [entry["loss/task"] for entry in log if "loss/task" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_other_seeds_train_other_weights():
    assert not torch.equal(plain(), weights(train(seed=2)[0]))


def test_zero_weights_are_plain_training_bit_for_bit():
    terms = [kind(0.0) for name, kind in KINDS.items() if name != "clean consistency"]
    assert torch.equal(weights(train(*terms)[0]), plain())
    assert torch.equal(weights(train(KINDS["clean consistency"](0.0))[0]), plain())


@pytest.mark.parametrize("regularizers", [(), (FisherPenalty(0.0),)], ids=["none", "zero weight"])
def test_without_terms_it_is_the_trainer_of_transformers(tmp_path, regularizers):
    items = encode(make_rows(16), TOKENIZER, max_length=32)
    common = {"args": arguments(tmp_path, seed=3, num_train_epochs=1), "train_dataset": items}
    common |= {"processing_class": TOKENIZER, "data_collator": DataCollatorWithPadding(TOKENIZER)}
    ours, theirs = make_model(dropout=0.1), make_model(dropout=0.1)
    RegularizedTrainer(model=ours, regularizers=regularizers, **common).train()
    Trainer(model=theirs, **common).train()
    assert torch.equal(weights(ours), weights(theirs))


def test_tokenised_data_do_for_terms_that_need_no_text(tmp_path):
    items = encode(make_rows(16), TOKENIZER, max_length=32)
    trainer = trainer_of(tmp_path, rows=items, regularizers=[FisherPenalty(), L2(0.1)], settings={"max_steps": 2})
    assert trainer.train().global_step == 2


def test_global_generators_are_left_as_they_were():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    train(KINDS["consistency"](0.5))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states  # noqa: NPY002


@pytest.mark.parametrize(
    ("kind", "sam", "smoothing"),
    [
        *((kind, None, 0.0) for kind in (None, "consistency", "xtune", "l2", "l2_sp")),
        ("consistency", None, 0.1),
        ("l2_sp", SAM(0.1), 0.0),
        ("consistency", SAM(0.5, adaptive=True), 0.1),
    ],
    ids=str,
)
def test_accumulating_4_by_8_is_1_by_32(tmp_path, kind, sam, smoothing):
    both = []
    for batch_size, accumulation in [(32, 1), (8, 4)]:
        # SGD: Adam would blow the rounding errors of vanishing gradients (key biases) up to whole steps
        settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        settings |= {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 1, "logging_steps": 1}
        settings |= {"label_smoothing_factor": smoothing}
        regularizers = [KINDS[kind](0.5)] if kind else []
        model, rows = make_model(dtype=torch.float64), make_rows(64)
        trainer = trainer_of(tmp_path, rows=rows, regularizers=regularizers, sam=sam, model=model, settings=settings)
        trainer.train()
        both.append((weights(model), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    torch.testing.assert_close(both[0][0], both[1][0], rtol=1e-9, atol=1e-14)
    assert both[0][1] == pytest.approx(both[1][1], rel=1e-6)


def test_log_holds_the_loss_and_its_terms():
    regularizers = [kind(0.1) for name, kind in KINDS.items() if name != "clean consistency"]
    _, log = train(*regularizers, batch_size=4, gradient_accumulation_steps=2)
    entries = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    names = ["task", *(regularizer.name for regularizer in regularizers)]
    for entry in entries:
        assert sum(entry[f"loss/{name}"] for name in names) == pytest.approx(entry["loss"], rel=1e-5)
        assert entry["loss/l2"] == pytest.approx(0.05 * entry["l2/squared_distance"], rel=1e-5)
        assert entry["consistency/kl"] >= 0


def test_trained_model_is_in_eval_mode_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = train()
    assert not any(module.training for module in model.modules())
    assert list(tmp_path.iterdir()) == []


def test_evaluation_rows_are_scored_without_terms():
    rows = make_rows(40, seed=5)
    watching = Watching()
    model, log = train(watching, eval_rows=rows)
    last = [entry for entry in log if "eval_loss" in entry][-1]
    assert last["eval_accuracy"] == pytest.approx(accuracy(model, TOKENIZER, rows, max_length=32))
    (batch,) = batches(TOKENIZER, rows, max_length=32, batch_size=40)
    with torch.no_grad():
        assert last["eval_loss"] == pytest.approx(float(F.cross_entropy(model(**batch).logits, batch["labels"])), 1e-4)
    assert watching.epochs == {0: 24, 1: 24}


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_rows_of_texts_can_be_evaluated_at_any_time(tmp_path, method):
    trainer = trainer_of(tmp_path, regularizers=[Watching()])
    result = getattr(trainer, method)(make_rows(10))
    metrics = result if method == "evaluate" else result.metrics
    assert metrics[{"evaluate": "eval_loss", "predict": "test_loss"}[method]] > 0


@pytest.mark.parametrize("evaluate", [False, True], ids=["alone", "with evaluation"])
def test_every_epoch_reaches_the_rows(evaluate):
    watching = Watching()
    _, log = train(watching, epochs=3, eval_rows=make_rows(5) if evaluate else None)
    assert watching.epochs == {0: 24, 1: 24, 2: 24}
    logged = [(entry["epoch"], entry["watching/epoch"]) for entry in log if "loss" in entry]
    assert all(trained == np.ceil(epoch) - 1 for epoch, trained in logged)


def test_epochs_reach_persistent_workers():
    rows = EncodedRows(make_rows(4), TOKENIZER, max_length=32, regularizers=[Watching()])
    loader = DataLoader(rows, 4, num_workers=1, persistent_workers=True, collate_fn=PairCollator(TOKENIZER))
    for epoch in range(3):
        rows.set_epoch(epoch)
        (batch,) = loader
        assert batch["watching/epoch"].tolist() == [[epoch]] * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_views_made_in_workers_train_the_same_weights_bit_for_bit(workers):
    def run(**settings):
        return weights(train(KINDS["clean consistency"](0.6), KINDS["xtune"](1.0), **settings)[0])

    assert torch.equal(run(), run(workers=workers))


def test_a_loss_that_is_not_finite_names_step_and_term():
    with pytest.raises(FlatlingoError, match=r"step 3.*breaking = nan"):
        train(Breaking(1.0))


def test_a_model_with_broken_weights_names_the_task_loss():
    model = make_model()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(FlatlingoError, match=r"step 1.*task = nan"):
        train(model=model)


def test_sampled_segmentations_need_texts(tmp_path):
    items = encode(make_rows(16), TOKENIZER, max_length=32)
    with pytest.raises(FlatlingoError, match="text_a"):
        trainer_of(tmp_path, rows=items, regularizers=[SubwordConsistency(TOKENIZER)])


def test_texts_need_a_tokenizer(tmp_path):
    with pytest.raises(FlatlingoError, match="processing_class"):
        RegularizedTrainer(model=make_model(), args=arguments(tmp_path), train_dataset=make_rows(4))


def test_rows_must_fit_the_model(tmp_path):
    with pytest.raises(FlatlingoError, match="max_length 65.*64 positions"):
        trainer_of(tmp_path, max_length=65)


def test_names_must_differ(tmp_path):
    with pytest.raises(FlatlingoError, match="'l2'"):
        trainer_of(tmp_path, regularizers=[L2(1.0), L2(2.0)])


def test_no_rows_is_an_error():
    with pytest.raises(FlatlingoError, match="no rows"):
        finetune(make_model(), TOKENIZER, [], **SETTINGS)


def resumable(folder, *kinds, **settings) -> RegularizedTrainer:
    """Two epochs of three updates, a checkpoint after every second."""
    defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    model, regularizers = make_model(dropout=0.1), [KINDS[kind](0.1) for kind in kinds]
    return trainer_of(folder, rows=make_rows(12), model=model, regularizers=regularizers, settings=defaults | settings)


@pytest.mark.parametrize(
    "kind", ["clean consistency", "fisher_penalty", "l2_sp", "r4f", "r_drop", "smart", "weight_noise", "mixout"]
)
def test_resumed_training_continues_as_if_never_stopped(tmp_path, kind):
    whole, resumed = resumable(tmp_path, kind), resumable(tmp_path / "resumed", kind, save_strategy="no")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_training_resumed_after_an_epoch_continues_as_if_never_stopped(tmp_path):
    kinds = ["consistency", "fisher_penalty", "weight_noise", "mixout"]
    whole, resumed = resumable(tmp_path, *kinds, save_steps=3), resumable(tmp_path / "resumed", *kinds)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_resuming_without_the_generators_warns(tmp_path):
    whole, resumed = resumable(tmp_path, "fisher_penalty"), resumable(tmp_path / "resumed", "fisher_penalty")
    whole.train()
    (tmp_path / "checkpoint-2" / "regularizers_0.safetensors").unlink()
    with pytest.warns(UserWarning, match="no random generator of fisher_penalty"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not torch.equal(weights(whole.model), weights(resumed.model))


def test_label_smoothing_reaches_every_cross_entropy():
    _, log = train(KINDS["consistency"](0.7), RDrop(0.3), label_smoothing=0.2, batch_size=4)
    for entry in (entry for entry in log if "loss" in entry):
        task = entry["loss/task"]
        mvr = (entry["consistency/view_cross_entropy"] - task) / 2 + 0.7 * entry["consistency/kl"]
        r_drop = (entry["r_drop/view_cross_entropy"] - task) / 2 + 0.3 * entry["r_drop/mean_symmetric_kl"]
        assert entry["loss"] == pytest.approx(task + mvr + r_drop, rel=1e-4)


def test_sam_follows_the_gradient_at_the_worst_point_nearby(tmp_path):
    rows, start = make_rows(8), make_model(dtype=torch.float64)
    settings = {"per_device_train_batch_size": 8, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
    settings |= {"max_grad_norm": 0.0, "logging_steps": 1}
    trainer = trainer_of(
        tmp_path, rows=rows, model=copy.deepcopy(start), regularizers=[L2(0.5)], sam=SAM(0.3), settings=settings
    )
    trainer.train()
    batch = PairCollator(TOKENIZER)(EncodedRows(rows, TOKENIZER, max_length=64))
    parameters = list(start.parameters())

    def loss():
        return start(**batch).loss + 0.25 * sum(w.square().sum() for w in parameters)

    g = torch.autograd.grad(loss(), parameters)
    norm, value = sum(part.square().sum() for part in g).sqrt(), float(loss().detach())
    with torch.no_grad():
        for w, part in zip(parameters, g, strict=True):
            w.add_(0.3 * part / norm)
    worst = torch.autograd.grad(loss(), parameters)
    with torch.no_grad():
        for w, part, step in zip(parameters, g, worst, strict=True):
            w.sub_(0.3 * part / norm).sub_(0.1 * step)
    torch.testing.assert_close(weights(trainer.model), weights(start), rtol=1e-9, atol=1e-12)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(value, rel=1e-5)


def test_sam_goes_together_with_terms():
    def run(**settings):
        terms = [KINDS[kind](0.01) for kind in ("consistency", "fisher_penalty", "r4f", "weight_noise", "mixout")]
        model, log = train(*terms, rows=make_rows(16), epochs=1, batch_size=4, **settings)
        return weights(model), [entry for entry in log if "loss" in entry]

    first, log = run(sam=SAM(), gradient_accumulation_steps=2)
    assert torch.equal(run(sam=SAM(), gradient_accumulation_steps=2)[0], first)
    assert not torch.equal(run(gradient_accumulation_steps=2)[0], first)
    for entry in log:
        assert sum(value for key, value in entry.items() if key.startswith("loss/")) == pytest.approx(
            entry["loss"], 1e-5
        )


@pytest.mark.parametrize("kind", [None, "r3f", "mixout"], ids=str)
def test_weight_decay_is_decoupled_from_loss_and_terms(tmp_path, kind):
    settings = {"max_steps": 1, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    trained = {}
    for decay in (0.0, 0.5):
        regularizers = [KINDS[kind](0.1)] if kind else []
        trainer = trainer_of(tmp_path, regularizers=regularizers, settings=settings | {"weight_decay": decay})
        trainer.train()
        trained[decay] = dict(trainer.model.named_parameters())
    for name, start in make_model().named_parameters():
        shrunk = 0.01 * 0.5 * start if not ("bias" in name or "LayerNorm" in name) else torch.zeros_like(start)
        torch.testing.assert_close(trained[0.0][name] - trained[0.5][name], shrunk, rtol=1e-3, atol=1e-6)


def test_early_stopping_and_the_best_model_go_together_with_terms(tmp_path):
    settings = {"num_train_epochs": 6, "learning_rate": 0.0, "eval_strategy": "epoch", "save_strategy": "epoch"}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    trainer = trainer_of(
        tmp_path,
        regularizers=[kind(0.1) for name, kind in KINDS.items() if name not in ("clean consistency", "r_drop")],
        settings=settings,
        eval_dataset=make_rows(8, seed=5),
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    assert trainer.state.epoch == 3


def test_patience_stops_early_and_keeps_the_best_weights():
    rows = make_rows(8, seed=5)
    model, log = train(rows=make_rows(12), eval_rows=rows, patience=2, epochs=30, learning_rate=0.05)
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(losses) == losses.index(min(losses)) + 3 < 30
    (batch,) = batches(TOKENIZER, rows, max_length=32, batch_size=8)
    with torch.no_grad():
        assert float(F.cross_entropy(model(**batch).logits, batch["labels"])) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("settings", [{"patience": 2}, {"patience": 0, "eval_rows": make_rows(4)}], ids=str)
def test_early_stopping_needs_rows_and_patience(settings):
    with pytest.raises(FlatlingoError, match="early stopping needs eval_rows"):
        train(**settings)


@pytest.mark.parametrize("kind", ["lnsr", "weight_noise", "mixout"])
@pytest.mark.parametrize("how", ["arguments", "model"])
def test_passes_that_cannot_be_run_again_refuse_activation_checkpointing(tmp_path, kind, how):
    model, settings = make_model(), {"activation_checkpointing": how == "arguments"}
    if how == "model":
        model.activation_checkpointing_enable()
    with pytest.raises(FlatlingoError, match=f"{kind}.*checkpointing"):
        trainer_of(tmp_path, model=model, regularizers=[KINDS[kind](0.1)], settings=settings)


@pytest.mark.parametrize("kind", ["consistency", "r4f", "smart"])
def test_activation_checkpointing_changes_nothing(tmp_path, kind):
    both = []
    for checkpointing in (False, True):
        settings = {"max_steps": 3, "activation_checkpointing": checkpointing, "per_device_train_batch_size": 4}
        model = make_model(dropout=0.1)
        trainer_of(tmp_path, model=model, regularizers=[KINDS[kind](0.1)], settings=settings).train()
        both.append(weights(model))
    assert torch.equal(*both)


@pytest.mark.parametrize("kind", ["consistency", "r_drop", "gradient_norm"])
def test_terms_with_a_cross_entropy_refuse_another_loss(tmp_path, kind):
    model, terms = make_model(dropout=0.1), [KINDS[kind](0.1)]
    with pytest.raises(FlatlingoError, match=f"{kind}.*compute_loss_func"):
        trainer_of(tmp_path, model=model, regularizers=terms, compute_loss_func=lambda outputs, labels, **_: 0)


def test_sam_refuses_fp16(tmp_path):
    args = arguments(tmp_path)
    args.fp16 = True
    with pytest.raises(FlatlingoError, match="SAM.*fp16"):
        RegularizedTrainer(
            model=make_model(),
            args=args,
            train_dataset=make_rows(4),
            processing_class=TOKENIZER,
            sam=SAM(),
            max_length=64,
        )


def test_a_failed_training_leaves_no_hooks_behind():
    model = make_model(dropout=0.1)
    with pytest.raises(FlatlingoError, match="breaking"):
        train(*(KINDS[kind](0.1) for kind in ("mixout", "r4f", "vat")), Breaking(1.0), model=model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_that_are_cut_are_counted(monkeypatch):
    monkeypatch.setattr(TOKENIZER, "model_max_length", 14)
    monkeypatch.setattr(TOKENIZER, "deprecation_warnings", {})
    rows = make_rows(24)
    lengths = [len(TOKENIZER(row["text_a"], row["text_b"], verbose=False)["input_ids"]) for row in rows]
    cut = sum(length > 14 for length in lengths)
    assert 0 < cut < sum(length >= 14 for length in lengths)
    with pytest.warns(UserWarning, match=f"{cut} of 24 training rows are longer than max_length 14"):
        train(rows=rows, max_length=14, epochs=1)
    assert not TOKENIZER.deprecation_warnings  # transformers has not warned of "indexing errors" to come


def test_views_that_are_cut_are_counted_though_the_rows_are_not():
    rows, term = make_rows(24), KINDS["clean consistency"](0.1)
    longest = max(len(TOKENIZER(row["text_a"], row["text_b"])["input_ids"]) for row in rows)
    views = [term.features(row, seed=1, epoch=0, max_length=64) for row in rows]
    cut = sum(len(view["input_ids"]) > longest for view in views)
    assert 0 < cut < 24
    with pytest.warns(UserWarning, match=rf"{cut} of the first 24 perturbed views of consistency .* {longest}") as seen:
        train(term, rows=rows, max_length=longest, epochs=1)
    assert len(seen) == 1


@pytest.mark.parametrize("text", ["", " \t", "\u200b\u0000"], ids=["empty", "blank", "dropped characters"])
def test_texts_without_pieces_are_counted(text):
    rows = make_rows(8)
    rows[5]["text_b"] = text
    with pytest.warns(UserWarning, match="1 of 16 training texts have no pieces.*text_b of row 5"):
        train(KINDS["consistency"](0.1), rows=rows, epochs=1)


def test_adapting_leaves_the_first_stage_untouched():
    english, _ = train()
    before = copy.deepcopy(english.state_dict())
    spanish = adapt(english, TOKENIZER, make_rows(16, seed=7), **SETTINGS)
    assert all(torch.equal(value, english.state_dict()[name]) for name, value in before.items())
    assert not torch.equal(weights(spanish), weights(english))
    assert not spanish.training


def test_second_stage_takes_regularizers():
    english = make_model()
    rows = make_rows(16, seed=7)
    free = adapt(english, TOKENIZER, rows, **SETTINGS)
    held = adapt(english, TOKENIZER, rows, regularizers=[L2SP(100.0)], **SETTINGS)
    assert (weights(held) - weights(english)).norm() < (weights(free) - weights(english)).norm()
