"""Divergences between the predictions of the clean and the perturbed pass; each a mean over the B rows of a batch.

`clean` and `view` are logits of shape (B, classes); p and q are their softmax. Gradients flow through both, except in
the functions called `stopped_`, where the first argument of each KL is held fixed: [p] says that p is detached.

>>> import torch
>>> clean, view = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
>>> print(f"{kl(clean, view):.4f} {reverse_kl(clean, view):.4f} {symmetric_kl(clean, view):.4f}")
0.3278 0.4338 0.7616
>>> print(f"{jensen_shannon(clean, view):.4f} {squared_distance(clean, view):.4f}")
0.0895 4.0000
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]
"""From the logits of the clean pass and of the perturbed one to a scalar."""


def kl(clean: Tensor, view: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_τ ‖ q) = (1/B) Σ_i Σ_c p_ic (log p_ic - log q_ic); the temperature τ divides the clean logits alone.

    >>> clean = torch.tensor([[200.0, 0.0]], requires_grad=True)  # p = (1, 0)
    >>> torch.autograd.grad(kl(clean, torch.zeros(1, 2)), clean)[0].abs().tolist()
    [[0.0, 0.0]]
    """
    p = F.softmax(clean / temperature, -1)
    p = p.clamp_min(torch.finfo(p.dtype).tiny)  # at 0 the gradient of p log p is 0 times infinity
    return F.kl_div(F.log_softmax(view, -1), p, reduction="batchmean")


def reverse_kl(clean: Tensor, view: Tensor) -> Tensor:
    """KL(q ‖ p)."""
    return kl(view, clean)


def symmetric_kl(clean: Tensor, view: Tensor) -> Tensor:
    """KL(p ‖ q) + KL(q ‖ p)."""
    return kl(clean, view) + kl(view, clean)


def mean_symmetric_kl(clean: Tensor, view: Tensor) -> Tensor:
    """½ (KL(p ‖ q) + KL(q ‖ p))."""
    return symmetric_kl(clean, view) / 2


def stopped_kl(clean: Tensor, view: Tensor) -> Tensor:
    """KL([p] ‖ q): only the perturbed pass learns."""
    return kl(clean.detach(), view)


def stopped_symmetric_kl(clean: Tensor, view: Tensor) -> Tensor:
    """KL([p] ‖ q) + KL([q] ‖ p): each pass learns from the other as a fixed target."""
    return kl(clean.detach(), view) + kl(view.detach(), clean)


def jensen_shannon(clean: Tensor, view: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2; at most log 2."""
    p, q = F.log_softmax(clean, -1), F.log_softmax(view, -1)
    mixture = torch.logaddexp(p, q) - math.log(2)
    return sum(F.kl_div(mixture, side, reduction="batchmean", log_target=True) for side in (p, q)) / 2


def squared_distance(clean: Tensor, view: Tensor) -> Tensor:
    """(1/B) Σ_i ‖clean_i - view_i‖², of the logits themselves or of whatever else is compared."""
    return (clean - view).square().flatten(1).sum(1).mean()
