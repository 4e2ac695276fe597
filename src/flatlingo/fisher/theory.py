"""KL divergence, its quadratic form and their mean over noise: the objects of equation (1) of the paper.

    KL(p_θ ‖ p_{θ+ε}) = ½ εᵀFε + O(‖ε‖³),        E_ε εᵀFε = Tr(F · Cov ε),

which is C · Tr(F) for independent noise of variance C (Stickland & Murray 2021, equation 1; the ½ stays outside).

Here a model is a function `logits(theta)` from one flat float64 vector of parameters (P,) to the logits (N, K) of a
fixed set of N examples; F is the mean over these examples. `functional` makes one of any module.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from flatlingo.fisher.batches import logits_of

Logits = Callable[[Tensor], Tensor]


def functional(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Logits, Tensor]:
    """A model on one batch as a function of its flat parameters, in float64.

    The model is copied. Attention runs unfused, so forward- and reverse-mode derivatives of any order exist.

    Args:
        model: a module in eval mode; `model(**batch)` gives logits or an output that has `.logits`.
        batch: the examples, on any device; "labels" are ignored, floating-point inputs cast to float64.

    Returns:
        `logits(theta)` and the theta (P,) of the model, on its device, in the order of `model.named_parameters()`.
    """
    model = copy.deepcopy(model).double().requires_grad_(False)
    names, parameters = zip(*model.named_parameters(), strict=True)
    shapes = [parameter.shape for parameter in parameters]
    inputs = {k: v.to(parameters[0].device) for k, v in batch.items() if k not in ("labels", "label")}
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}

    def logits(theta: Tensor) -> Tensor:
        pieces = theta.split([math.prod(shape) for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            return logits_of(lambda **batch: functional_call(model, values, (), batch), inputs)

    return logits, parameters_to_vector(parameters)


def softmax_regression(inputs: Tensor, classes: int, *, seed: int) -> tuple[Logits, Tensor]:
    """Logits W x + b of inputs (N, d), and a random theta = (W, b), K·(d + 1) standard normal numbers, beside them.

    The numbers are drawn on the CPU, so they are the same on every device.

    Example:
        >>> logits, theta = softmax_regression(torch.ones(5, 2), 3, seed=0)
        >>> logits(theta).shape, theta.shape
        (torch.Size([5, 3]), torch.Size([9]))
    """
    inputs = torch.cat([inputs.double(), inputs.new_ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    theta = torch.randn(classes * inputs.shape[1], generator=_generator(seed), dtype=torch.float64)
    theta = theta.to(inputs.device)
    return lambda theta: inputs @ theta.view(classes, -1).T, theta


def mlp(inputs: Tensor, hidden: int, classes: int, *, seed: int) -> tuple[Logits, Tensor]:
    """Logits of a network with one hidden layer of tanh units, and a random theta; inputs (N, d)."""
    generator = _generator(seed)
    network = nn.Sequential(nn.Linear(inputs.shape[1], hidden), nn.Tanh(), nn.Linear(hidden, classes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    return functional(network.to(inputs.device), {"input": inputs})


def kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    r"""Mean over examples of KL(p ‖ q) between two softmax distributions, in nats, float64.

    With δ = log q - log p, KL = ∑ p (e^δ - 1 - δ), because ∑ p (e^δ - 1) = 0. Every term is positive, and e^δ - 1 - δ
    comes from its series for small δ, so nothing cancels, and what limits a small KL is the rounding of the logits
    alone: about 2⁻⁵³ max|logits| in δ. A KL of 1e-24 from logits near 1 still has 3 digits, one of 1e-12 has 9;
    the textbook ∑ p (log p - log q) has none below 1e-16.

    Args:
        logits_p: (N, K).
        logits_q: (N, K).

    Returns:
        A scalar.

    Example:
        >>> z = torch.tensor([[0.5, -0.5]]).double()
        >>> step = torch.tensor([[1e-11, 0.0]]).double()  # ½ p₁p₂ 1e-22
        >>> print(f"{kl(z, z + step):.2e}")
        9.83e-24
    """
    z, step = logits_p.double(), logits_q.double() - logits_p.double()
    log_p = z.log_softmax(1)
    p = log_p.exp()
    small = step.abs().amax(1, keepdim=True) < 1
    near = step - torch.log1p((p * torch.expm1(torch.where(small, step, 0))).sum(1, keepdim=True))
    delta = torch.where(small, near, logits_q.double().log_softmax(1) - log_p)
    large = logits_q.double().softmax(1) - p - p * delta  # the same, of numbers that neither cancel nor overflow there
    return torch.where(delta > 1, large, p * _exp_remainder(delta.clamp(max=1))).sum(1).mean()


def _exp_remainder(x: Tensor) -> Tensor:
    """e^x - 1 - x, accurate for every x."""
    series = sum(x**k / math.factorial(k) for k in range(2, 12))
    return torch.where(x.abs() < 0.1, series, torch.expm1(x) - x)


def quadratic_form(logits: Logits, theta: Tensor, noise: Tensor) -> Tensor:
    r"""½ εᵀFε without forming F, a scalar in nats: ½ mean over examples of Var_p(u), u = (∂ logits/∂θ) ε.

    One forward-mode pass; Var_p(u) = ∑ p (u - ∑ p u)² = uᵀ(diag p - ppᵀ)u has no cancellation.
    """
    z, u = jvp(logits, (theta,), (noise,))
    p = z.softmax(1)
    centred = u - (p * u).sum(1, keepdim=True)
    return 0.5 * (p * centred.square()).sum(1).mean()


class Estimate(NamedTuple):
    """A Monte Carlo mean: its value, its standard error, and the number of independent (pairs of) draws."""

    value: float
    standard_error: float
    draws: int


def noise_kl(
    logits: Logits, theta: Tensor, draw: Callable[[torch.Generator], Tensor], *, pairs: int, seed: int
) -> Estimate:
    r"""E_ε KL(p_θ ‖ p_{θ+ε}) by Monte Carlo over antithetic pairs, to hold against ½ Tr(F Cov ε).

    Args:
        logits: the model.
        theta: where.
        draw: gives one noise vector (P,) of mean zero from a generator, e.g. `gaussian(theta, variance)`.
        pairs: number of pairs ε, -ε; a pair's mean is free of the odd orders of the expansion.
        seed: of the generator; the global one is left alone.

    Returns:
        Mean over pairs and its standard error, from the spread between pairs.
    """
    (found,) = scaled_noise_kl(logits, theta, draw, (1.0,), pairs=pairs, seed=seed)
    return found


def scaled_noise_kl(
    logits: Logits,
    theta: Tensor,
    draw: Callable[[torch.Generator], Tensor],
    scales: Sequence[float],
    *,
    pairs: int,
    seed: int,
) -> list[Estimate]:
    """`noise_kl` of the same noise times each of several scales, drawn once: E_ε KL(p_θ ‖ p_{θ+sε}) for each s."""
    moved = torch.empty_like(theta)  # one block for all steps: a new one for each takes longer than a small model

    def away(step: Tensor, scale: float) -> Tensor:
        return kl(base, logits(torch.mul(step, scale, out=moved).add_(theta)))

    with torch.no_grad():
        base = logits(theta)
        found = [[(away(step, s) + away(step, -s)) / 2 for s in scales] for step in _draws(draw, pairs, seed)]
    return [estimate(list(values)) for values in zip(*found, strict=True)]


def gaussian(theta: Tensor, variance: float) -> Callable[[torch.Generator], Tensor]:
    """Independent noise of one variance C on θ's device: Cov ε = C·I, so ½ E εᵀFε = ½ C Tr(F)."""
    return lambda generator: _normal(theta.shape, generator).mul_(variance**0.5).to(theta.device)


def correlated(factor: Tensor) -> Callable[[torch.Generator], Tensor]:
    """Noise ε = L z with z standard normal and L (P, R): Cov ε = LLᵀ, so ½ E εᵀFε = ½ Tr(F LLᵀ)."""
    return lambda generator: factor @ _normal(factor.shape[1:], generator).to(factor.device)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn on the CPU so that a seed gives the same ones on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _draws(draw, count: int, seed: int):
    generator = _generator(seed)
    return (draw(generator) for _ in range(count))


def estimate(values: list[Tensor]) -> Estimate:
    """The mean of independent draws; a single one has no standard error."""
    values = torch.stack(values).cpu()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), error, len(values))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
