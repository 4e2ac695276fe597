"""The Fisher penalty both ways and the trace penalty: values and gradients against slow formulas in float64."""

import itertools
import math
from contextlib import contextmanager
from types import SimpleNamespace

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from fisher_oracle import padded_batch, perturbed
from gradients import ENCODER, FAMILIES, LENGTHS, build, flat, gradient_of, next_term, term_of
from tiny import make_model, make_rows, make_tokenizer
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatlingo.encoding import EncodedRows, PairCollator
from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import trace_of_rows
from flatlingo.fisher import fisher_trace, softmax_factor
from flatlingo.regularizers import SAM, finite_differences, periodic
from flatlingo.regularizers.fisher_penalty import FisherPenalty, draw_labels, squared_gradient_norm
from flatlingo.regularizers.trace_penalty import TracePenalty
from flatlingo.regularizers.trace_target import TraceTarget
from flatlingo.training import finetune


@pytest.fixture
def model_and_batch():
    return build()


def slow_trace(model, batch):
    """1/B ∑ᵢ ∑_c p_c ‖∇ log p_c‖² with torch.func's gradients of each example, differentiable."""
    parameters = dict(model.named_parameters())

    def log_p(parameters, row, c):
        inputs = {key: value[None] for key, value in row.items()}
        return functional_call(model, parameters, (), inputs).logits[0].log_softmax(0)[c]

    total = 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(len(batch["input_ids"])):
            row = {key: value[i] for key, value in batch.items()}
            for c in range(model.config.num_labels):
                gradients = grad(log_p)(parameters, row, c)
                norm = sum(g.square().sum() for g in gradients.values())
                total = total + log_p(parameters, row, c).exp() * norm
    return total / len(batch["input_ids"])


