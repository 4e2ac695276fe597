import copy
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import make_model, make_rows, make_tokenizer
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from flatlingo.encoding import EncodedRows, PairCollator, encode
from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import accuracy, batches
from flatlingo.regularizers import L2, L2SP, FisherPenalty, Regularizer, SubwordConsistency
from flatlingo.training import RegularizedTrainer, adapt, finetune

SETTINGS = {"seed": 1, "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "max_length": 32}
TOKENIZER = make_tokenizer()
KINDS = {
    "consistency": lambda weight: SubwordConsistency(TOKENIZER, weight, p=0.5),
    "clean consistency": lambda weight: SubwordConsistency(TOKENIZER, weight, p=0.5, mode="clean"),
    "fisher_penalty": FisherPenalty,
    "l2": L2,
    "l2_sp": L2SP,
}


def train(*regularizers: Regularizer, rows=None, model=None, **settings):
    """A model trained on few rows, and its log."""
    model = model or make_model(dropout=0.1)
    log = finetune(model, TOKENIZER, rows or make_rows(24), regularizers=regularizers, **SETTINGS | settings)
    return model, log


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
    assert not torch.equal(weights(first), weights(train()[0]))
    losses = [entry["loss/task"] for entry in log if "loss/task" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_other_seeds_train_other_weights():
    assert not torch.equal(weights(train()[0]), weights(train(seed=2)[0]))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_zero_weight_is_plain_training_bit_for_bit(kind):
    assert torch.equal(weights(train(kind(0.0))[0]), weights(train()[0]))


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


@pytest.mark.parametrize("kind", [None, "consistency", "l2", "l2_sp"], ids=str)
def test_accumulating_4_by_8_is_1_by_32(tmp_path, kind):
    both = []
    for batch_size, accumulation in [(32, 1), (8, 4)]:
        # SGD: Adam would blow the rounding errors of vanishing gradients (key biases) up to whole steps
        settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        settings |= {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 3, "logging_steps": 1}
        regularizers = [KINDS[kind](0.5)] if kind else []
        model, rows = make_model(dtype=torch.float64), make_rows(64)
        trainer = trainer_of(tmp_path, rows=rows, regularizers=regularizers, model=model, settings=settings)
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


def test_trained_model_is_in_eval_mode_and_nothing_is_written(tmp_path):
    model, _ = train(output_dir=tmp_path)
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


def test_resumed_training_continues_as_if_never_stopped(tmp_path):
    def trainer(folder, **settings):
        terms = [KINDS["clean consistency"](0.5), L2SP(0.1)]
        model = make_model(dropout=0.1)
        defaults = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
        return trainer_of(tmp_path / folder, model=model, regularizers=terms, settings=defaults | settings)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert torch.equal(weights(whole.model), weights(resumed.model))


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
