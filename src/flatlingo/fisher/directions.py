"""Directions in logit space: the gradients of which logits, and with what weights, make up Tr(F)."""

import numpy as np
import torch
from torch import Tensor


def softmax_factor(logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Factor of the covariance of a softmax label, Σ = diag(p) - ppᵀ = ∑ₖ wₖ uₖuₖᵀ with C - 1 terms.

    With the tails qₖ = ∑_{j>k} pⱼ: wₖ = pₖ qₖ / qₖ₋₁ and uₖ = eₖ - ∑_{j>k} (pⱼ / qₖ) eⱼ, the LDLᵀ factor in closed
    form. Tails are summed in log space, so probabilities near 0 or 1 lose no digits. Differentiable.

    Args:
        logits: (B, C).

    Returns:
        Weights (B, C - 1) and directions (B, C - 1, C) in float64; the directions have norms between 1 and √2.

    References:
        Tanabe & Sagae 1992, J. R. Statist. Soc. B 54(1).

    Example:
        >>> w, u = softmax_factor(torch.tensor([[2.0, 0.0, -1.0]]))
        >>> p = torch.tensor([2.0, 0.0, -1.0]).double().softmax(0)
        >>> bool(torch.allclose(torch.einsum("bk,bkc,bkd->cd", w, u, u), p.diag() - p.outer(p)))
        True
    """
    log_p = logits.double().log_softmax(1)
    log_tail = log_p.flip(1).logcumsumexp(1).flip(1)  # column k: log(pₖ + qₖ) = log qₖ₋₁
    log_q = log_tail[:, 1:]
    weights = (log_p[:, :-1] + log_q - log_tail[:, :-1]).exp()
    unit = torch.eye(logits.shape[1], dtype=weights.dtype, device=weights.device)[:-1]
    later = torch.ones_like(unit).triu(1) > 0
    shares = (log_p[:, None, :] - log_q[:, :, None]).masked_fill(~later, -torch.inf).exp()
    directions = unit - shares
    return weights, directions


def sampled_labels(logits: Tensor, start: int, seed: int) -> Tensor:
    """One label per example, (B,), from the model's probabilities."""
    uniform = [np.random.default_rng((seed, start + i)).random() for i in range(len(logits))]
    below = logits.double().softmax(1).cpu().cumsum(1)[:, :-1] < torch.tensor(uniform)[:, None]  # on a GPU not the same
    return below.sum(1).to(logits.device)


def score_direction(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The direction of ∇log p_label, (e_label - p) scaled to norm 1, and its squared norm."""
    log_p = logits.double().log_softmax(1)
    score = -log_p.exp()
    of_label = -torch.expm1(log_p.gather(1, labels[:, None]))  # 1 - p without cancellation
    score = score.scatter(1, labels[:, None], of_label)
    norm = score.norm(dim=1)
    return norm.square(), score / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None]