class TwoBiases(torch.nn.Module):
    """The sum of two parameters is added, so that autograd gives one tensor as the gradient of both."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
        self.first, self.second = (torch.nn.Parameter(torch.randn(5)) for _ in range(2))
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, x):
        return SimpleNamespace(logits=self.head(torch.tanh(self.layer(x) + (self.first + self.second))))


@pytest.fixture
def two_biases():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoBiases().double()
        return model, {"x": torch.randn(6, 4).double()}


def test_finite_differences_of_gradients_that_are_one_tensor(two_biases):
    model, batch = two_biases
    model.unused.requires_grad_(False)
    found = {}
    for method, radius in (("exact", {}), ("finite-difference", {"radius": 1e-5})):
        term = FisherPenalty(1.0, method=method, **radius)
        term.start(model, seed=0)
        with term.forward_context():
            outputs = model(**batch)
        loss, _ = term(model, batch, outputs)
        found[method] = torch.autograd.grad(loss, [model.first, model.second, model.layer.bias])
    for exact, approximate in zip(*found.values(), strict=True):
        torch.testing.assert_close(approximate, exact, rtol=1e-3, atol=1e-6)


def test_a_penalty_on_parameters_that_count_nothing_is_zero(two_biases):
    model, batch = two_biases
    term = FisherPenalty(1.0, parameters=["unused.weight"])
    term.start(model, seed=0)
    loss, logged = term(model, batch, model(**batch))
    assert (float(loss), *map(float, logged.values())) == (0, 0)


# The trace penalty


@pytest.mark.parametrize("family", FAMILIES)
def test_trace_penalty_value_and_gradient_against_per_example_gradients(family):
    model, batch = build(family)
    term = term_of(TracePenalty(weight=0.3), model, batch)
    expected = 0.3 * slow_trace(model, batch)
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=0)
    pairs = zip(model.named_parameters(), gradient_of(term, model), gradient_of(expected, model), strict=True)
    for (name, _), found, wanted in pairs:
        floor = 1e-12 if name.endswith("key.bias") else 1e-11 * wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=floor, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("margin", [12, 60])
def test_trace_penalty_of_saturated_logits(margin):
    """The gradient stays finite and follows the value where the probabilities are near 0 and 1."""
    model, batch = build()
    with torch.no_grad():
        model.classifier.bias += margin * torch.tensor([1.0, 0.0, -1.0])
    bias = model.classifier.bias
    slope = float(torch.autograd.grad(term_of(TracePenalty(1.0), model, batch), bias)[0][1])
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            bias[1] += step
        values.append(fisher_trace(model, [batch]).value)
        with torch.no_grad():
            bias[1] -= step
    assert values[0] > 0
    assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-6)


def test_trace_penalty_has_the_value_of_fisher_trace_in_float32(model_and_batch):
    model, batch = model_and_batch
    exact = fisher_trace(model, [batch]).value
    assert float(term_of(TracePenalty(1.0), model.float(), batch).detach()) == pytest.approx(exact, rel=1e-5)


def test_trace_penalty_under_bfloat16_autocast(model_and_batch):
    model, batch = model_and_batch
    term = term_of(TracePenalty(1.0), model, batch)
    value, exact = float(term.detach()), flat(gradient_of(term, model))
    penalty = TracePenalty(1.0)
    penalty.start(model.float(), seed=0)
    with penalty.forward_context(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    term, _ = penalty(model, batch, outputs)
    found = flat(gradient_of(term, model)).double()
    assert term.dtype == torch.float32
    assert float(term.detach()) == pytest.approx(value, rel=0.03)
    assert float(found.norm()) == pytest.approx(float(exact.norm()), rel=0.03)
    assert F.cosine_similarity(found, exact, dim=0) > 0.99


def test_expected_fisher_penalty_is_the_trace_penalty():
    """E over all C^B label draws of B‖ḡ‖² is Tr(F_batch); its gradient lacks that of the probabilities."""
    model, batch = build("BERT, two labels", (5, 3, 5))
    trace = term_of(TracePenalty(1.0), model, batch)
    with FisherPenalty().forward_context():
        logits = model(**batch).logits
    log_p = logits.log_softmax(1)
    mean, weighed = 0.0, 0.0
    for labels in itertools.product(range(2), repeat=3):
        probability = log_p[range(3), labels].sum().exp()
        squared = 3 * squared_gradient_norm(model.parameters(), logits, torch.tensor(labels))
        mean = mean + probability.detach() * squared
        weighed = weighed + probability * squared
    torch.testing.assert_close(mean, trace, rtol=1e-11, atol=0)
    whole = flat(gradient_of(trace, model))
    without = flat(gradient_of(mean, model, retain_graph=True))
    torch.testing.assert_close(flat(gradient_of(weighed, model)), whole, rtol=1e-9, atol=1e-12)
    assert (without - whole).norm() > 1e-2 * whole.norm()


@pytest.mark.parametrize("length", [12, 48], ids=["Gram matrices", "formed gradients"])
def test_trace_penalty_of_long_texts(length):
    sizes = {"max_position_embeddings": 48, "hidden_size": 8, "intermediate_size": 8}
    torch.manual_seed(0)
    model = perturbed(transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER | sizes)))
    batch = padded_batch((length, length - 3))
    found, wanted = term_of(TracePenalty(1.0), model, batch), slow_trace(model, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close(flat(gradient_of(found, model)), flat(gradient_of(wanted, model)), rtol=1e-8, atol=1e-9)


def test_frozen_parameters_are_no_part_of_the_trace_penalty(model_and_batch):
    model, batch = model_and_batch
    model.bert.embeddings.requires_grad_(False)
    expected = fisher_trace(model, [batch]).value
    assert float(term_of(TracePenalty(1.0), model, batch).detach()) == pytest.approx(expected, rel=1e-10)


def test_trace_penalty_refuses_what_it_does_not_cover():
    torch.manual_seed(0)
    decoder = ENCODER | {"num_key_value_heads": 1, "head_dim": 8}
    model = transformers.GemmaForSequenceClassification(transformers.GemmaConfig(**decoder))
    with pytest.raises(FlatlingoError, match=r"embed_tokens.*not cover; freeze"):
        term_of(TracePenalty(1.0), model, padded_batch(LENGTHS, token_types=0))


class Tokens(torch.nn.Module):
    """A layer between an embedding and a head that averages over tokens, used as `between` says."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer, self.head = torch.nn.Embedding(40, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)
        self.between, self.config = between, SimpleNamespace(num_labels=3)
        perturbed(self)

    def forward(self, input_ids, attention_mask=None):
        x = self.between(self.layer, self.words(input_ids), input_ids)
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.head(x.mean(1)))


