"""Whole masks: the same numbers, and nothing of a pass is read while a GPU computes."""

import pytest
import torch
from fisher.architectures import tiny_model
from fisher_oracle import padded_batch, perturbed
from tiny import make_model, make_rows, make_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    TrainerCallback,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from flatlingo import devices, evaluation
from flatlingo.fisher import fisher_trace
from flatlingo.masks import ENCODERS, whole_masks
from flatlingo.regularizers import FisherPenalty, SubwordConsistency, periodic
from flatlingo.training import finetune

TOKENIZER = make_tokenizer()
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"vocab_size": 40, "max_position_embeddings": 64, "num_labels": 3}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 40, "num_labels": 3}
MODELS = {
    "BERT": lambda attention: make_model(attn_implementation=attention),
    "XLM-R": lambda attention: XLMRobertaForSequenceClassification(
        XLMRobertaConfig(**SMALL, pad_token_id=1, attn_implementation=attention)
    ),
    "ELECTRA": lambda attention: ElectraForSequenceClassification(
        ElectraConfig(**SMALL, embedding_size=8, attn_implementation=attention)
    ),
    "DistilBERT": lambda attention: DistilBertForSequenceClassification(
        DistilBertConfig(**DISTIL, attn_implementation=attention)
    ),
}
LENGTHS = {"padded": (9, 4, 7, 3), "without padding": (6, 6, 6)}


class Reads(TorchDispatchMode):
    """Counts the numbers that Python reads from tensors: what a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **kwargs or {})


@pytest.fixture
def ahead(monkeypatch):
    """Treat the CPU as a GPU, which Python does not wait for."""
    on_gpu(monkeypatch)


def on_gpu(monkeypatch):
    monkeypatch.setattr(devices, "runs_ahead", lambda _device: True)
    monkeypatch.setattr(periodic, "is_seen", lambda _condition: False)


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request, attention):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(request.param(attention))


@pytest.fixture(params=LENGTHS.values(), ids=LENGTHS)
def batch(request, model):
    types = 0 if model.config.model_type in ("distilbert", "xlm-roberta") else 2
    return padded_batch(request.param, pad=model.config.pad_token_id, token_types=types)


def logits_and_gradients(model, batch):
    model.zero_grad()
    logits = model(**batch).logits
    logits.square().sum().backward()
    return logits.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.usefixtures("ahead")
def test_logits_and_gradients_are_the_same_and_nothing_is_read(model, batch):
    expected = logits_and_gradients(model, batch)
    with whole_masks(model), Reads() as reads:
        found = logits_and_gradients(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    assert reads.count == 0
    with Reads() as reads:
        assert torch.equal(model(**batch).logits, expected[0]), "outside, nothing is left"
    assert reads.count == 1


@pytest.mark.usefixtures("ahead")
def test_tr_f_is_the_same(model, batch):
    expected = fisher_trace(model, [batch], by="parameter").contributions.to_numpy()
    with whole_masks(model):
        found = fisher_trace(model, [batch], by="parameter").contributions.to_numpy()
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-12 * expected.sum())


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("kind", ["bart", "deberta", "longformer", "gpt_neo", "xlnet", "modernbert"])
def test_models_that_use_masks_otherwise_are_left_as_they_are(kind):
    model, batch = tiny_model(kind)
    assert type(model.base_model).__name__ not in ENCODERS
    expected = model(**batch).logits
    with whole_masks(model):
        assert torch.equal(model(**batch).logits, expected)


def test_on_the_cpu_nothing_changes():
    model = make_model()
    with whole_masks(model):
        assert not model.bert._forward_pre_hooks


class ReadsOfSteps(TrainerCallback):
    """Counts what the middle steps of a training read."""

    def __init__(self):
        self.reads, self.counts = Reads(), []

    def on_step_begin(self, args, state, control, **kwargs):
        self.reads.count = 0
        self.reads.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.reads.__exit__(None, None, None)
        self.counts.append(self.reads.count)


TERMS = {
    "none": list,
    "two passes": lambda: [SubwordConsistency(TOKENIZER, p=0.5)],
    "one pass": lambda: [SubwordConsistency(TOKENIZER, p=0.5, shared_pass=True)],
    "Fisher penalty": lambda: [FisherPenalty()],
}


def trained(terms):
    model, steps = make_model(dtype=torch.float64), ReadsOfSteps()
    settings = {"seed": 1, "epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "max_length": 32}
    finetune(model, TOKENIZER, make_rows(32), regularizers=terms(), callbacks=[steps], **settings)
    return model, steps.counts


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_a_training_step_reads_nothing_and_trains_the_same(terms, monkeypatch):
    expected, before = trained(terms)
    on_gpu(monkeypatch)
    model, after = trained(terms)
    first, *later = after
    assert max(later) == 0 < min(before)
    assert first <= 1, "whether the model's loss is that of the terms is read once"
    for found, parameter in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, parameter, rtol=1e-8, atol=1e-12)
    assert not model.bert._forward_pre_hooks


@pytest.mark.usefixtures("ahead")
def test_predictions_read_no_mask_and_are_the_same(monkeypatch):
    model, rows = make_model(dtype=torch.float64), make_rows(20)
    with Reads() as reads:
        found = evaluation.logits(model, TOKENIZER, rows, max_length=32, batch_size=4)
    monkeypatch.undo()
    with Reads() as before:
        expected = evaluation.logits(model, TOKENIZER, rows, max_length=32, batch_size=4)
    assert (before.count - reads.count, reads.count) == (5, 0)
    assert found == pytest.approx(expected, rel=1e-6)
