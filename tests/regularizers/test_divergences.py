import math

import pytest
import torch

from flatlingo.regularizers import divergences

P = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-4.0, 5.0, 1.0], [9.0, -9.0, 0.0]], dtype=torch.float64)
Q = torch.tensor([[1.0, 0.0, 0.5], [0.9, -0.2, 0.3], [3.0, 2.0, 1.0], [8.0, -9.0, 4.0]], dtype=torch.float64)


def softmax(logits: list[float]) -> list[float]:
    return [math.exp(a) / sum(math.exp(b) for b in logits) for a in logits]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def jensen_shannon(p: list[float], q: list[float]) -> float:
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


# one row at a time, from the definitions
SLOW = {
    divergences.kl: kl,
    divergences.reverse_kl: lambda p, q: kl(q, p),
    divergences.symmetric_kl: lambda p, q: kl(p, q) + kl(q, p),
    divergences.mean_symmetric_kl: lambda p, q: (kl(p, q) + kl(q, p)) / 2,
    divergences.stopped_kl: kl,
    divergences.stopped_symmetric_kl: lambda p, q: kl(p, q) + kl(q, p),
    divergences.jensen_shannon: jensen_shannon,
}
ALL = [*SLOW, divergences.squared_distance]


def named(functions):
    return pytest.mark.parametrize("divergence", functions, ids=lambda function: function.__name__)


@named(SLOW)
def test_mean_over_rows_of_the_definition(divergence):
    rows = [SLOW[divergence](softmax(p), softmax(q)) for p, q in zip(P.tolist(), Q.tolist(), strict=True)]
    assert float(divergence(P, Q)) == pytest.approx(sum(rows) / len(rows), rel=1e-10)


def test_squared_distance_is_the_mean_over_rows():
    slow = sum((a - b) ** 2 for p, q in zip(P.tolist(), Q.tolist(), strict=True) for a, b in zip(p, q, strict=True))
    assert float(divergences.squared_distance(P, Q)) == pytest.approx(slow / 4, rel=1e-10)


@named(ALL)
def test_zero_on_equal_predictions_only(divergence):
    assert float(divergence(P, P)) == pytest.approx(0, abs=1e-14)
    assert divergence(P, Q) > 0.1


@named(ALL)
def test_halves_of_a_batch_average_to_the_batch(divergence):
    halves = (divergence(P[:2], Q[:2]) + divergence(P[2:], Q[2:])) / 2
    assert float(halves) == pytest.approx(float(divergence(P, Q)), rel=1e-12)


@named([function for function in ALL if "stopped" not in function.__name__])
def test_gradient_flows_through_both_sides(divergence):
    assert torch.autograd.gradcheck(divergence, (P.clone().requires_grad_(), Q.clone().requires_grad_()))


@pytest.mark.parametrize(("divergence", "clean_learns"), [("stopped_kl", False), ("stopped_symmetric_kl", True)])
def test_stopped_targets_leave_the_gradient_of_the_other_side(divergence, clean_learns):
    # ∂ KL([p] ‖ q) / ∂ logits of q = (q - p)/B
    clean, view = P.clone().requires_grad_(), Q.clone().requires_grad_()
    getattr(divergences, divergence)(clean, view).backward()
    difference = (Q.softmax(-1) - P.softmax(-1)) / len(P)
    torch.testing.assert_close(view.grad, difference, rtol=1e-10, atol=1e-15)
    if clean_learns:
        torch.testing.assert_close(clean.grad, -difference, rtol=1e-10, atol=1e-15)
    else:
        assert clean.grad is None


def test_jensen_shannon_is_bounded_and_symmetric():
    far = torch.tensor([[500.0, -500.0]], dtype=torch.float64)
    assert float(divergences.jensen_shannon(far, -far)) == pytest.approx(math.log(2), rel=1e-12)
    assert float(divergences.jensen_shannon(P, Q)) == pytest.approx(float(divergences.jensen_shannon(Q, P)), rel=1e-12)
