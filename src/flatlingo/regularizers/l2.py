"""Squared distance of the weights from zero, or from where training began."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers.base import Regularizer, squared_norm


class L2(Regularizer):
    """Add (λ/2) Σ_j θ_j² over all trainable parameters, biases, layer norms and embeddings included.

    The term is part of the loss, so AdamW rescales its gradient λθ like any other; decoupled weight decay, which is
    not a loss, is the trainer's `weight_decay`. Logs `squared_distance`, Σ_j θ_j².

    In several processes (DDP) freeze parameters that the model's forward does not use: DDP takes them for done before
    the term's gradient comes.

    Args:
        weight: λ, at least 0.
    """

    name = "l2"

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute (λ/2) Σ θ² over the parameters that are trainable now."""
        distance = sum(squared_norm(parameter) for parameter in _trainable(model))
        return self.weight / 2 * distance, {"squared_distance": distance}


class L2SP(Regularizer):
    """Add (λ/2) Σ_j (θ_j - θ⁰_j)², with θ⁰ the weights the model had when training began (Li et al. 2018, L2-SP).

    Over all parameters that are trainable in the step, like `L2`, also those unfrozen on the way; a fresh
    classification head is pulled towards its random initial values. (The original paper pulls a fresh head towards
    zero, with a weight of its own.) Logs `squared_distance`. Needs memory for one more copy of the weights.

    Args:
        weight: λ, at least 0.

    Raises:
        FlatlingoError: in training, if a parameter was put into the model after it began.
    """

    name = "l2_sp"

    def __init__(self, weight: float):
        super().__init__(weight)
        self._anchors: dict[nn.Parameter, Tensor] = {}

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Remember the present weights."""
        self._anchors = {parameter: parameter.detach().clone() for parameter in model.parameters()}

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Compute (λ/2) Σ (θ - θ⁰)² over the parameters that are trainable now."""
        if not self._anchors:
            raise FlatlingoError("L2SP does not know the initial weights; call start(model, seed=0) before training")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter not in self._anchors:
                raise FlatlingoError(
                    f"L2SP does not know the initial value of {name}, which was put into the model after training "
                    "began; change the model before"
                )
        distance = sum(squared_norm(parameter - self._anchors[parameter]) for parameter in _trainable(model))
        return self.weight / 2 * distance, {"squared_distance": distance}


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
