"""Both views in one forward pass."""

import pytest
import torch
from tiny import make_model, make_rows, make_tokenizer
from transformers import TrainingArguments

from flatlingo.encoding import EncodedRows, PairCollator
from flatlingo.errors import FlatlingoError
from flatlingo.regularizers import (
    LNSR,
    SMART,
    CodeSwitching,
    Consistency,
    EmbeddingNoise,
    FisherPenalty,
    RDrop,
    SubwordConsistency,
    TracePenalty,
    Translation,
    XTune,
)
from flatlingo.trainer import RegularizedTrainer

TOKENIZER = make_tokenizer()
SWITCHING = CodeSwitching(TOKENIZER, {"cat": "understand", "big": "grün", "the": "Hund und"}, 0.9)
SHARED = {
    "mvr": lambda shared: [SubwordConsistency(TOKENIZER, 0.6, p=0.5, shared_pass=shared)],
    "r_drop": lambda shared: [RDrop(0.5, shared_pass=shared)],
    "xtune": lambda shared: [XTune(SWITCHING, 1.0, shared_pass=shared)],
    "translation": lambda shared: [XTune(Translation(TOKENIZER, make_rows(16, seed=3)), 1.0, shared_pass=shared)],
    "two terms": lambda shared: [
        SubwordConsistency(TOKENIZER, 0.6, p=0.5, shared_pass=shared),
        XTune(SWITCHING, 1.0, shared_pass=shared),
    ],
    "with others": lambda shared: [
        FisherPenalty(0.1),
        SubwordConsistency(TOKENIZER, 0.6, p=0.5, shared_pass=shared),
        SMART(0.1),
    ],
}


def trainer_of(folder, terms, model=None, **settings):
    args = TrainingArguments(
        output_dir=str(folder),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        per_device_train_batch_size=4,
        num_train_epochs=1,
        **settings,
    )
    return RegularizedTrainer(
        model=model or without_dropout(),
        args=args,
        train_dataset=make_rows(16),
        processing_class=TOKENIZER,
        regularizers=terms,
        max_length=24,
    )


def without_dropout():
    model = make_model(dtype=torch.float64)
    model.config.classifier_dropout = 0.1  # which R-Drop asks for; the modules have none
    return model


def passes(model) -> list[int]:
    """The numbers of rows of all passes, from now on."""
    seen = []
    model.bert.register_forward_hook(lambda module, inputs, output: seen.append(len(output.pooler_output)))
    return seen


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
def test_one_pass_trains_as_two(tmp_path, make, smoothing):
    weights, losses = [], []
    for shared in (False, True):
        settings = {"optim": "sgd", "learning_rate": 0.1, "label_smoothing_factor": smoothing, "logging_steps": 1}
        trainer = trainer_of(tmp_path, make(shared), gradient_accumulation_steps=2, **settings)
        trainer.train()
        weights.append(torch.cat([w.detach().flatten() for w in trainer.model.parameters()]))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    torch.testing.assert_close(*weights, rtol=1e-10, atol=1e-13)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(("name", "rows"), [("mvr", 8), ("r_drop", 8), ("two terms", 12)])
def test_a_step_has_one_pass(tmp_path, name, rows):
    model = without_dropout()
    seen = passes(model)
    trainer_of(tmp_path, SHARED[name](True), model, max_steps=2).train()
    assert seen == [rows, rows]


def test_the_two_halves_have_dropout_masks_of_their_own():
    model, term = make_model(dropout=0.1).train(), RDrop(shared_pass=True)
    batch = PairCollator(TOKENIZER)(EncodedRows(make_rows(4), TOKENIZER, max_length=24))
    with term.shared_context(model, batch):
        outputs = model(**batch)
    (view,) = term._shared
    assert outputs.logits.shape == view.logits.shape == (4, 3)
    assert not torch.allclose(outputs.logits, view.logits)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    "other", [TracePenalty(), FisherPenalty(method="finite-difference"), LNSR()], ids=lambda term: term.name
)
def test_terms_that_need_the_pass_for_themselves_are_refused(tmp_path, other):
    with pytest.raises(FlatlingoError, match=f"{other.name}.*consistency.*shared_pass"):
        trainer_of(tmp_path, [SubwordConsistency(TOKENIZER, shared_pass=True), other])


def test_perturbed_passes_that_are_no_ordinary_ones_cannot_be_shared():
    with pytest.raises(FlatlingoError, match="EmbeddingNoise"):
        Consistency(EmbeddingNoise(), shared_pass=True)


def test_a_term_without_its_pass_says_so():
    model, term = without_dropout(), RDrop(shared_pass=True)
    batch = PairCollator(TOKENIZER)(EncodedRows(make_rows(4), TOKENIZER, max_length=24))
    with pytest.raises(FlatlingoError, match=r"shared_context"):
        term(model, batch, model(**batch))


def test_views_of_other_columns_are_refused():
    model, term = without_dropout(), SubwordConsistency(TOKENIZER, shared_pass=True)
    rows = EncodedRows(make_rows(4), TOKENIZER, max_length=24, regularizers=[term])
    batch = PairCollator(TOKENIZER)([rows[i] for i in range(4)])
    del batch["token_type_ids"]
    inputs = {name: values for name, values in batch.items() if "/" not in name}
    with term.shared_context(model, batch), pytest.raises(FlatlingoError, match="same columns"):
        model(**inputs)