def by_hook(layer, x, ids):
    """What the layer gives is changed after it, as by a hook."""
    handle = layer.register_forward_hook(lambda module, args, output: torch.sin(output) * 2)
    y = layer(x)
    handle.remove()
    return y


TAKEN = {
    "relu_": lambda layer, x, ids: F.relu(layer(x), inplace=True),
    "+=": lambda layer, x, ids: layer(x).add_(x),
    "+= to a view": lambda layer, x, ids: layer(x)[:, 1:].mul_(2),
    "hook": by_hook,
    "several times in long texts": lambda layer, x, ids: layer(layer(x).tanh()) if ids.shape[1] > 5 else layer(x),
    "output not used": lambda layer, x, ids: x + 0 * ids[..., None] if layer(x).ndim < 3 else layer(x).tanh(),
}


@pytest.mark.parametrize("between", TAKEN.values(), ids=TAKEN)
def test_trace_penalty_whatever_is_done_with_a_layer(between):
    model, penalty = Tokens(between), TracePenalty(1.0)
    penalty.start(model, seed=0)
    for length in (4, 7, 4):
        batch = padded_batch((length,) * 3, token_types=0)
        term, wanted = next_term(penalty, model, batch), slow_trace(model, batch)
        torch.testing.assert_close(term, wanted, rtol=1e-10, atol=0)
        found, expected = flat(gradient_of(term, model)), flat(gradient_of(wanted, model))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def only_long(layer, x, ids):
    return layer(x) + F.linear(x, layer.weight) if ids.shape[1] > 5 else layer(x)


NOT_TAKEN = {
    "used directly in long texts": only_long,
    "time first": lambda layer, x, ids: layer(x.transpose(0, 1)).cumsum(0).transpose(0, 1),
    "in another order": lambda layer, x, ids: layer(x.roll(1, 0)).tanh().roll(-1, 0),
    "rows together": lambda layer, x, ids: layer(x) - layer(x).mean(0, keepdim=True),
    "some rows": lambda layer, x, ids: torch.cat([layer(x[:1]), x[1:]]),
}


@pytest.mark.parametrize("between", NOT_TAKEN.values(), ids=NOT_TAKEN)
@pytest.mark.parametrize("rows", [3, 7])
def test_trace_penalty_refuses_layers_whose_rows_are_no_examples(between, rows):
    model, penalty = Tokens(between), TracePenalty(1.0)
    penalty.start(model, seed=0)
    if between is only_long:
        next_term(penalty, model, padded_batch((4,) * rows, token_types=0))
    with pytest.raises(FlatlingoError, match=r"layer.*does not cover; freeze what is named"):
        next_term(penalty, model, padded_batch((7,) * rows, token_types=0, seed=1))


def test_trace_penalty_refuses_what_is_looked_up_once_for_all_and_repeated_by_the_model(model_and_batch):
    model, batch = model_and_batch
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    with pytest.raises(FlatlingoError, match="repeats for each example what .* gives once for all"):
        term_of(TracePenalty(1.0), peft.get_peft_model(model, config), batch)


def test_trace_penalty_leaves_no_hooks_behind(model_and_batch):
    model, _ = model_and_batch
    penalty = TracePenalty(1.0)
    penalty.start(model, seed=0)
    with pytest.raises(RuntimeError, match="mistake"), penalty.forward_context():
        raise RuntimeError("mistake")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


# Finite differences


