"""Models that are built otherwise than BERT: each term acts as on BERT, or is refused before the first update."""

import copy

import peft
import pytest
import torch
import transformers
from torch import nn

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers import (
    L2SP,
    LNSR,
    R3F,
    R4F,
    SMART,
    VAT,
    AdversarialEmbedding,
    EmbeddingNoise,
    FisherPenalty,
    GradientNormPenalty,
    HiddenNoise,
    Mixout,
    ParameterNoise,
    RDrop,
    TracePenalty,
)

COMMON = {"vocab_size": 64, "num_labels": 3, "pad_token_id": 1, "max_position_embeddings": 64}
BERT = {**COMMON, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
NONE = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "classifier_dropout": 0.0}
LAYERS = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 3), ("attention_heads", 2))}
BART = {**COMMON, **NONE, **LAYERS, "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "init_std": 0.3}
T5 = {"vocab_size": 64, "num_labels": 3, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
KINDS = {
    "BERT": ("Bert", BERT),
    "XLM-R": ("XLMRoberta", BERT),
    "CamemBERT": ("Camembert", BERT),
    "BART": ("Bart", BART),
    "mBART, scaled embeddings": ("MBart", BART | {"scale_embedding": True}),
    "mT5": ("MT5", T5 | {"dropout_rate": 0.0, "decoder_start_token_id": 0, "eos_token_id": 2}),
    "XLNet": ("XLNet", {"vocab_size": 64, "num_labels": 3, "d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 24}),
    "Longformer": ("Longformer", BERT | {"attention_window": 4}),
    "I-BERT": ("IBert", BERT),
    "GPT-2": ("GPT2", {"vocab_size": 64, "num_labels": 3, "n_embd": 16, "n_layer": 3, "n_head": 2, "pad_token_id": 1}),
    "ALBERT": ("Albert", BERT | {"embedding_size": 8}),
    "DeBERTa": ("DebertaV2", BERT),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, **settings):
    """A classifier with weights so large that noise is seen, in float64 and without dropout."""
    name, config = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**config | settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForSequenceClassification")(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(rows: int = 3, length: int = 7) -> dict[str, torch.Tensor]:
    """Rows without padding; no token twice in a row, and all end in what BART and T5 read the class from."""
    with torch.random.fork_rng():
        torch.manual_seed(rows * length)
        ids = torch.stack([torch.randperm(58)[:length] + 5 for _ in range(rows)])
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def with_weight(model, weight: torch.Tensor):
    """A copy of the model whose encoder looks its tokens up in another matrix; its decoder does not."""
    model = copy.deepcopy(model)
    if model.config.is_encoder_decoder:
        model.get_encoder().embed_tokens.weight = nn.Parameter(weight)
    else:
        model.get_input_embeddings().weight = nn.Parameter(weight)
    return model


@every_kind
def test_embedding_noise_is_noise_on_the_rows_that_are_looked_up(kind):
    """Of a single row, whose tokens all differ: noise on the matrix is noise on its embeddings."""
    model, row = build(kind), batch(1)
    noise = EmbeddingNoise(0.3, "normal")
    noise.start(model, seed=5)
    weight = model.get_input_embeddings().weight.detach().clone()
    length = 8 if kind == "Longformer" else 7  # which pads its rows to whole windows
    z = torch.empty(1, length, weight.shape[1], dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(5))
    weight[row["input_ids"][0]] += 0.3 * z[0, :7]
    weight[model.config.pad_token_id] += 0.3 * z[0, -1] if kind == "Longformer" else 0
    clean = model(**row)
    noisy = noise(model, row, {}, clean).logits
    assert (noisy - clean.logits).abs().max() > 1e-4
    torch.testing.assert_close(noisy, with_weight(model, weight)(**row).logits, rtol=1e-8, atol=1e-10)


@every_kind
@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)], ids=["long rows", "many rows", "square"])
@pytest.mark.parametrize("update", ["projected", "normalised", "power"])
def test_adversarial_noise_of_a_row_does_not_depend_on_the_others(kind, shape, update, monkeypatch):
    model, rows = build(kind), batch(*shape)
    noise = AdversarialEmbedding(0.2, 0.1, 0.5, 1, update)
    noise.start(model, seed=0)
    monkeypatch.setattr(noise, "normal", lambda like: torch.arange(like.shape[-1]).sin().to(like).expand_as(like))
    clean = model(**rows)
    together = noise(model, rows, {}, clean).logits
    parts = [{name: values[i : i + 1] for name, values in rows.items()} for i in range(shape[0])]
    if update == "normalised":  # its step follows the gradient of the mean over rows, a share of that of a row alone
        noise.step_size /= shape[0]
    alone = torch.cat([noise(model, part, {}, model(**part)).logits for part in parts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)  # mT5 normalises in float32
    assert (together - clean.logits).abs().max() > 1e-4


class Elsewhere(transformers.BertForSequenceClassification):
    """Looks its tokens up in another module than it says."""

    def __init__(self, config):
        super().__init__(config)
        self.said = nn.Embedding(64, 16)

    def get_input_embeddings(self):
        return self.said


@pytest.mark.parametrize("method", [R3F(), SMART(), VAT()], ids=lambda method: method.name)
def test_noise_that_would_change_nothing_is_refused(method):
    model = Elsewhere(transformers.BertConfig(**BERT))
    method.start(model, seed=0)
    rows = batch() | {"labels": torch.tensor([0, 1, 2])}
    with pytest.raises(FlatlingoError, match="looks its tokens up elsewhere"):
        method(model, rows, model(**rows))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "method", [EmbeddingNoise(), AdversarialEmbedding(), ParameterNoise()], ids=lambda method: type(method).__name__
)
def test_noise_that_rounding_would_swallow_is_refused(method, dtype):
    with pytest.raises(FlatlingoError, match="lost in the rounding of .*16 weights; load the model in float32"):
        method.start(build("BERT").to(dtype), seed=0)


def encoder_layers(model) -> nn.ModuleList:
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    return next(module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == 3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ALBERT"])
def test_lnsr_compares_the_layers_above(kind):
    """With noise of a known size on layer 1, as a pass of a model whose layer 1 is changed."""
    model, rows = build(kind), batch()
    columns = rows | {"labels": torch.tensor([0, 1, 2])}
    term = LNSR(1.0, layer=1, rho=0.2)
    term.start(model, seed=3)
    with term.forward_context():
        outputs = model(**columns)
    value, _ = term(model, columns, outputs)

    generator = torch.Generator().manual_seed(3)

    def noisy(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        z = torch.empty_like(hidden).normal_(generator=generator)
        hidden = hidden + 0.2 / 4 * hidden.norm(dim=-1, keepdim=True) * z
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def states() -> torch.Tensor:
        out = model(**rows, output_hidden_states=True)
        hidden = out.encoder_hidden_states if model.config.is_encoder_decoder else out.hidden_states
        return torch.stack(hidden[2:])

    with torch.no_grad():
        clean = states()
        encoder_layers(model)[0].register_forward_hook(noisy)
        difference = states() - clean
    assert float(value.detach()) == pytest.approx(float(difference.square().sum(-1).sum(0).mean()), rel=1e-8)


def test_lnsr_of_untrained_adapters_is_that_of_the_model():
    values = {}
    for adapted in (False, True):
        model, columns = build("BERT"), batch() | {"labels": torch.tensor([0, 1, 2])}
        if adapted:
            config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
            model = peft.get_peft_model(model, config).eval()
        term = LNSR()
        term.start(model, seed=0)
        with term.forward_context():
            outputs = model(**columns)
        values[adapted] = float(term(model, columns, outputs)[0].detach())
    assert values[True] == pytest.approx(values[False], rel=1e-9)


def test_lnsr_refuses_layers_that_share_their_weights_and_layers_that_are_skipped():
    with pytest.raises(FlatlingoError, match="no list of encoder layers"):
        LNSR().start(build("ALBERT"), seed=0)
    model, rows = build("BART", encoder_layerdrop=1.0).train(), batch()
    noise = HiddenNoise()
    noise.start(model, seed=0)
    with pytest.raises(FlatlingoError, match="skips its layer 1"):
        noise(model, rows, {}, model(**rows))
    term = LNSR()
    term.start(model, seed=0)
    with term.forward_context():
        outputs = model(**rows)
    with pytest.raises(FlatlingoError, match="skips"):
        term(model, rows | {"labels": torch.tensor([0, 1, 2])}, outputs)


def test_noise_between_layers_is_refused_where_no_module_is_a_layer():
    config = transformers.XLMConfig(vocab_size=64, emb_dim=16, n_layers=3, n_heads=2, num_labels=3)
    with pytest.raises(FlatlingoError, match="parts of its layers in lists side by side"):
        HiddenNoise().start(transformers.XLMForSequenceClassification(config), seed=0)


@every_kind
def test_r4f_normalises_the_output_layer_of_every_head(kind):
    model, columns = build(kind), batch() | {"labels": torch.tensor([0, 1, 2])}
    term = R4F()
    term.start(model, seed=0)
    head = term._head
    with term.training_context(model):
        term(model, columns, model(**columns))
    assert head.out_features == 3
    assert float(torch.linalg.matrix_norm(head.weight, 2)) == pytest.approx(1, rel=1e-9)


def test_r4f_normalises_the_head_that_adapters_train():
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(build("XLM-R"), config)
    term, columns = R4F(), batch() | {"labels": torch.tensor([0, 1, 2])}
    term.start(model, seed=0)
    with term.training_context(model):
        term(model, columns, model(**columns))
    (head,) = (p for name, p in model.named_parameters() if p.requires_grad and "out_proj" in name and p.ndim == 2)
    assert float(torch.linalg.matrix_norm(head, 2)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("term", [R4F(), Mixout()], ids=lambda term: term.name)
def test_terms_that_were_started_with_another_model_say_so(term):
    trained, columns = build("BERT").train(), batch() | {"labels": torch.tensor([0, 1, 2])}
    other = build("BERT")
    term.start(other, seed=0)
    with term.training_context(other):
        outputs = trained(**columns)
        with pytest.raises(FlatlingoError, match="training_context"):
            term(trained, columns, outputs)


@every_kind
def test_a_shared_pass_is_two_passes(kind):
    model, columns = build(kind), batch() | {"labels": torch.tensor([0, 1, 2])}
    losses = {}
    for shared in (False, True):
        term = RDrop(shared_pass=shared)
        term.perturbation.start = lambda *_, **__: None  # no dropout: both passes are the same
        term.start(model, seed=0)
        with term.shared_context(model, columns):
            outputs = model(**columns)
        term_value, _ = term(model, columns, outputs)
        losses[shared] = float((outputs.loss + term_value).detach())
    assert losses[True] == pytest.approx(losses[False], rel=1e-9)


PENALTIES = [FisherPenalty(), TracePenalty(), GradientNormPenalty(), RDrop(), LNSR()]
penalties = pytest.mark.parametrize("term", PENALTIES, ids=lambda term: term.name)


@penalties
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"problem_type": "multi_label_classification"}, "several labels at once"),
        ({"problem_type": "regression"}, "a number"),
        ({"num_labels": 1}, "a number"),
    ],
    ids=["multi-label", "regression of three", "regression"],
)
def test_terms_of_a_softmax_refuse_models_without_one(term, settings, what):
    with pytest.raises(FlatlingoError, match=f"compares distributions over labels.*predicts {what}"):
        term.start(build("BERT", **settings), seed=0)


