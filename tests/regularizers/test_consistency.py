"""The named methods, each against a formula written from its paper."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import make_model, make_rows, make_tokenizer
from torch import nn

import flatlingo.regularizers
from flatlingo.encoding import EncodedRows, PairCollator
from flatlingo.errors import FlatlingoError
from flatlingo.regularizers import (
    LNSR,
    R3F,
    R4F,
    SAM,
    SMART,
    VAT,
    CodeSwitching,
    Consistency,
    EmbeddingNoise,
    GradientNormPenalty,
    Mixout,
    Perturbation,
    RDrop,
    SubwordConsistency,
    WeightNoise,
    XTune,
)
from flatlingo.regularizers.consistency import log_odds_gap
from flatlingo.study.families import FAMILIES

TOKENIZER = make_tokenizer()
LEXICON = {"cat": "Katze", "dog": "Hund"}
SWITCHING = CodeSwitching(TOKENIZER, LEXICON)
CLEAN = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-4.0, 5.0, 1.0], [9.0, -9.0, 0.0]], dtype=torch.float64)
VIEW = torch.tensor([[1.0, 0.0, 0.5], [0.9, -0.2, 0.3], [3.0, 2.0, 1.0], [8.0, -9.0, 4.0]], dtype=torch.float64)
LABELS = [0, 2, 1, 1]

# totals per row from CE, CE', KL(p‖q) and KL(q‖p), with λ = 0.7, B = 4 rows and C = 3 classes
TOTALS = {
    "MVR": (lambda: SubwordConsistency(TOKENIZER, 0.7), lambda a, b, kl, lk: a / 2 + b / 2 + 0.7 * kl),
    "R3F": (lambda: R3F(0.7), lambda a, b, kl, lk: a + 0.7 * (kl + lk)),
    "R4F": (lambda: R4F(0.7), lambda a, b, kl, lk: a + 0.7 * (kl + lk)),
    "R-Drop": (lambda: RDrop(0.7), lambda a, b, kl, lk: (a + b) / 2 + 0.7 * (kl + lk) / 2),
    "R-Drop code": (lambda: RDrop(0.7, "code"), lambda a, b, kl, lk: a + b + 0.7 * 4 * (kl + lk) / 2),
    "SMART": (lambda: SMART(0.7), lambda a, b, kl, lk: a + 0.7 * (kl + lk)),
    "SMART code": (lambda: SMART(0.7, "code"), lambda a, b, kl, lk: a + 0.7 * (kl + lk)),
    "VAT": (lambda: VAT(0.7), lambda a, b, kl, lk: a + 0.7 * kl),
    "xTune": (lambda: XTune(SWITCHING, 0.7, "text"), lambda a, b, kl, lk: a + 0.7 * (kl + lk)),
    "xTune code": (lambda: XTune(SWITCHING, 0.7, "code"), lambda a, b, kl, lk: a + 0.7 * (kl + lk) / 3),
    "weight noise": (lambda: WeightNoise(0.7), lambda a, b, kl, lk: a + 0.7 * kl),
}


class Fixed(Perturbation):
    """A perturbed pass that gives these logits."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def __call__(self, model, inputs, view, outputs):
        return SimpleNamespace(logits=self.logits)


@pytest.fixture
def model():
    return make_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def batch():
    return PairCollator(TOKENIZER)(EncodedRows(make_rows(3), TOKENIZER, max_length=32))


