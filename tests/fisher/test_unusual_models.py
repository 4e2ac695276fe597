"""Classifiers of people's own: heads that read chosen tokens, rows that change places, outputs of other kinds."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from fisher_oracle import padded_batch, per_example_trace, perturbed
from torch import nn
from transformers.pytorch_utils import Conv1D

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import empirical_fisher, fisher_trace
from flatlingo.regularizers import TracePenalty

CONFIG = transformers.BertConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=3
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Reading(transformers.BertPreTrainedModel):
    """BERT with a head that reads what a function takes of the last hidden states, (B, H) from (B, T, H)."""

    def __init__(self, read):
        super().__init__(CONFIG)
        self.bert = transformers.BertModel(CONFIG, add_pooling_layer=False)
        self.out, self.read = nn.Linear(16, 3), read
        self.post_init()

    def forward(self, input_ids, attention_mask, token_type_ids):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        return SimpleNamespace(logits=self.out(self.read(hidden, attention_mask, token_type_ids)))


def last_token(hidden, mask, types):
    return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]


def second_text(hidden, mask, types):
    """The first token, and the mean over the second text if there is one."""
    second = (types == 1)[..., None].to(hidden)
    return hidden[:, 0] + (hidden * second).sum(1) / second.sum(1).clamp_min(1)


def mean(hidden, mask, types):
    return (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]


def texts(lengths, first_of_second=99):
    batch = padded_batch(lengths, token_types=0)
    types = (torch.arange(max(lengths)) >= first_of_second).long() * batch["attention_mask"]
    return batch | {"token_type_ids": types}


READERS = {
    "the last token": (last_token, [texts((7, 7, 7)), texts((7, 3, 5))]),
    "a second text, in a later batch": (second_text, [texts((8, 8, 8)), texts((8, 8, 8), 4)]),
    "a second text, in a later batch with padding": (second_text, [texts((8, 8, 8)), texts((8, 6, 8), 4)]),
    "all tokens, first of rows of one": (mean, [texts((1, 1)), texts((6, 4))]),
}


@pytest.mark.parametrize(("read", "batches"), READERS.values(), ids=READERS)
def test_a_head_may_read_any_token_in_any_batch(read, batches):
    model = perturbed(Reading(read))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fisher_trace(model, batches, by="parameter").contributions
    oracle = np.concatenate([per_example_trace(model, batch).to_numpy() for batch in batches])
    np.testing.assert_allclose(found, oracle, rtol=1e-10, atol=1e-16 * oracle.sum())


class Sorted(nn.Module):
    """Takes rows in order of length, as packing asks for; logits in the order of the batch."""

    def __init__(self):
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        lengths, order = attention_mask.sum(1).sort(descending=True, stable=True)
        hidden = torch.tanh(self.layer(self.words(input_ids[order]))) * attention_mask[order][..., None]
        return SimpleNamespace(logits=self.head(hidden.sum(1) / lengths[:, None])[order.argsort()])


EVEN, UNEVEN = padded_batch((7, 7, 7, 7), token_types=0), padded_batch((3, 9, 5, 8), token_types=0, seed=1)


def test_rows_that_change_places_in_a_later_batch_are_measured_alone():
    model = perturbed(Sorted())
    with pytest.warns(UserWarning, match="one at a time"):
        found = fisher_trace(model, [EVEN, EVEN, UNEVEN]).per_example[8:]
    np.testing.assert_allclose(found, per_example_trace(model, UNEVEN).sum(axis=1), rtol=1e-10)


def test_the_penalty_refuses_rows_that_change_places_in_a_later_batch():
    model, term = perturbed(Sorted()), TracePenalty()
    term.start(model, seed=0)

    def step(batch):
        with term.forward_context():
            outputs = model(**batch)
        return term(model, batch, outputs)

    step(EVEN)
    with pytest.raises(FlatlingoError, match="the differentiable Tr\\(F\\) does not cover"):
        step(UNEVEN)


class Tied(nn.Module):
    """A weight that a Linear and a Conv1D share, which takes it transposed."""

    def __init__(self):
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(40, 6), nn.Linear(6, 9), Conv1D(6, 9)
        self.down.weight, self.head = self.up.weight, nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        hidden = self.words(input_ids) * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(self.down(torch.tanh(self.up(hidden))).sum(1)))


@pytest.mark.filterwarnings("ignore:the padding of a row")  # which the bias makes count
def test_a_weight_that_two_kinds_of_modules_share():
    model = perturbed(Tied())
    with pytest.warns(UserWarning, match="up.weight: used in a way"):
        found = fisher_trace(model, [UNEVEN], by="parameter").contributions
    np.testing.assert_allclose(found, per_example_trace(model, UNEVEN), rtol=1e-10)


class Inward(nn.Module):
    """Takes a gradient in its own forward pass, through a layer that it calls twice."""

    def __init__(self):
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(40, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        with torch.enable_grad():
            start = torch.zeros(6, dtype=self.head.weight.dtype, requires_grad=True)
            energy = self.layer(torch.tanh(self.layer(start[None, None]))).square().sum()
            (inward,) = torch.autograd.grad(energy, start)
        hidden = (self.words(input_ids) * attention_mask[..., None]).sum(1) + inward
        return SimpleNamespace(logits=self.head(torch.tanh(self.layer(hidden))))


@pytest.mark.filterwarnings("ignore:.*one at a time")
def test_a_model_may_take_gradients_of_its_own():
    model = perturbed(Inward())
    found = fisher_trace(model, [UNEVEN], by="parameter").contributions
    np.testing.assert_allclose(found, per_example_trace(model, UNEVEN), rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("kind", [dict, lambda logits: (logits, None)], ids=["dict", "tuple"])
def test_logits_may_come_in_a_dict_or_a_tuple(kind):
    class Wrapped(Sorted):
        def forward(self, **batch):
            return kind(logits=super().forward(**batch).logits)

    plain, wrapped = perturbed(Sorted()), perturbed(Wrapped())
    wrapped.load_state_dict(plain.state_dict())
    np.testing.assert_array_equal(fisher_trace(plain, [EVEN]).per_example, fisher_trace(wrapped, [EVEN]).per_example)


def test_a_compiled_model_is_measured_as_it_is_written():
    model = transformers.BertForSequenceClassification(CONFIG).eval()
    batch = texts((4, 3))
    expected = fisher_trace(model, [batch]).per_example
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fisher_trace(torch.compile(model, backend="aot_eager"), [batch]).per_example
    np.testing.assert_array_equal(found, expected)


def test_a_transformer_of_torch_is_measured_as_it_is_trained():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.words, self.head = nn.Embedding(40, 8), nn.Linear(8, 3)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, input_ids, attention_mask):
            hidden = self.encoder(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
            return SimpleNamespace(logits=self.head(hidden.sum(1)))

    model = perturbed(Encoder())
    before = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one at a time; padding counts here
        found = fisher_trace(model, [UNEVEN], by="parameter").contributions
    np.testing.assert_allclose(found, per_example_trace(model, UNEVEN), rtol=1e-10, atol=1e-18)
    assert torch.backends.mha.get_fastpath_enabled() is before


class Windows(nn.Module):
    """Gives an encoder of 16 positions a row of 20 tokens in two halves."""

    def __init__(self):
        super().__init__()
        config = transformers.BertConfig(**CONFIG.to_diff_dict() | {"max_position_embeddings": 16})
        self.bert, self.head = transformers.BertModel(config), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        halves = [
            self.bert(input_ids=ids, attention_mask=mask).pooler_output
            for ids, mask in zip(input_ids.split(10, 1), attention_mask.split(10, 1), strict=True)
        ]
        return SimpleNamespace(logits=self.head(sum(halves)))


def test_a_model_may_split_rows_that_are_longer_than_its_positions():
    model, batch = perturbed(Windows()), padded_batch((20, 20), token_types=0)
    np.testing.assert_allclose(
        fisher_trace(model, [batch]).per_example, per_example_trace(model, batch).sum(axis=1), rtol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.bool], ids=str)
def test_gold_labels_of_any_whole_type(dtype):
    model, gold = perturbed(Tied()), torch.tensor([0, 1, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = (empirical_fisher(model, [EVEN | {"labels": g}]).value for g in (gold, gold.to(dtype)))
    assert found == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": -1}, "seed=-1: give a whole number"),
        ({"max_examples": 2.5}, "max_examples=2.5: give a whole"),
        ({"batches": EVEN}, "a single batch; give a list of batches"),
    ],
    ids=["seed", "max_examples", "one batch"],
)
def test_a_slip_in_an_argument_is_told(options, says):
    with pytest.raises(FlatlingoError, match=says):
        fisher_trace(perturbed(Sorted()), **{"batches": [EVEN]} | options)