def test_finite_differences_against_the_double_backward(model_and_batch):
    """In float64, with dropout: the same value, and a gradient whose error falls with the radius."""
    model, batch = model_and_batch
    model.train()
    terms = {}
    for radius in (None, 1e-3, 1e-5, 1e-7):
        torch.manual_seed(7)
        options = {} if radius is None else {"method": "finite-difference", "radius": radius}
        term = term_of(FisherPenalty(0.3, **options), model, batch, seed=3)
        terms[radius] = float(term.detach()), flat(gradient_of(term, model))
    value, exact = terms.pop(None)
    errors = []
    for found, gradient in terms.values():
        assert found == pytest.approx(value, rel=1e-12)
        errors.append(float((gradient - exact).norm() / exact.norm()))
    assert F.cosine_similarity(terms[1e-7][1], exact, dim=0) > 1 - 1e-9
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.1)
    assert errors[2] < 2e-6


def test_finite_differences_in_float32(model_and_batch):
    model, batch = model_and_batch
    exact = flat(gradient_of(term_of(FisherPenalty(1.0), model, batch), model))
    model.float()
    found = flat(gradient_of(term_of(FisherPenalty(1.0, method="finite-difference"), model, batch), model)).double()
    assert F.cosine_similarity(found, exact, dim=0) > 0.9999
    assert (found - exact).norm() < 2e-2 * exact.norm()


def test_double_backward_in_float32(model_and_batch):
    model, batch = model_and_batch
    exact = flat(gradient_of(term_of(FisherPenalty(1.0), model, batch), model))
    found = flat(gradient_of(term_of(FisherPenalty(1.0), model.float(), batch), model)).double()
    assert (found - exact).norm() < 2e-5 * exact.norm()


def test_finite_differences_keep_fused_attention(model_and_batch):
    """No double backward happens: a kernel that has none will do."""
    model, batch = model_and_batch
    penalty = FisherPenalty(1.0, method="finite-difference")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        rows = {key: value[:1, :9] for key, value in batch.items() if key != "attention_mask"}
        term = term_of(penalty, model.float(), rows)
    term.backward()
    assert model.classifier.weight.grad.norm() > 0


def test_finite_differences_leave_parameters_and_generators_alone(model_and_batch):
    model, batch = model_and_batch
    model.train()
    before = [p.detach().clone() for p in model.parameters()]
    penalty = FisherPenalty(1.0, method="finite-difference")
    penalty.start(model, seed=0)
    with penalty.forward_context():
        outputs = model(**batch)
    state = torch.get_rng_state()
    penalty(model, batch, outputs)[0].backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_parameters_are_the_same_after_an_exception_in_the_shifted_pass(model_and_batch):
    model, batch = model_and_batch
    before = dict(model.named_parameters())
    values = [p.detach().clone() for p in before.values()]
    penalty = FisherPenalty(1.0, method="finite-difference")
    penalty.start(model, seed=0)
    with penalty.forward_context():
        outputs = model(**batch)

    def fail(module, args, output):
        raise RuntimeError("out of memory")

    handle = model.bert.pooler.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        penalty(model, batch, outputs)
    handle.remove()
    assert dict(model.named_parameters()) == before  # the very same tensors
    assert all(torch.equal(p, v) for p, v in zip(before.values(), values, strict=True))
    outputs.logits.sum().backward()  # and the clean pass can still be used