def total_on(method: Consistency, clean: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Task loss and term for given logits of both passes."""
    method.perturbation = Fixed(view)
    labels = torch.tensor(LABELS)
    term, _ = method(None, {"labels": labels}, SimpleNamespace(logits=clean))
    return F.cross_entropy(clean, labels, label_smoothing=method.label_smoothing) + term


def log_softmax(logits: list[float]) -> list[float]:
    return [a - math.log(sum(math.exp(b) for b in logits)) for a in logits]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("make", "formula"), TOTALS.values(), ids=TOTALS)
def test_task_loss_and_term_make_the_loss_of_the_paper(make, formula, smoothing):
    expected = 0.0
    for clean, view, label in zip(CLEAN.tolist(), VIEW.tolist(), LABELS, strict=True):
        p, q = log_softmax(clean), log_softmax(view)
        kl, reverse = (sum(math.exp(a) * (a - b) for a, b in zip(*sides, strict=True)) for sides in ((p, q), (q, p)))
        ce, view_ce = (-(1 - smoothing) * side[label] - smoothing * sum(side) / 3 for side in (p, q))
        expected += formula(ce, view_ce, kl, reverse) / 4
    method = make()
    method.label_smoothing = smoothing
    assert float(total_on(method, CLEAN, VIEW)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("make", "formula"), TOTALS.values(), ids=TOTALS)
def test_equal_predictions_leave_the_task_loss(make, formula):
    cross_entropy = float(F.cross_entropy(CLEAN, torch.tensor(LABELS)))
    assert float(total_on(make(), CLEAN, CLEAN)) == pytest.approx(
        formula(cross_entropy, cross_entropy, 0, 0), rel=1e-12
    )


@pytest.mark.parametrize("name", ["MVR", "R3F", "R-Drop", "R-Drop code", "SMART", "weight noise"])
def test_gradient_flows_through_both_passes(name):
    method = TOTALS[name][0]()
    assert torch.autograd.gradcheck(
        lambda clean, view: total_on(method, clean, view),
        (CLEAN.clone().requires_grad_(), VIEW.clone().requires_grad_()),
    )


def test_the_steps_of_smart_s_code_increase_the_gap_of_the_log_odds(model, batch):
    """Value and gradient from the definition; the step is along it, from the noise drawn first."""
    gap, view = 0.0, VIEW.clone().requires_grad_()
    value = log_odds_gap(CLEAN, view)
    (gradient,) = torch.autograd.grad(value, view)
    for clean, noisy, found in zip(CLEAN.tolist(), VIEW.tolist(), gradient.tolist(), strict=True):
        p, q = ([math.exp(a) for a in log_softmax(side)] for side in (clean, noisy))
        p_odds, q_odds = ([-math.log(1 / (a + 1e-6) - 1 + 1e-6) for a in side] for side in (p, q))
        weights = [2 * (b - a) for a, b in zip(p_odds, q_odds, strict=True)]
        mean = sum(b * w for b, w in zip(q, weights, strict=True))
        gap += mean
        assert found == pytest.approx([b * (w - mean) for b, w in zip(q, weights, strict=True)], rel=1e-8, abs=1e-12)
    assert float(value.detach()) == pytest.approx(gap, rel=1e-10)

    noise = SMART(formula="code").perturbation
    noise.start(model, seed=0)
    outputs, embedding = model(**batch), model.get_input_embeddings()
    first = noise.sigma * noise.normal(embedding(batch["input_ids"]))
    noise.start(model, seed=0)
    found = noise.delta(model, batch, outputs)
    moved = first.clone().requires_grad_()
    inputs = {name: values for name, values in batch.items() if name not in ("input_ids", "labels")}
    logits = model(inputs_embeds=embedding(batch["input_ids"]) + moved, **inputs).logits
    (slope,) = torch.autograd.grad(log_odds_gap(outputs.logits.detach(), logits), moved)
    moved = first + 1e-3 * slope
    torch.testing.assert_close(found, moved / (moved.abs().amax(-1, keepdim=True) + 1e-6), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "both"), [("VAT", False), ("SMART code", True), ("xTune", True)])
def test_stopped_targets_learn_nothing(name, both):
    clean, view = CLEAN.clone().requires_grad_(), VIEW.clone().requires_grad_()
    total_on(TOTALS[name][0](), clean, view).backward()
    p, q = CLEAN.softmax(-1), VIEW.softmax(-1)
    task = p - F.one_hot(torch.tensor(LABELS), 3)
    torch.testing.assert_close(view.grad, 0.7 * (q - p) / 4, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(clean.grad, (task + 0.7 * (p - q) * both) / 4, rtol=1e-10, atol=1e-15)


def test_lnsr_is_the_weighted_distance_of_the_layers_above(model, batch):
    method = LNSR(weight=3.0, layer=1, rho=0.2)
    method.start(model, seed=1)
    state = method.state_dict()
    with method.forward_context():
        outputs = model(**batch)
    term, logged = method(model, batch, outputs)
    inputs = {column: values for column, values in batch.items() if column != "labels"}
    method.load_state_dict(state)
    noisy = method.perturbation(model, inputs, {}, outputs)
    slow = 0.0
    for row, mask in enumerate(batch["attention_mask"].bool()):
        difference = outputs.hidden_states[2][row, mask] - noisy.hidden_states[2][row, mask]
        slow += float(difference.square().sum(-1).mean().detach()) / 3
    assert float(term.detach()) == pytest.approx(3 * slow, rel=1e-10)
    assert float(logged["squared_distance"].detach()) == pytest.approx(slow, rel=1e-10)


def test_r4f_normalises_the_head_in_training_and_for_good_afterwards(model, batch):
    method = R4F()
    method.start(model, seed=0)
    weight, bias = model.classifier.weight.detach().clone(), model.classifier.bias.detach().clone()
    sigma = float(torch.linalg.svdvals(weight)[0])
    features = model.bert(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).pooler_output
    expected = features @ weight.T / sigma + bias
    with method.training_context(model):
        logits = model(**batch).logits
        assert torch.equal(model.classifier.weight, weight)
        (gradient,) = torch.autograd.grad(logits.square().sum(), model.classifier.weight)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    assert abs(float((gradient * weight).sum())) < 1e-10 * float(gradient.norm())  # its scale has no effect
    torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-10, atol=1e-12)
    assert float(torch.linalg.svdvals(model.classifier.weight.detach())[0]) == pytest.approx(1, rel=1e-12)


def test_gradient_norm_penalty_is_the_squared_norm_of_the_batch_gradient(model, batch):
    method = GradientNormPenalty(weight=0.3)
    method.label_smoothing = 0.1
    method.start(model, seed=0)
    with method.forward_context():
        outputs = model(**batch)
    term, logged = method(model, batch, outputs)
    loss = F.cross_entropy(model(**batch).logits, batch["labels"], label_smoothing=0.1)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    slow = sum(float(g.square().sum()) for g in gradients)
    assert float(term.detach()) == pytest.approx(0.3 * slow, rel=1e-10)
    assert float(logged["squared_norm"].detach()) == pytest.approx(slow, rel=1e-10)


def test_gradient_norm_penalty_lowers_the_gradient_norm(model, batch):
    method = GradientNormPenalty(weight=1.0)
    norms = []
    for _ in range(10):
        with method.forward_context():
            term, _ = method(model, batch, model(**batch))
        norms.append(float(term.detach()))
        term.backward()
        torch.optim.SGD(model.parameters(), lr=1e-4).step()
        model.zero_grad()
    assert norms == sorted(norms, reverse=True)


def test_mixout_mixes_encoder_weights_and_keeps_their_mean(model, batch):
    method = Mixout(p=0.3)
    method.start(model, seed=4)
    layer = model.bert.encoder.layer[0].output.dense
    old, seen = layer.weight.detach().clone(), []
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1)
    now = layer.weight.detach().clone()
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(module.weight.detach().clone()))
    plain = model.eval()(**batch).logits
    with method.training_context(model):
        torch.testing.assert_close(model.eval()(**batch).logits, plain, rtol=0, atol=0)
        model.train()
        seen.clear()
        for _ in range(200):
            model(**batch)
    handle.remove()
    mixed = torch.stack(seen)
    dropped = mixed == old
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(mixed[~dropped], (old + (now - old) / 0.7).expand_as(mixed)[~dropped], rtol=1e-9, atol=0)
    assert float(mixed.mean()) == pytest.approx(float(now.mean()), abs=1e-3)
    assert torch.equal(layer.weight, now)
    torch.testing.assert_close(model.eval()(**batch).logits, plain, rtol=0, atol=0)


def test_mixout_gradient_reaches_the_kept_entries_only(model, batch):
    method = Mixout(p=0.5)
    method.start(model, seed=4)
    layer, seen = model.bert.encoder.layer[0].output.dense, []
    with torch.no_grad():
        layer.weight.add_(0.1)
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(module.weight.detach().clone()))
    with method.training_context(model.train()):
        model(**batch).loss.backward()
    handle.remove()
    assert torch.equal(layer.weight.grad == 0, seen[0] == method._anchors[layer])


@pytest.mark.parametrize("adaptive", [False, True], ids=["sam", "asam"])
def test_sam_moves_by_its_formula_and_back_bit_for_bit(model, batch, adaptive):
    model(**batch).loss.backward()
    parameters = list(model.parameters())
    before = [w.detach().clone() for w in parameters]
    g = torch.cat([w.grad.flatten() for w in parameters])
    w = torch.cat([w.flatten() for w in before])
    expected = 0.05 * (w**2 * g / (w.abs() * g).norm() if adaptive else g / g.norm())
    with SAM(0.05, adaptive).ascended(parameters):
        moved = torch.cat([(now - then).flatten() for now, then in zip(parameters, before, strict=True)])
    torch.testing.assert_close(moved.detach(), expected, rtol=1e-8, atol=1e-15)
    assert all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))


def test_sam_stays_where_the_gradient_vanishes(model):
    for weights in model.parameters():
        weights.grad = torch.zeros_like(weights)
    before = copy.deepcopy(model.state_dict())
    with SAM().ascended(model.parameters()):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "row", [row for row in FAMILIES.values() if row.changes != "nothing"], ids=lambda row: row.name
)
def test_the_line_of_every_family_runs(row):
    names = vars(flatlingo.regularizers) | {"tokenizer": TOKENIZER, "lexicon": LEXICON, "rows": []}
    names |= {"finetune": lambda **_: None, "load_model": lambda **_: None}
    eval(row.code.replace("…, ", ""), names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: R3F(-1), "weight of r3f"),
        (lambda: RDrop(float("nan")), "weight of r_drop"),
        (lambda: SMART(float("inf")), "weight of smart"),
        (lambda: VAT(-0.1), "weight of vat"),
        (lambda: LNSR(-1), "weight of lnsr"),
        (lambda: XTune(SWITCHING, -1), "weight of xtune"),
        (lambda: WeightNoise(-1), "weight of weight_noise"),
        (lambda: GradientNormPenalty(-1), "weight of gradient_norm"),
        (lambda: Consistency(EmbeddingNoise(), weight=-1, name="mine"), "weight of mine"),
        (lambda: Consistency(EmbeddingNoise(), reduction="median"), "median"),
        (lambda: RDrop(formula="blog"), "'blog' of r_drop"),
        (lambda: SMART(formula="blog"), "'blog' of smart"),
        (lambda: XTune(SWITCHING, formula="blog"), "'blog' of xtune"),
        (lambda: Mixout(1.0), "mixout probability"),
        (lambda: Mixout(-0.1), "weight of mixout"),
        (lambda: SAM(0), "rho"),
        (lambda: SAM(float("nan")), "rho"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(FlatlingoError, match=message):
        make()


class NoHead(nn.Module):
    config = SimpleNamespace(num_labels=3)

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(5, 4)

    def get_input_embeddings(self):
        return self.embeddings


@pytest.mark.parametrize(
    ("method", "model", "message"),
    [
        (R3F(), make_model(labels=1), "r3f compares distributions"),
        (RDrop(), make_model(dropout=0.1, problem_type="multi_label_classification"), "r_drop compares distributions"),
        (RDrop(), make_model(), "no dropout"),
        (LNSR(layer=2), make_model(), "layer 2"),
        (R4F(), NoHead(), "linear layer"),
        (Mixout(), NoHead(), "mixout"),
    ],
    ids=["regression", "multi-label", "no dropout", "no layer above", "no head", "no encoder"],
)
def test_models_that_cannot_take_a_method_are_refused_at_the_start(method, model, message):
    with pytest.raises(FlatlingoError, match=message):
        method.start(model, seed=0)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_gradient_norm_refuses_attention_without_a_double_backward(model, attention):
    model.config._attn_implementation = attention
    with pytest.raises(FlatlingoError, match=f"{attention}.*eager"):
        GradientNormPenalty().start(model, seed=0)
