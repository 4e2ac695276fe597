import itertools
import math
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny import make_model, make_rows, make_tokenizer

from flatlingo.encoding import EncodedRows, PairCollator
from flatlingo.errors import FlatlingoError
from flatlingo.regularizers import L2, L2SP, FisherPenalty, Regularizer, SubwordConsistency, TracePenalty
from flatlingo.regularizers.fisher_penalty import squared_gradient_norm

CLEAN = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-4.0, 5.0, 1.0], [9.0, -9.0, 0.0]], dtype=torch.float64)
VIEW = torch.tensor([[1.0, 0.0, 0.5], [0.9, -0.2, 0.3], [3.0, 2.0, 1.0], [8.0, -9.0, 4.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 1])


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    return make_model(dtype=torch.float64)


@pytest.fixture
def batch(tokenizer):
    return PairCollator(tokenizer)(EncodedRows(make_rows(3), tokenizer, max_length=32))


def term_on(regularizer: SubwordConsistency, clean: torch.Tensor, view: torch.Tensor):
    """The term for given logits of the clean pass and of the view."""
    return regularizer(lambda: SimpleNamespace(logits=view), {"labels": LABELS}, SimpleNamespace(logits=clean))


def softmax(logits: list[float]) -> list[float]:
    return [math.exp(a) / sum(math.exp(b) for b in logits) for a in logits]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.2, 0.6, 5.0])
def test_task_loss_and_consistency_make_the_loss_of_mvr(tokenizer, weight, temperature):
    # Wang et al. 2021 as coded: ½CE(x̂) + ½CE(x') + λ KL(p_τ(x̂) ‖ p(x')), one row and class at a time
    expected = 0.0
    for clean, view, label in zip(CLEAN.tolist(), VIEW.tolist(), LABELS.tolist(), strict=True):
        p, q = softmax(clean), softmax(view)
        p_tempered = softmax([a / temperature for a in clean])
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p_tempered, q, strict=True))
        expected += (-0.5 * math.log(p[label]) - 0.5 * math.log(q[label]) + weight * kl) / len(LABELS)
    term, _ = term_on(SubwordConsistency(tokenizer, weight, temperature=temperature), CLEAN, VIEW)
    assert float(F.cross_entropy(CLEAN, LABELS) + term) == pytest.approx(expected, rel=1e-10)


def test_consistency_gradient_flows_through_both_views(tokenizer):
    regularizer = SubwordConsistency(tokenizer)
    clean, view = CLEAN.clone().requires_grad_(), VIEW.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: term_on(regularizer, a, b)[0], (clean, view))


def test_identical_views_are_consistent(tokenizer):
    term, logged = term_on(SubwordConsistency(tokenizer), CLEAN, CLEAN)
    assert float(term) == pytest.approx(0, abs=1e-15)
    assert float(logged["kl"]) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("mode", "redrawn"), [("faithful", False), ("clean", True)])
def test_views_are_drawn_once_in_faithful_and_every_epoch_in_clean_mode(tokenizer, mode, redrawn):
    regularizer = SubwordConsistency(tokenizer, p=0.5, mode=mode)
    views = [
        [regularizer.features(row, seed=1, epoch=epoch, max_length=64) for row in make_rows(10)] for epoch in (0, 1, 1)
    ]
    assert (views[0] != views[1]) == redrawn
    assert views[1] == views[2]


@pytest.mark.parametrize("other", [{"seed": 2}, {"row_id": 99}], ids=str)
def test_views_depend_on_seed_and_row(tokenizer, other):
    regularizer, row = SubwordConsistency(tokenizer, p=0.5), make_rows(1)[0]
    arguments = {"epoch": 0, "max_length": 64}
    view = regularizer.features(row, seed=1, **arguments)
    row_id, seed = other.get("row_id", 0), other.get("seed", 1)
    assert regularizer.features(row | {"row_id": row_id}, seed=seed, **arguments) != view


