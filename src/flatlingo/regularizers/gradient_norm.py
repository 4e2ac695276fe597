"""The gradient-norm penalty: the squared norm of the batch gradient under the gold labels."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatlingo.regularizers.base import Regularizer, check_labels, logits_of
from flatlingo.regularizers.fisher_penalty import squared_gradient_norm
from flatlingo.regularizers.periodic import check_differentiable_twice


class GradientNormPenalty(Regularizer):
    """Add λ ‖∇_θ CE‖², CE the task loss of the (micro-)batch: the baseline GP of Jastrzebski et al. (2021).

    Unlike `FisherPenalty`, labels are the gold ones, with the task loss' label smoothing; so the scores have no mean of
    zero, the term is no estimate of Tr(F) (at a training optimum it vanishes), and it depends on the batch size. The
    name GP and its definition in that paper are from memory. Double backward, as for `FisherPenalty`, at about the
    same cost. Logs `squared_norm`, ‖∇_θ CE‖².

    Args:
        weight: λ, at least 0.

    Raises:
        FlatlingoError: if the weight is not as above, or on `start` if the model is no classifier by softmax, or its
            attention or checkpointing has no double backward.
    """

    name = "gradient_norm"
    takes_gradients = True
    uses_labels = True
    recomputable = False  # checkpointed passes have no double backward

    def __init__(self, weight: float = 0.01):
        super().__init__(weight)

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Check that the model can be differentiated twice."""
        check_differentiable_twice(model, "the gradient-norm penalty")

    def forward_context(self) -> AbstractContextManager:
        """Have the clean pass use composite attention: fused kernels cannot be differentiated twice."""
        return sdpa_kernel(SDPBackend.MATH)

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute the weighted squared norm of the batch's loss gradient."""
        check_labels(outputs.logits, batch["labels"], "the gradient-norm penalty")
        squared_norm = squared_gradient_norm(
            model.parameters(), logits_of(outputs), batch["labels"], label_smoothing=self.label_smoothing
        )
        return self.weight * squared_norm, {"squared_norm": squared_norm}
