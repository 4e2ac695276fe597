"""The Fisher penalty: the squared norm of the batch gradient under labels drawn from the model."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers.base import Regularizer, logits_of


class FisherPenalty(Regularizer):
    """Penalise a one-draw proxy of Tr(F) (Jastrzebski et al. 2021, "Catastrophic Fisher Explosion").

    With ḡ = (1/B) Σ_i ∇_θ log p(ŷ_i|x_i), the gradient of the mean cross entropy with respect to all trainable
    parameters, and labels ŷ_i ~ p(y|x_i) drawn from the logits of the clean pass itself (dropout on, same mask),

        E_ŷ ‖ḡ‖² = (1/B²) Σ_i E‖g_i‖² = Tr(F_batch)/B,

    because the scores g_i have mean zero under the model. Scalings of the added term:

    * `"batch"`: λ B ‖ḡ‖², an unbiased estimate of λ Tr(F_batch) whatever the batch size;
    * `"paper"`: λ ‖ḡ‖², as in the paper, so λ only means something together with B (with gradient accumulation, the
      size of a micro-batch). The first author's later code (hf-sharpness, 2022) divides this once more by the batch
      size.

    The estimate is very noisy (a standard deviation of about twice its mean at B = 32): measure Tr(F) with
    `fisher_trace`, never with the logged penalty. The gradient of the term needs a double backward pass, which fused
    attention kernels do not have; the clean pass runs under PyTorch's composite attention. Compute about 3 × plain.

    Args:
        weight: λ, at least 0.
        scaling: `"batch"` or `"paper"`.

    Raises:
        FlatlingoError: if an argument is not as above, or on `start` if the model's attention has no double backward.
    """

    name = "fisher_penalty"

    def __init__(self, weight: float = 0.01, scaling: Literal["batch", "paper"] = "batch"):
        super().__init__(weight)
        if scaling not in ("batch", "paper"):
            raise FlatlingoError(f"unknown Fisher penalty scaling {scaling!r}; use 'batch' or 'paper'")
        self.scaling = scaling
        self._generator: torch.Generator | None = None

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Check that the model's attention can be differentiated twice; seed the generator of the labels."""
        attention = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
        if attention not in ("eager", "sdpa"):
            raise FlatlingoError(
                f"the Fisher penalty differentiates twice, which {attention} attention does not support; "
                'load the model with attn_implementation="sdpa" or "eager"'
            )
        self._generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)

    def forward_context(self) -> AbstractContextManager:
        """Composite (not fused) attention."""
        return sdpa_kernel(SDPBackend.MATH)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Draw the labels and compute the scaled penalty; logs `squared_norm`, ‖ḡ‖²."""
        if self._generator is None:
            raise FlatlingoError("the Fisher penalty has no generator yet; call start(model, seed=0) before training")
        logits = logits_of(outputs)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=self._generator).squeeze(-1)
        penalty = squared_gradient_norm(model, logits, labels)
        scale = len(labels) if self.scaling == "batch" else 1
        return self.weight * scale * penalty, {"squared_norm": penalty}


def squared_gradient_norm(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """‖∇_θ (1/B) Σ_i -log p(y_i|x_i)‖² over the trainable parameters, itself differentiable.

    Args:
        model: whose parameters the logits depend on.
        logits: shape (B, classes), with their graph.
        labels: shape (B,).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = F.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    return sum(gradient.square().sum() for gradient in gradients if gradient is not None)