def per_example_norms(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """p(c|x_i) and ‖∇ log p(c|x_i)‖² for every row and class, one autograd call each."""
    inputs = {column: values for column, values in batch.items() if column != "labels"}
    log_p = model(**inputs).logits.log_softmax(-1)
    norms = torch.zeros_like(log_p)
    for i, c in itertools.product(*map(range, log_p.shape)):
        gradients = torch.autograd.grad(log_p[i, c], list(model.parameters()), retain_graph=True, allow_unused=True)
        norms[i, c] = sum(g.square().sum() for g in gradients if g is not None)
    return log_p.exp().detach(), norms


@pytest.mark.parametrize("size", [1, 3])
def test_expected_fisher_penalty_is_the_trace_over_the_batch_size(model, batch, size):
    batch = {column: values[:size] for column, values in batch.items()}
    with FisherPenalty().forward_context():
        logits = model(**batch).logits
    p, norms = per_example_norms(model, batch)
    expectation = 0.0
    for labels in itertools.product(range(p.shape[1]), repeat=size):
        probability = math.prod(float(p[i, label]) for i, label in enumerate(labels))
        squared = squared_gradient_norm(model.parameters(), logits, torch.tensor(labels))
        expectation += probability * float(squared.detach())
    assert expectation == pytest.approx(float((p * norms).sum(1).mean()) / size, rel=1e-10)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fisher_penalty_gradient_agrees_with_finite_differences(batch, attention):
    model = make_model(dtype=torch.float64, attn_implementation=attention)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in parameters]
    labels = torch.tensor([0, 1, 2])

    def penalty() -> torch.Tensor:
        with FisherPenalty().forward_context():
            return squared_gradient_norm(model.parameters(), model(**batch).logits, labels)

    def penalty_at(step: float) -> float:
        with torch.no_grad():
            for weights, d in zip(parameters, direction, strict=True):
                weights.add_(step * d)
        value = float(penalty().detach())
        with torch.no_grad():
            for weights, d in zip(parameters, direction, strict=True):
                weights.sub_(step * d)
        return value

    gradient = torch.autograd.grad(penalty(), parameters, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True) if g is not None)
    h = 1e-5
    numeric = (8 * (penalty_at(h) - penalty_at(-h)) - (penalty_at(2 * h) - penalty_at(-2 * h))) / (12 * h)
    assert slope == pytest.approx(numeric, rel=1e-6)


def draw(model, batch, seed: int, **settings) -> float:
    """One Fisher penalty."""
    penalty = FisherPenalty(**settings)
    penalty.start(model, seed=seed)
    return float(penalty(model, batch, model(**batch))[0].detach())


def test_batch_scaling_is_paper_scaling_times_the_batch_size(model, batch):
    with FisherPenalty().forward_context():
        paper, scaled = (draw(model, batch, 1, weight=0.3, scaling=scaling) for scaling in ("paper", "batch"))
    assert scaled == pytest.approx(3 * paper, rel=1e-12)


def test_fisher_penalty_draws_labels_from_its_own_generator(model, batch):
    state = torch.get_rng_state()
    first, again, other = (draw(model, batch, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("anchored", [False, True], ids=["l2", "l2_sp"])
def test_l2_value_and_gradient(model, anchored):
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)  # frozen weights are left out
    regularizer = (L2SP if anchored else L2)(weight=0.3)
    regularizer.start(model, seed=0)
    starts = [(weights.detach().clone() if anchored else 0) for weights in model.parameters()]
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5).add_(0.01)
    term, logged = regularizer(model, {}, None)
    term.backward()
    term = term.detach()
    pairs = [(w, w.detach() - s) for w, s in zip(model.parameters(), starts, strict=True) if w.requires_grad]
    assert float(term) == pytest.approx(0.15 * sum(float(moved.square().sum()) for _, moved in pairs), rel=1e-12)
    assert float(logged["squared_distance"].detach()) == pytest.approx(float(term) / 0.15, rel=1e-12)
    for weights, moved in pairs:
        torch.testing.assert_close(weights.grad, 0.3 * moved, rtol=1e-12, atol=0)
    assert model.bert.embeddings.word_embeddings.weight.grad is None


def test_l2_sp_starts_at_zero(model):
    regularizer = L2SP(weight=1.0)
    regularizer.start(model, seed=0)
    assert regularizer(model, {}, None)[0].item() == 0


@pytest.mark.parametrize("regularizer", [L2SP(1.0), FisherPenalty()], ids=lambda regularizer: regularizer.name)
def test_regularizers_that_need_a_start_say_so(model, batch, regularizer):
    with pytest.raises(FlatlingoError, match="start"):
        regularizer(model, batch, model(**batch))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [SubwordConsistency, FisherPenalty, TracePenalty, L2, L2SP])
def test_weights_must_be_finite_and_not_negative(tokenizer, kind, weight):
    arguments = (tokenizer,) if kind is SubwordConsistency else ()
    with pytest.raises(FlatlingoError, match=f"weight of {kind.name}"):
        kind(*arguments, weight=weight)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(tokenizer, temperature):
    with pytest.raises(FlatlingoError, match="temperature"):
        SubwordConsistency(tokenizer, temperature=temperature)


def test_unknown_scaling_is_refused():
    with pytest.raises(FlatlingoError, match="scaling"):
        FisherPenalty(scaling="sum")


def test_columns_are_kept_apart_by_name(tokenizer):
    mild, strong = SubwordConsistency(tokenizer, p=0.0), SubwordConsistency(tokenizer, p=1.0, mode="clean")
    strong.name = "strong"
    rows = EncodedRows(make_rows(4), tokenizer, max_length=32, regularizers=[mild, strong, Regularizer(1.0)])
    batch = PairCollator(tokenizer)([rows[i] for i in random.Random(0).sample(range(4), 4)])
    assert torch.equal(mild.columns(batch)["input_ids"], batch["input_ids"])
    assert strong.columns(batch)["input_ids"].shape[1] > batch["input_ids"].shape[1]
