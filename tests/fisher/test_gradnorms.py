"""Every model family, parameter by parameter, against the per-example loop (fisher_oracle)."""

import copy
import warnings

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers
from fisher_oracle import float64_inside, padded_batch, per_example_trace, perturbed
from torch import nn

from flatlingo.fisher import fisher_trace
from flatlingo.fisher.gradnorms import GradientNorms

LENGTHS = (9, 4, 7, 9, 3)
SMALL = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 16, "hidden_size": 16}
ENCODER = SMALL | {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DEBERTA = ENCODER | {
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
DISTIL = {"vocab_size": 40, "num_labels": 3, "max_position_embeddings": 16, "dim": 16, "n_layers": 2, "n_heads": 2}
GPT = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
DECODER = ENCODER | {"num_key_value_heads": 1}
FAMILIES = {  # model class prefix, configuration, token types, covered without falling back
    "BERT": ("Bert", ENCODER, 2, True),
    "BERT, two labels": ("Bert", ENCODER | {"num_labels": 2}, 2, True),
    "BERT, eager": ("Bert", ENCODER | {"attn_implementation": "eager"}, 2, True),
    "RoBERTa": ("Roberta", ENCODER | {"type_vocab_size": 1, "pad_token_id": 1}, 0, True),
    "XLM-R": ("XLMRoberta", ENCODER | {"type_vocab_size": 1, "pad_token_id": 1}, 0, True),
    "DistilBERT": ("DistilBert", DISTIL | {"hidden_dim": 24}, 0, True),
    "ELECTRA": ("Electra", ENCODER | {"embedding_size": 8}, 2, True),
    "ALBERT": ("Albert", ENCODER | {"embedding_size": 8, "num_hidden_layers": 3}, 2, True),
    "DeBERTa-v3": ("DebertaV2", DEBERTA, 0, False),
    "ModernBERT": ("ModernBert", ENCODER | {"global_attn_every_n_layers": 2, "local_attention": 4}, 0, True),
    "ModernBERT, mean": ("ModernBert", ENCODER | {"classifier_pooling": "mean"}, 0, True),
    "GPT-2": ("GPT2", GPT, 0, True),
    "Llama": ("Llama", DECODER, 0, True),
    "Qwen2": ("Qwen2", DECODER, 0, True),
    "Gemma": ("Gemma", DECODER | {"head_dim": 8}, 0, False),  # scales its embeddings in a module of its own
}


def build(family):
    prefix, config, token_types, covered = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**config)
    torch.manual_seed(0)
    model = perturbed(getattr(transformers, f"{prefix}ForSequenceClassification")(config))
    return model, padded_batch(LENGTHS, pad=config.pad_token_id, token_types=token_types), covered


def assert_same(contributions, oracle, rtol, floor=1e-16):
    """Each parameter of each example to `rtol`; gradients that vanish exactly (key biases) are rounding: `floor`."""
    atol = floor * oracle.to_numpy().sum()
    pd.testing.assert_frame_equal(contributions[oracle.columns], oracle, rtol=rtol, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_parameter_of_each_family_in_float64(family):
    model, batch, covered = build(family)
    with float64_inside(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace = fisher_trace(model, [batch], by="parameter")
        oracle = per_example_trace(model, batch)
    assert_same(trace.contributions, oracle, rtol=1e-10)
    slower = [w for w in caught if "one at a time" in str(w.message)]
    assert len(slower) == (0 if covered else 1)


@pytest.mark.filterwarnings("ignore:.*one at a time")
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_in_float32(family):
    model, batch, _ = build(family)
    exact = fisher_trace(model, [batch]).per_example
    np.testing.assert_allclose(fisher_trace(model.float(), [batch]).per_example, exact, rtol=1e-4)


LONG = {"max_position_embeddings": 48, "hidden_size": 8, "intermediate_size": 8, "embedding_size": 4}


@pytest.mark.parametrize("prefix", ["Bert", "Albert"])
def test_long_texts_form_the_gradient_instead_of_gram_matrices(prefix):
    config = getattr(transformers, f"{prefix}Config")(**ENCODER | LONG)
    model = perturbed(getattr(transformers, f"{prefix}ForSequenceClassification")(config))
    batch = padded_batch((40, 33))
    assert_same(fisher_trace(model, [batch], by="parameter").contributions, per_example_trace(model, batch), rtol=1e-10)


def test_short_texts_join_the_gram_matrices_of_a_shared_layer():
    model, _, _ = build("ALBERT")
    batch = padded_batch((4, 3, 2))
    assert_same(fisher_trace(model, [batch], by="parameter").contributions, per_example_trace(model, batch), rtol=1e-10)


WIDE = {"max_position_embeddings": 80, "hidden_size": 96, "intermediate_size": 96, "embedding_size": 80}


@pytest.mark.parametrize("prefix", ["Bert", "Albert"])
@pytest.mark.parametrize("lengths", [(64, 20), (75, 75, 33), (20, 9)], ids=str)
def test_gram_matrices_in_several_blocks(prefix, lengths):
    config = getattr(transformers, f"{prefix}Config")(**ENCODER | WIDE)
    model = perturbed(getattr(transformers, f"{prefix}ForSequenceClassification")(config))
    batch = padded_batch(lengths)
    assert_same(fisher_trace(model, [batch], by="parameter").contributions, per_example_trace(model, batch), rtol=1e-10)


def test_bfloat16_autocast_of_more_than_one_block():
    """The Gram matrices of linear layers are whole then, those of embeddings, in float32, are not."""
    torch.manual_seed(0)
    model = perturbed(transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER | WIDE)))
    batch = padded_batch((75, 33))
    exact = fisher_trace(model.float(), [batch])
    with torch.autocast("cpu", torch.bfloat16):
        rough = fisher_trace(model, [batch])
    assert rough.groups == pytest.approx(exact.groups, rel=0.05)


def test_default_and_explicit_position_ids_agree():
    model, batch, _ = build("BERT")
    explicit = batch | {"position_ids": torch.arange(9).expand(5, 9)}
    default, given = (fisher_trace(model, [b], by="parameter").contributions for b in (batch, explicit))
    assert_same(given, default, rtol=1e-10)


def test_one_token_repeated():
    model, batch, _ = build("BERT")
    batch["input_ids"] = torch.full_like(batch["input_ids"], 7)
    assert_same(fisher_trace(model, [batch], by="parameter").contributions, per_example_trace(model, batch), rtol=1e-10)


def test_padding_that_is_attended_to():
    """The padding row of an embedding gets no gradient, by the rules of autograd."""
    model, batch, _ = build("BERT")
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    assert_same(fisher_trace(model, [batch], by="parameter").contributions, per_example_trace(model, batch), rtol=1e-10)


def confident(model, margin):
    """The head's bias moved so that the first label has nearly all the probability."""
    with torch.no_grad():
        model.classifier.bias += margin * torch.tensor([1.0, 0.0, -1.0])
    return model


@pytest.mark.parametrize("margin", [12, 20, 60])
def test_saturated_logits_in_float32(margin):
    model, batch, _ = build("BERT")
    confident(model, margin)
    exact = fisher_trace(model, [batch]).per_example
    assert (exact > 0).all()
    if margin < 60:  # beyond, the loop's own 1 - p has no digits
        np.testing.assert_allclose(exact, per_example_trace(model, batch).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(fisher_trace(model.float(), [batch]).per_example, exact, rtol=1e-3)


@pytest.mark.parametrize("family", ["BERT", "BERT, eager", "DistilBERT"])
def test_padding_that_comes_after_an_unpadded_batch(family):
    model, batch, _ = build(family)
    unpadded = {key: value[:1] for key, value in batch.items()}
    trace = fisher_trace(model, [unpadded, batch], by="parameter")
    assert_same(trace.contributions[1:].reset_index(drop=True), per_example_trace(model, batch), rtol=1e-10)


class MeanPooler(nn.Module):
    def __init__(self, pooler):
        super().__init__()
        self.dense = pooler.dense

    def forward(self, hidden):
        return torch.tanh(self.dense(hidden.mean(1)))


def last_layer_tokens(model, batch):
    """How many tokens the last layer's feed-forward part sees of the whole batch."""
    seen = []
    layer = model.bert.encoder.layer[-1].intermediate
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    contributions = fisher_trace(model, [batch], by="parameter").contributions
    handle.remove()
    ((tokens,),) = {(tokens,) for rows, tokens in seen if rows == len(batch["input_ids"])}
    return tokens, contributions


def test_the_last_layer_is_evaluated_at_the_first_token_only():
    model, batch, _ = build("BERT")
    assert last_layer_tokens(model, batch)[0] == 1
    assert "forward" not in vars(model.bert.encoder.layer[-1])


def test_the_whole_last_layer_is_evaluated_where_the_head_reads_all_of_it():
    model, batch, _ = build("BERT")
    model.bert.pooler = MeanPooler(model.bert.pooler).eval()
    tokens, contributions = last_layer_tokens(model, batch)
    assert tokens == 9
    assert_same(contributions, per_example_trace(model, batch), rtol=1e-10)


class Odd(nn.Module):
    """A classifier with everything the fast route does not know."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 40, bias=False)
        self.tied.weight = self.words.weight
        self.head = nn.Linear(40, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, input_ids, attention_mask):
        x = self.conv((self.words(input_ids) * self.scale).mT).mT
        x = torch.tanh(self.twice(x)) + nn.functional.linear(x, self.twice.weight)
        x = (x * attention_mask[..., None]).sum(1)
        return self.head(torch.tanh(self.tied(x)))


class Output(dict):
    __getattr__ = dict.__getitem__


def test_unknown_modules_fall_back_to_an_exact_route_and_say_so_once():
    torch.manual_seed(0)
    model = perturbed(Odd())
    batch = padded_batch(LENGTHS, token_types=0)
    with pytest.warns(UserWarning, match=r"words.weight, conv.weight, conv.bias and 1 more: used") as log:
        trace = fisher_trace(model, [batch, batch], by="parameter")
    assert len([one for one in log if "one at a time" in str(one.message)]) == 1
    oracle = per_example_trace(lambda **b: Output(logits=model(**b)), batch, named=model.named_parameters())
    assert_same(trace.contributions[:5], oracle, rtol=1e-10)
    assert (trace.contributions[["unused.weight", "unused.bias"]] == 0).all(axis=None)


class SharedHead(nn.Module):
    """One layer applied twice, batched: cross terms without falling back."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 6, padding_idx=0)
        self.layer, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids) + self.words(input_ids.flip(1))
        x = self.norm(torch.tanh(self.layer(x)))
        x = self.norm(torch.tanh(self.layer(x)))
        return self.head((x * attention_mask[..., None]).sum(1))


def test_layers_that_share_a_module():
    model, batch, _ = build("BERT")
    first, last = (layer.attention.self for layer in model.bert.encoder.layer)
    last.key = first.key
    assert_same(fisher_trace(model, [batch], by="parameter").contributions, per_example_trace(model, batch), rtol=1e-10)


def test_modules_used_twice():
    torch.manual_seed(0)
    model = perturbed(SharedHead())
    batch = padded_batch(LENGTHS, token_types=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the padding of a row")
        trace = fisher_trace(model, [batch], by="parameter")
    oracle = per_example_trace(lambda **b: Output(logits=model(**b)), batch, named=model.named_parameters())
    assert_same(trace.contributions, oracle, rtol=1e-10)


@pytest.mark.parametrize("family", ["BERT", "ALBERT", "GPT-2"])
def test_bfloat16_autocast(family):
    model, batch, _ = build(family)
    exact = fisher_trace(model.float(), [batch])
    with torch.autocast("cpu", torch.bfloat16):
        rough = fisher_trace(model, [batch])
    assert rough.value == pytest.approx(exact.value, rel=0.02)
    assert rough.groups == pytest.approx(exact.groups, rel=0.03)


def test_bfloat16_leaves_pytorchs_settings_alone():
    model, batch, _ = build("BERT")
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with torch.autocast("cpu", torch.bfloat16):
        fisher_trace(model.float(), [batch])
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before


@pytest.mark.parametrize("family", ["BERT", "ALBERT", "GPT-2"])
def test_autocast_finds_weights_already_cast(family):
    """The same norms to the last bit as when every call casts them anew, and float32 weights again afterwards."""
    model, batch, _ = build(family)
    before = {name: parameter.clone() for name, parameter in model.float().named_parameters()}
    engine = GradientNorms(model, dict(model.named_parameters()), batch, model(**batch).logits)
    autocast = torch.autocast("cpu", torch.bfloat16)
    direction = torch.tensor([[1.0, -1.0, 0.5]]).expand(len(batch["input_ids"]), -1)
    norms, dtypes = [], []
    for contexts in ([engine, autocast], [autocast, engine]):  # weights are cast on entering under autocast
        with contexts[0], contexts[1]:
            engine.forward(batch)
            norms.append(engine.backward(direction, last=True))
            dtypes.append({m.weight.dtype for m in model.modules() if type(m) is nn.Linear})
    assert dtypes == [{torch.float32}, {torch.bfloat16}]
    assert torch.equal(*norms)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


ADAPTERS = {  # peft configuration, covered without falling back
    "LoRA": (peft.LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1), True),
    "LoRA of the embeddings": (peft.LoraConfig(r=2, target_modules=["word_embeddings"]), False),
    "IA3": (peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]), False),
}


