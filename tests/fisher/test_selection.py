"""Which parameters "head", "last_layer", names and functions select, in models of several kinds."""

import peft
import pytest
import torch
import transformers

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import fisher_trace
from flatlingo.fisher.selection import is_above_encoder, module_group, selected

SMALL = {"vocab_size": 20, "num_labels": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
STACKED = SMALL | {"num_hidden_layers": 3}
DECODER = STACKED | {"num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0}
GPT = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "num_labels": 3}
XLM = {"vocab_size": 20, "emb_dim": 8, "n_layers": 2, "n_heads": 2, "num_labels": 3}
BART = {"vocab_size": 20, "d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "num_labels": 3}
BART |= {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
# The model; where the last layer's parameters begin with, and what lies above the encoder.
MODELS = {
    "BERT": ("Bert", STACKED, ["bert.encoder.layer.2."], ["bert.pooler.", "classifier."]),
    "RoBERTa": ("Roberta", STACKED, ["roberta.encoder.layer.2."], ["classifier."]),
    "DistilBERT": (
        "DistilBert",
        {"vocab_size": 20, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 8, "num_labels": 3},
        ["distilbert.transformer.layer.1."],
        ["pre_classifier.", "classifier."],
    ),
    "ALBERT, of one layer": (
        "Albert",
        STACKED | {"embedding_size": 4},
        ["albert.encoder.albert_layer_groups.0."],
        ["albert.pooler.", "classifier."],
    ),
    "GPT-2": ("GPT2", GPT, ["transformer.h.1."], ["score."]),
    "Llama": ("Llama", DECODER, ["model.layers.2."], ["score."]),
    "XLM, of lists side by side": (
        "XLM",
        XLM,
        [f"transformer.{part}.1." for part in ("attentions", "layer_norm1", "ffns", "layer_norm2")],
        ["sequence_summary."],
    ),
    "BART, whose decoder comes last": ("Bart", BART, ["model.decoder.layers.1."], ["classification_head."]),
}


class Mean(transformers.BertPreTrainedModel):
    """A classifier of one's own, whose encoder is not where `base_model_prefix` says."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder = transformers.BertModel(config, add_pooling_layer=False)
        self.out = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        return self.out(self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0].mean(1))


def test_a_model_of_ones_own_is_one_group_and_has_no_words_for_its_parts():
    model = Mean(transformers.BertConfig(**STACKED)).eval()
    batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    assert list(fisher_trace(model, [batch]).groups) == ["model"]
    with pytest.raises(FlatlingoError, match="Mean does not; name the parameters"):
        selected(model, "head")
    assert list(selected(model, ["out.bias"])) == ["out.bias"]


def test_a_compiled_model_has_the_groups_of_its_own():
    model = build("BERT")[0].eval()
    compiled = torch.compile(model, backend="eager")
    names = [name for name, _ in model.named_parameters()]
    expected = [module_group(model, name) for name in names]
    assert [module_group(compiled, f"_orig_mod.{name}") for name in names] == expected
    assert list(selected(compiled, "last_layer")) == [f"_orig_mod.{name}" for name in selected(model, "last_layer")]


def test_word_embeddings_that_peft_trains_are_a_group():
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier", "word_embeddings"])
    model = peft.get_peft_model(build("BERT")[0], config)
    (name,) = (name for name in selected(model) if "word_embeddings" in name)
    assert module_group(model, name) == "embeddings"


def build(kind):
    prefix, config, *prefixes = MODELS[kind]
    config = getattr(transformers, f"{prefix}Config")(**config)
    return getattr(transformers, f"{prefix}ForSequenceClassification")(config), *map(tuple, prefixes)


def starting(model, prefixes):
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


@pytest.mark.parametrize("kind", MODELS)
def test_head_and_last_layer_whatever_the_architecture(kind):
    model, layer, above = build(kind)
    assert list(selected(model, "head")) == starting(model, above)
    assert list(selected(model, "last_layer")) == starting(model, (*layer, *above))
    assert is_above_encoder(model, selected(model, "head"))
    assert not is_above_encoder(model, selected(model, "last_layer"))


@pytest.mark.parametrize("kind", MODELS)
def test_every_prefix_of_this_test_is_one_of_the_model(kind):
    model, layer, above = build(kind)
    assert all(starting(model, prefix) for prefix in (*layer, *above))


def test_adapters_of_the_last_layer():
    model, *_ = build("BERT")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(model, config)
    last = [name for name in selected(model, "last_layer") if "lora" in name]
    assert len(last) == 2
    assert all(".layer.2." in name for name in last)
    assert all("classifier" in name for name in selected(model, "head"))


def test_frozen_parameters_are_never_selected():
    model, *_ = build("BERT")
    model.bert.pooler.requires_grad_(False)
    assert list(selected(model, "head")) == ["classifier.weight", "classifier.bias"]
    assert not any("pooler" in name for name in selected(model, lambda name: True))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("classifer.bias", r"classifer.bias; name some of bert.*classifier.bias, or say 'head'"),
        (["classifier.bias", "x"], r"trainable parameters: x; name"),
        (lambda name: name.startswith("roberta"), r"selects none .*; they are bert"),
    ],
    ids=["a misspelt name", "one name too many", "a function that is never true"],
)
def test_what_matches_nothing_is_refused(parameters, message):
    with pytest.raises(FlatlingoError, match=message):
        selected(build("BERT")[0], parameters)


def test_a_word_that_the_model_cannot_tell_is_refused():
    with pytest.raises(FlatlingoError, match=r"'head' is for models of transformers"):
        selected(torch.nn.Linear(2, 2), "head")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**STACKED))
    model.bert.encoder = torch.nn.Linear(2, 2)
    with pytest.raises(FlatlingoError, match="BertForSequenceClassification is no stack of layers"):
        selected(model, "last_layer")
    with pytest.raises(FlatlingoError, match="'head' selects none"):
        selected(model.requires_grad_(False) and unfrozen(model, "bert.encoder.weight"), "head")


def unfrozen(model, name):
    model.get_parameter(name).requires_grad_(True)
    return model


def test_fisher_trace_takes_the_same_words():
    model = build("BERT")[0].double().eval()
    rows = [{"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}]
    parts = fisher_trace(model, rows, by=lambda name: name).contributions.mean()
    groups = parts.groupby([module_group(model, name) for name in parts.index]).sum()
    assert fisher_trace(model, rows, parameters="head").value == pytest.approx(groups["pooler"] + groups["head"])
    layer = parts[[name for name in parts.index if ".layer.2." in name]].sum()
    expected = groups["pooler"] + groups["head"] + layer
    assert fisher_trace(model, rows, parameters="last_layer").value == pytest.approx(expected)


def test_an_adapter_that_was_loaded_frozen_is_told_how_to_train_it(tmp_path):
    config = transformers.BertConfig(**STACKED)
    base = transformers.BertForSequenceClassification(config)
    peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).save_pretrained(tmp_path)
    batch = {"input_ids": torch.arange(1, 9).view(2, 4)}
    frozen = peft.PeftModel.from_pretrained(transformers.BertForSequenceClassification(config), tmp_path).eval()
    with pytest.raises(FlatlingoError, match=r"requires a gradient: load the adapter with is_trainable=True, or"):
        fisher_trace(frozen, [batch])
    trained = transformers.BertForSequenceClassification(config)
    trained = peft.PeftModel.from_pretrained(trained, tmp_path, is_trainable=True).eval()
    assert fisher_trace(trained, [batch]).value > 0
