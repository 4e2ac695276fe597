"""`parameters=` of the penalties: values and gradients against slow float64 autograd, what it saves and refuses."""

import pytest
import torch
import torch.nn.functional as F
from fisher_oracle import padded_batch
from gradients import LENGTHS, build, flat, gradient_of, term_of
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import fisher_trace
from flatlingo.fisher.selection import selected
from flatlingo.regularizers import FisherPenalty, TracePenalty
from flatlingo.regularizers.fisher_penalty import draw_labels

SELECTIONS = {
    "head": "head",
    "last layer": "last_layer",
    "names": ["classifier.weight", "bert.embeddings.LayerNorm.bias"],
    "a function": lambda name: ".layer.0." in name,
}
KINDS = {"Fisher": FisherPenalty, "trace": TracePenalty}


@pytest.fixture(params=SELECTIONS)
def parameters(request):
    return SELECTIONS[request.param]


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def slow_trace(model, batch, names):
    """1/B ∑ᵢ ∑_c p_c ‖∇ log p_c‖² over some parameters with torch.func's gradients, differentiable in all."""
    everything = dict(model.named_parameters())
    some, others = ({k: v for k, v in everything.items() if (k in names) is inside} for inside in (True, False))

    def log_p(some, row, c):
        inputs = {key: value[None] for key, value in row.items()}
        return functional_call(model, some | others, (), inputs).logits[0].log_softmax(0)[c]

    total = 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(len(batch["input_ids"])):
            row = {key: value[i] for key, value in batch.items()}
            for c in range(model.config.num_labels):
                norm = sum(g.square().sum() for g in grad(log_p)(some, row, c).values())
                total = total + log_p(some, row, c).exp() * norm
    return total / len(batch["input_ids"])


@pytest.mark.parametrize("family", ["BERT", "ALBERT", "GPT-2"])
@pytest.mark.parametrize("word", ["head", "last_layer"])
def test_trace_penalty_of_words_against_per_example_gradients(family, word):
    agrees_with_slow_trace(*build(family), word)


def test_trace_penalty_of_a_selection_against_per_example_gradients(parameters):
    agrees_with_slow_trace(*build(), parameters)


def agrees_with_slow_trace(model, batch, parameters):
    term = term_of(TracePenalty(0.3, parameters=parameters), model, batch)
    expected = 0.3 * slow_trace(model, batch, selected(model, parameters))
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=0)
    assert float(term.detach()) == pytest.approx(0.3 * fisher_trace(model, [batch], parameters=parameters).value)
    found, wanted = flat(gradient_of(term, model)), flat(gradient_of(expected, model))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11 * wanted.abs().max().item())


def test_fisher_penalty_of_a_selection_against_autograd(parameters):
    model, batch = build()
    term = term_of(FisherPenalty(0.3, parameters=parameters), model, batch, seed=5)
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(**batch).logits
    labels = draw_labels(logits, torch.Generator().manual_seed(5))
    some = list(selected(model, parameters).values())
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), some, create_graph=True)
    expected = 0.3 * len(labels) * sum((g * g).sum() for g in gradients)
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=0)
    found, wanted = flat(gradient_of(term, model)), flat(gradient_of(expected, model))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11 * wanted.abs().max().item())


def test_parts_of_the_trace_add_up_to_it(parameters):
    model, batch = build()
    inside = selected(model, parameters)
    others = [name for name, _ in model.named_parameters() if name not in inside]
    parts = sum(term_of(TracePenalty(1.0, parameters=chosen), model, batch) for chosen in (list(inside), others))
    torch.testing.assert_close(parts, term_of(TracePenalty(1.0), model, batch), rtol=1e-10, atol=0)


def cotangents(model):
    """The layers whose output receives a cotangent."""
    seen = set()

    def watch(i, output):
        (output[0] if isinstance(output, tuple) else output).register_hook(lambda _: seen.add(i))

    for i, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_hook(lambda module, args, output, i=i: watch(i, output))
    return seen


@pytest.mark.parametrize(
    ("parameters", "layers"), [("head", set()), ("last_layer", {1}), (None, {0, 1})], ids=["head", "last layer", "all"]
)
def test_no_backward_pass_of_the_term_goes_below_what_is_penalised(kind, parameters, layers):
    model, batch = build()
    seen = cotangents(model)
    term_of(kind(1.0, parameters=parameters), model, batch)
    assert seen == layers


def test_what_lies_below_the_head_has_a_gradient_of_the_term(kind):
    model, batch = build()
    gradients = gradient_of(term_of(kind(1.0, parameters="head"), model, batch), model)
    words = dict(zip(dict(model.named_parameters()), gradients, strict=True))["bert.embeddings.word_embeddings.weight"]
    assert words.abs().max() > 0


@pytest.mark.parametrize(("parameters", "composite"), [("head", False), ("last_layer", True), (None, True)], ids=str)
def test_attention_may_be_fused_where_gradients_of_the_term_stay_above_the_encoder(kind, parameters, composite):
    model, _ = build()
    penalty = kind(1.0, parameters=parameters)
    penalty.start(model, seed=0)
    with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]), penalty.forward_context():
        assert torch.backends.cuda.flash_sdp_enabled() is not composite
    model.config._attn_implementation = "flash_attention_2"
    if composite:
        with pytest.raises(FlatlingoError, match="flash_attention_2"):
            penalty.start(model, seed=0)
    else:
        penalty.start(model, seed=0)


def test_what_is_not_covered_may_lie_outside_the_selection():
    model, batch = build()
    other = torch.nn.Parameter(torch.ones(16, dtype=torch.float64))
    model.bert.register_parameter("other", other)
    model.bert.embeddings.register_forward_hook(lambda module, args, output: output * model.bert.other)
    with pytest.raises(FlatlingoError, match=r"bert.other: used in a way .* leave it out by parameters="):
        term_of(TracePenalty(1.0), model, batch)
    term = term_of(TracePenalty(1.0, parameters="last_layer"), model, batch)
    assert float(term.detach()) == pytest.approx(fisher_trace(model, [batch], parameters="last_layer").value)


def test_a_selection_that_matches_nothing_is_refused_when_training_starts(kind):
    model, _ = build()
    with pytest.raises(FlatlingoError, match=f"{kind.name}: parameters= selects none"):
        kind(1.0, parameters=lambda name: False).start(model, seed=0)


def test_finite_differences_save_nothing_and_refuse_a_selection():
    with pytest.raises(FlatlingoError, match="would save nothing; use method='exact'"):
        FisherPenalty(1.0, method="finite-difference", parameters="head")


@pytest.mark.parametrize("parameters", [None, "head"], ids=str)
def test_parameters_frozen_or_unfrozen_later(kind, parameters):
    """All means all that are trainable now; a selection is made when training starts."""
    model, batch = build()
    model.bert.encoder.layer[0].requires_grad_(False)
    penalty = kind(1.0, parameters=parameters)
    term_of(penalty, model, batch)
    model.bert.encoder.layer[0].requires_grad_(True)
    with penalty.forward_context():
        outputs = model(**padded_batch(LENGTHS))
    found = penalty(model, batch, outputs)[0]
    if kind is TracePenalty:
        assert float(found.detach()) == pytest.approx(fisher_trace(model, [batch], parameters=parameters).value)
    assert flat(gradient_of(found, model)).isfinite().all()