@contextmanager
def by_accelerate(model):
    """As accelerate prepares a model for bf16."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one, which an earlier Trainer has made
    Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "precision",
    [lambda model: torch.autocast("cpu", torch.bfloat16), by_accelerate, lambda model: model.bfloat16().eval()],
    ids=["autocast", "accelerate", "weights"],
)
def test_finite_differences_refuse_half_precision(model_and_batch, precision):
    model, batch = model_and_batch
    penalty = FisherPenalty(1.0, method="finite-difference")
    penalty.start(model.float(), seed=0)
    context = precision(model)
    if not isinstance(context, torch.nn.Module):
        with penalty.forward_context(), context:
            outputs = model(**batch)
    else:
        with penalty.forward_context():
            outputs = model(**batch)
    with pytest.raises(FlatlingoError, match="needs float32.*method='exact'"):
        penalty(model, batch, outputs)


def test_finite_differences_refuse_a_pass_that_cannot_be_repeated(model_and_batch):
    model, batch = model_and_batch
    generator = torch.Generator().manual_seed(0)
    model.bert.pooler.register_forward_hook(
        lambda module, args, output: output + torch.randn(output.shape, generator=generator, dtype=output.dtype)
    )
    with pytest.raises(FlatlingoError, match="twice gives different logits"):
        term_of(FisherPenalty(1.0, method="finite-difference"), model, batch)


def test_a_penalty_outside_its_context_says_so(model_and_batch):
    model, batch = model_and_batch
    for penalty in (FisherPenalty(1.0, method="finite-difference"), TracePenalty(1.0)):
        penalty.start(model, seed=0)
        with pytest.raises(FlatlingoError, match=r"inside forward_context"):
            penalty(model, batch, model(**batch))


# All three

KINDS = {
    "exact": lambda **options: FisherPenalty(1.0, **options),
    "finite differences": lambda **options: FisherPenalty(1.0, method="finite-difference", radius=1e-6, **options),
    "trace": lambda **options: TracePenalty(1.0, **options),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_padding_does_not_matter(kind):
    """Rows beside a longer one: the same term and gradient as without the padding."""
    model, batch = build()
    short = {key: value[1:2, :4] for key, value in batch.items()}
    padded = {key: value[1:2] for key, value in batch.items()}
    terms = [term_of(kind(), model, rows, seed=1) for rows in (short, padded)]
    torch.testing.assert_close(*terms, rtol=1e-10, atol=0)
    gradients = [flat(gradient_of(term, model)) for term in terms]
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6 * float(gradients[0].abs().max()))


def test_adapters_by_peft(kind):
    """What is frozen is no part of the term, and the term pulls on what is trained."""
    model, batch = build()
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = perturbed(peft.get_peft_model(model, config))
    term = term_of(kind(), model, batch)
    if isinstance(kind(), TracePenalty):
        assert float(term.detach()) == pytest.approx(fisher_trace(model, [batch]).value, rel=1e-10)
    term.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 + 2  # two matrices for each query and value, and the head
    assert all(p.grad.norm() > 0 for p in trained.values())
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


def test_one_example(kind):
    model, batch = build()
    term = term_of(kind(), model, {key: value[:1] for key, value in batch.items()})
    assert flat(gradient_of(term, model)).norm() > 0


def test_every_third_step_with_three_times_the_weight(kind):
    model, batch = build()
    always, sometimes = kind(), kind(every=3)
    for penalty in (always, sometimes):
        penalty.start(model, seed=5)
    logged = []
    for step in range(6):
        with sometimes.forward_context():
            outputs = model(**batch)
        term, values = sometimes(model, batch, outputs)
        logged.append(float(next(iter(values.values()))))
        if step % 3:
            assert float(term) == 0
            assert not term.requires_grad
        else:
            torch.testing.assert_close(term, 3 * next_term(always, model, batch), rtol=1e-12, atol=0)
    assert [bool(value) for value in logged] == [True, False, False, True, False, False]


def test_a_resumed_penalty_goes_on_with_its_labels_and_steps(kind):
    model, batch = build()
    first, resumed = kind(every=2), kind(every=2)
    term_of(first, model, batch)
    resumed.start(model, seed=99)
    resumed.load_state_dict(first.state_dict())
    for _ in range(3):
        torch.testing.assert_close(next_term(first, model, batch), next_term(resumed, model, batch), rtol=0, atol=0)


def test_a_second_training_begins_with_the_penalty_again(kind):
    model, batch = build()
    penalty = kind(every=2)
    first, second = term_of(penalty, model, batch), term_of(penalty, model, batch)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert float(second.detach()) > 0


@pytest.mark.parametrize("every", [0, -1, 1.5, True], ids=str)
def test_every_must_be_a_number_of_steps(kind, every):
    with pytest.raises(FlatlingoError, match=f"every={every}"):
        kind(every=every)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_are_those_of_multinomial_bit_for_bit(dtype):
    ours, theirs = (torch.Generator().manual_seed(3) for _ in range(2))
    logits = 3 * torch.randn(200, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        labels = torch.multinomial(logits.softmax(-1), 1, generator=theirs).squeeze(-1)
        assert torch.equal(draw_labels(logits, ours), labels)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_what_is_not_finite_and_not_seen_makes_the_penalty_nan(kind, monkeypatch):
    """As on a GPU, which is not asked: the trainer sees it in the loss."""
    for module in (periodic, finite_differences):
        monkeypatch.setattr(module, "is_seen", lambda condition: False)
    penalty, (model, batch) = kind(), build()
    assert math.isfinite(term_of(penalty, model, batch))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[30] = math.nan
    batch["input_ids"][2, 1] = 30
    assert math.isnan(next_term(penalty, model, batch))


def test_logits_that_are_not_finite_are_refused_by_row(kind):
    model, batch = build()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[30] = math.nan
    batch["input_ids"][2, 1] = 30
    with pytest.raises(FlatlingoError, match="logits of example 2 of the batch are not finite"):
        term_of(kind(), model, batch)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_without_a_double_backward(attention):
    model, _ = build()
    model.config._attn_implementation = attention
    for penalty in (FisherPenalty(), TracePenalty()):
        with pytest.raises(FlatlingoError, match=f"{attention}.*eager"):
            penalty.start(model, seed=0)
    FisherPenalty(method="finite-difference").start(model, seed=0)


def test_gradient_checkpointing_has_no_double_backward_and_knows_no_other_weights():
    model = make_model()
    model.gradient_checkpointing_enable()
    for penalty in (FisherPenalty(), TracePenalty(), FisherPenalty(method="finite-difference")):
        with pytest.raises(FlatlingoError, match="gradient_checkpointing_disable"):
            penalty.start(model, seed=0)


def test_accumulated_micro_batches_of_the_trace_are_one_batch():
    """4 micro-batches of 2 have the gradient of 8 rows at once."""
    model, batch = build(lengths=(9, 4, 7, 9, 5, 5, 3, 8))
    penalty = TracePenalty(0.5)
    whole = flat(gradient_of(term_of(penalty, model, batch), model))
    parts = [{key: value[i : i + 2] for key, value in batch.items()} for i in range(0, 8, 2)]
    accumulated = flat(gradient_of(sum(next_term(penalty, model, part) for part in parts) / 4, model))
    torch.testing.assert_close(accumulated, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4])
def test_accumulated_micro_batches_of_the_fisher_penalty_agree_in_expectation(size):
    """Over all label draws the mean over micro-batches of b‖ḡ‖² is Tr(F_batch), for micro-batches of 2 and of 4."""
    model, batch = build("BERT, two labels")
    expectation = 0.0
    for start in range(0, 4, size):
        part = {key: value[start : start + size] for key, value in batch.items()}
        with FisherPenalty().forward_context():
            logits = model(**part).logits
        p = logits.softmax(1).detach()
        for labels in itertools.product(range(2), repeat=size):
            squared = size * squared_gradient_norm(model.parameters(), logits, torch.tensor(labels)).detach()
            expectation += float(p[range(size), labels].prod() * squared) / (4 / size)
    assert expectation == pytest.approx(fisher_trace(model, [batch]).value, rel=1e-10)


SETTINGS = {"seed": 1, "epochs": 1, "learning_rate": 1e-3, "max_length": 32, "max_grad_norm": 0.5}


def test_training_with_each_kind_accumulated_and_clipped(kind):
    model, tokenizer = make_model(dropout=0.1), make_tokenizer()
    log = finetune(
        model, tokenizer, make_rows(16), regularizers=[kind()], batch_size=4, gradient_accumulation_steps=2, **SETTINGS
    )
    name = kind().name
    assert all(entry[f"loss/{name}"] > 0 for entry in log if "loss" in entry)
    assert all(p.isfinite().all() for p in model.parameters())


def test_all_kinds_pull_in_nearly_the_same_direction_in_training():
    """One plain SGD step's gradient through the collator and dropout, both ways of the Fisher penalty."""
    tokenizer = make_tokenizer()
    batch = PairCollator(tokenizer)(EncodedRows(make_rows(6), tokenizer, max_length=32))
    model = make_model(dropout=0.1, dtype=torch.float64).train()
    gradients = []
    for options in ({}, {"method": "finite-difference", "radius": 1e-6}):
        torch.manual_seed(3)
        penalty = FisherPenalty(1.0, **options)
        penalty.start(model, seed=2)
        with penalty.forward_context():
            outputs = model(**batch)
        term, _ = penalty(model, batch, outputs)
        gradients.append(flat(gradient_of(outputs.loss + term, model)))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("C", [2, 3, 5])
