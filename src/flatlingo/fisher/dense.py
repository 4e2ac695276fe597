r"""The Fisher information matrix of tiny models, entry by entry, in float64: the slow and obvious reference.

A model is a function `logits(theta)` as in `flatlingo.fisher.theory`.
"""

import torch
from torch import Tensor
from torch.func import jacrev

from flatlingo.fisher.theory import Logits


def dense_fisher(logits: Logits, theta: Tensor) -> Tensor:
    r"""F = 1/N ∑ᵢ Jᵢᵀ (diag(pᵢ) - pᵢpᵢᵀ) Jᵢ, (P, P) in float64, with Jᵢ the Jacobian (K, P) of example i's logits.

    Equal to the mean of E_{y∼p}[g gᵀ], g = ∇ log p(y|x). Memory grows as P² and N·K·P.

    Example:
        >>> from flatlingo.fisher.theory import softmax_regression
        >>> F = dense_fisher(*softmax_regression(torch.ones(5, 2), 3, seed=0))
        >>> F.shape, bool(torch.allclose(F, F.T))
        (torch.Size([9, 9]), True)
    """
    jacobian = jacrev(logits)(theta)
    p = logits(theta).softmax(1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nka,nkl,nlb->ab", jacobian, covariance, jacobian) / len(p)