@penalties
@pytest.mark.parametrize(
    "labels",
    [torch.eye(3, dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0])],
    ids=["several labels at once", "numbers"],
)
def test_terms_of_a_softmax_refuse_labels_without_one(term, labels):
    """A model that does not say its problem takes it from the labels."""
    model = build("BERT", hidden_dropout_prob=0.1)
    term.start(model, seed=0)
    with term.forward_context():
        outputs = model(**batch())
    with pytest.raises(FlatlingoError, match="needs one class per row"):
        term(model, batch() | {"labels": labels}, outputs)


def test_l2_sp_pulls_layers_that_are_unfrozen_on_the_way():
    model, frozen = build("BERT"), build("BERT").bert.encoder.layer[0].state_dict()
    model.bert.requires_grad_(False)
    term = L2SP(2.0)
    term.start(model, seed=0)
    with torch.no_grad():
        model.classifier.weight.add_(0.5)
    model.bert.encoder.layer[0].requires_grad_(True)
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[0].parameters():
            parameter.sub_(0.25)
    value, _ = term(model, {}, None)
    count = sum(values.numel() for values in frozen.values())
    assert float(value.detach()) == pytest.approx(48 * 0.25 + count * 0.0625, rel=1e-9)


def test_l2_sp_names_a_layer_that_was_put_in_later():
    model, term = build("BERT"), L2SP(1.0)
    term.start(model, seed=0)
    model.classifier = nn.Linear(16, 3)
    with pytest.raises(FlatlingoError, match=r"initial value of classifier\.weight.*change the model before"):
        term(model, {}, None)