def test_softmax_factor_can_be_differentiated_where_it_saturates(C):
    logits = torch.tensor([[900.0, -900.0, 0.0, 5.0, -3.0][:C], [0.1, 0.2, 0.3, 0.4, 0.5][:C]]).double()
    logits.requires_grad_()
    weights, directions = softmax_factor(logits)
    (gradient,) = torch.autograd.grad((weights[:, :, None] * directions.square()).sum(), logits)
    assert gradient.isfinite().all()
    assert gradient[1].norm() > 0


# The trace target


@pytest.mark.parametrize(("share", "sign"), [(0.5, 1), (2.0, -1)], ids=["from above", "from below"])
def test_trace_target_pulls_the_logarithm_of_the_trace_towards_it(share, sign):
    model, batch = build()
    trace = slow_trace(model, batch)
    term = term_of(TraceTarget(share * float(trace.detach()), weight=0.3), model, batch)
    torch.testing.assert_close(term, torch.tensor(0.3 * math.log(2), dtype=torch.float64), rtol=1e-10, atol=0)
    expected = sign * 0.3 * flat(gradient_of(trace.log(), model))
    found = flat(gradient_of(term, model))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


def test_trace_target_raises_and_lowers_the_trace_of_what_is_trained():
    tokenizer, rows = make_tokenizer(), make_rows(24)
    traces = []
    for terms in ([], [TraceTarget(3000.0, weight=1.0)], [TraceTarget(1.0, weight=1.0)]):
        model = make_model()
        settings = {"seed": 1, "epochs": 6, "batch_size": 8, "learning_rate": 3e-3, "max_length": 32}
        finetune(model, tokenizer, rows, regularizers=terms, **settings)
        traces.append(trace_of_rows(model, tokenizer, rows).value)
    plain, raised, lowered = traces
    assert lowered < plain / 2
    assert raised > 2 * plain


