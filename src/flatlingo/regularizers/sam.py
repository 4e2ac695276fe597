"""Sharpness-aware minimisation: the gradient is taken where the loss is worst nearby."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers.base import check_precision


@dataclass(frozen=True)
class SAM:
    """SAM (Foret et al., ICLR 2021) and ASAM (Kwon et al., ICML 2021), an option of `RegularizedTrainer`.

    With g the gradient of the whole loss, regularisers included, of all the micro-batches of an update, the update
    follows the gradient at w + ε̂ instead:

        ε̂ = ρ g/‖g‖₂,    adaptive:  ε̂ = ρ w² g/‖ |w| g ‖₂    (w², |w| entry by entry).

    Twice the cost of a step; dropout and noise are drawn anew for the second gradient. Clipping and the optimiser see
    the second gradient; losses are logged at w. The weights come back bit for bit. Accumulating 4 batches of 8 is one
    batch of 32. (The first author's later code, hf-sharpness, perturbs for each micro-batch: "m-sharpness".)

    Args:
        rho: ρ > 0. 0.05 is the usual default of SAM; ASAM wants it about ten times as large.
        adaptive: ASAM. (Its small constant η, added to |w|, is left out.)

    Raises:
        FlatlingoError: if ρ is not positive; when training starts, if the weights are in half precision, in whose
            rounding ε̂ is lost.

    >>> SAM(), SAM(rho=0.5, adaptive=True)
    (SAM(rho=0.05, adaptive=False), SAM(rho=0.5, adaptive=True))
    """

    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.rho) and self.rho > 0):
            raise FlatlingoError(f"the radius rho of SAM must be a finite number above 0, got {self.rho}")

    def check(self, model: nn.Module) -> None:
        """Refuse a model whose weights cannot move by so little."""
        check_precision((p for p in model.parameters() if p.requires_grad), "the step of SAM to nearby weights")

    @contextmanager
    def ascended(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within the context the parameters that have a gradient are at w + ε̂."""
        moved = [parameter for parameter in parameters if parameter.grad is not None]
        before = [parameter.detach().clone() for parameter in moved]
        try:
            self._ascend(moved)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(moved, before)

    @torch.no_grad()
    def _ascend(self, parameters: list[nn.Parameter]) -> None:
        moves = [parameter.grad for parameter in parameters]
        scales = torch._foreach_abs(parameters) if self.adaptive else None
        if scales:
            moves = torch._foreach_mul(moves, scales)
        norm = torch.nn.utils.get_total_norm(moves)
        if scales:
            moves = torch._foreach_mul(moves, scales)
        step = torch.where(norm > 0, self.rho / norm, 0)  # without asking the device: it would be waited for
        torch._foreach_add_(parameters, torch._foreach_mul(moves, step))