class Bag(nn.Module):
    """A head on the mean of word vectors."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(64, 8, mode="mean"), nn.Linear(8, 3)

    def forward(self, input_ids, **inputs):
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.head(self.words(input_ids)))


@pytest.mark.parametrize("kind", [FisherPenalty, GradientNormPenalty, TracePenalty])
def test_what_cannot_be_differentiated_twice_is_refused_by_name(kind):
    with pytest.raises(FlatlingoError, match=r"EmbeddingBag \(words\) does not support.*words.requires_grad_\(False\)"):
        kind(1.0).start(Bag(), seed=0)


@pytest.mark.parametrize(
    ("term", "frozen"),
    [(FisherPenalty(1.0), True), (FisherPenalty(1.0, method="finite-difference"), False)],
    ids=["frozen", "finite differences"],
)
def test_a_bag_is_trained_where_nothing_differentiates_it_twice(term, frozen):
    model = Bag().double()
    model.words.requires_grad_(not frozen)
    rows = {"input_ids": torch.arange(12).view(4, 3), "labels": torch.tensor([0, 1, 2, 0])}
    term.start(model, seed=0)
    with term.forward_context():
        outputs = model(**rows)
    term(model, rows, outputs)[0].backward()
    assert model.head.weight.grad.norm() > 0