@pytest.mark.filterwarnings("ignore:.*one at a time")
@pytest.mark.parametrize(("config", "covered"), ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_by_peft(config, covered):
    """The trace is over what is trainable: the adapters and the head."""
    model, batch, _ = build("BERT")
    model = perturbed(peft.get_peft_model(model, copy.deepcopy(config)))
    model.base_model.model.classifier.requires_grad_(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace = fisher_trace(model, [batch], by="parameter")
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert list(trace.contributions) == trainable
    assert 2 < len(trainable) < 12
    assert_same(trace.contributions, per_example_trace(model, batch), rtol=1e-10)
    assert any("one at a time" in str(w.message) for w in caught) != covered
    assert set(fisher_trace(model, [batch]).groups) <= {"embeddings", "encoder", "head"}


@pytest.fixture(scope="module")
def trained():
    """A BERT that has learned random labels by heart: at random weights errors in the encoder hide in the total."""
    model, _, _ = build("BERT")
    ids = torch.randint(5, 40, (32, 9), generator=torch.Generator().manual_seed(1))
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.arange(32) % 3
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        model(**rows, labels=labels).loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    assert model(**rows).logits.softmax(1).max(1).values.median() > 0.95
    return model, {key: value[:6] for key, value in rows.items()}, padded_batch(LENGTHS)


@pytest.mark.parametrize("rows", ["seen", "new"])
def test_each_parameter_of_a_trained_model(trained, rows):
    model, seen, new = trained
    batch = seen if rows == "seen" else new
    oracle = per_example_trace(model, batch)
    assert_same(fisher_trace(model, [batch], by="parameter").contributions, oracle, rtol=1e-10)
    total = oracle.sum(axis=1)
    single = fisher_trace(copy.deepcopy(model).float(), [batch])
    np.testing.assert_allclose(single.per_example, total, rtol=5e-4)
    assert single.value == pytest.approx(total.mean(), rel=1e-5)


def test_the_model_is_left_as_it_was_after_an_error_in_the_second_batch():
    """Hooks, frozen parameters, modes, dropout and the shortened last layer."""
    model, batch, _ = build("BERT")
    model.bert.embeddings.requires_grad_(False)
    calls = []

    def fail_at_last(module, args):
        calls.append(module)
        if len(calls) == 5:
            raise RuntimeError("out of memory")

    def state():
        parameters = [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()]
        modules = [(n, m.training, getattr(m, "p", None), sorted(vars(m))) for n, m in model.named_modules()]
        return parameters, modules, [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]

    handle = model.classifier.register_forward_pre_hook(fail_at_last)
    before = state()
    with pytest.raises(RuntimeError, match="out of memory"):
        fisher_trace(model, [batch] * 9)
    handle.remove()
    assert state() == before
    assert fisher_trace(model, [batch]).value > 0