@pytest.mark.parametrize("sam", [None, SAM(0.05)], ids=["plain", "SAM"])
def test_before_a_trace_target_acts_training_is_plain(sam):
    """Six steps, the last three with the term: runs with several targets are the same up to there."""

    def trained(*terms):
        model = make_model(dropout=0.1)
        settings = {"seed": 1, "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "max_length": 32, "sam": sam}
        log = finetune(model, make_tokenizer(), make_rows(24), regularizers=terms, **settings)
        return flat(model.parameters()).detach(), [entry for entry in log if "loss" in entry]

    plain, _ = trained()
    late, log = trained(TraceTarget(1.0, after=6))
    assert torch.equal(late, plain)
    assert not [entry for entry in log if "trace_target/trace" in entry], "0 would be taken for a trace"
    logs = [trained(TraceTarget(target, after=3))[1] for target in (1.0, 1e4)]
    assert [entry.get("trace_target/trace", 0) > 0 for entry in logs[0]] == [False] * 3 + [True] * 3
    assert [first["loss"] == second["loss"] for first, second in zip(*logs, strict=True)] == [True] * 3 + [False] * 3


def test_a_negative_number_of_steps_before_a_trace_target_is_refused():
    with pytest.raises(FlatlingoError, match="after=-1"):
        TraceTarget(1.0, after=-1)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_trace_target_needs_a_target_above_zero(target):
    with pytest.raises(FlatlingoError, match="target of Tr"):
        TraceTarget(target)
