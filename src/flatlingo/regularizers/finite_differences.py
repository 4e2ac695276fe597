"""The gradient of a squared gradient norm, 2 H g, from two ordinary gradients."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.roles import agree
from flatlingo.regularizers.base import is_seen


class RandomState(NamedTuple):
    """The states of torch's global generators that a forward pass on one device draws from."""

    cpu: Tensor
    gpu: Tensor | None
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> "RandomState":
        """Take the present states."""
        gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), gpu, device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within the context the same random numbers come again; afterwards the generators are as they were."""
        with torch.random.fork_rng([self.device] if self.gpu is not None else []):
            torch.set_rng_state(self.cpu)
            if self.gpu is not None:
                torch.cuda.set_rng_state(self.gpu, self.device)
            yield


class ShiftedPass:
    """The forward pass that gave some logits, again: with the same dropout masks, at parameters of one's choice.

    The model's own parameters are never written to, so nothing has to be restored.

    Args:
        model: the model, not wrapped for several processes.
        inputs: what it was called with.
        random_state: of the generators before that call.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor], random_state: RandomState):
        self.model, self.inputs, self.random_state = model, inputs, random_state

    def __call__(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The logits (B, C) with these parameters in place of the model's."""
        with self.random_state.replayed():
            return functional_call(self.model, dict(parameters), (), dict(self.inputs)).logits

    def check(self, logits: Tensor) -> None:
        """Refuse a model whose pass cannot be repeated, at its own parameters or at others (mixout draws only there).

        Raises:
            FlatlingoError: the pass at the model's own parameters gives other logits, or two at others do.
        """
        with torch.no_grad():
            again = self({})
            elsewhere = {name: 2 * parameter for name, parameter in self.model.named_parameters()}
            twice = self(elsewhere), self(elsewhere)
        repeated = agree(again, logits.detach()) and (agree(*twice) or not twice[0].isfinite().all())
        if logits.isfinite().all() and not repeated:
            raise FlatlingoError(
                "the same forward pass twice gives different logits, so finite differences would measure noise: the "
                "model, or another regulariser, draws from a generator of its own; use FisherPenalty(method='exact')"
            )


def squared_norm_by_finite_differences(
    shifted_pass: ShiftedPass, logits: Tensor, labels: Tensor, radius: float
) -> Tensor:
    """‖g‖², g = ∇_θ (1/B) Σ_i -log p(y_i|x_i), with a gradient by finite differences instead of a double backward.

    Its gradient with respect to θ, 2 H g with the Hessian H of that mean loss, comes from

        H g ≈ (g(θ + r g/‖g‖) - g(θ)) ‖g‖ / r,

    two gradients under whatever attention the model has. The value is exact. The error of the gradient has a part that
    grows with r (the third derivative) and one that grows with 1/r (rounding).

    Args:
        shifted_pass: gives the logits at other parameters.
        logits: (B, C) at the model's own, with their graph, which is kept.
        labels: (B,).
        radius: r, a distance in the space of the parameters.

    Returns:
        A scalar to be differentiated once.

    Raises:
        FlatlingoError: if H g is not finite; on a GPU, the value is NaN instead.
    """
    named = {name: p for name, p in shifted_pass.model.named_parameters() if p.requires_grad}
    loss = F.cross_entropy(logits, labels)
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    gradients = {name: g for name, g in zip(named, found, strict=True) if g is not None}
    norm = torch.stack(torch._foreach_norm(list(gradients.values()))).norm()
    step = radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    with torch.no_grad():
        moves = torch._foreach_mul(list(gradients.values()), step)
        shifted = dict(zip(gradients, torch._foreach_add([named[name] for name in gradients], moves), strict=True))
    for parameter in shifted.values():
        parameter.requires_grad_()
    differences = torch.autograd.grad(F.cross_entropy(shifted_pass(shifted), labels), list(shifted.values()))
    differences = torch._foreach_sub(differences, list(gradients.values()))  # not in place: two may be one tensor
    scale = 2 * norm / radius
    finite = (torch.stack(torch._foreach_norm(differences)) * scale).isfinite().all()
    if is_seen(~finite):
        raise FlatlingoError(f"the gradient at a distance of {radius:g} is not finite; use a smaller radius")
    value = norm.square().where(finite, torch.nan)
    return _WithGradient.apply(value, differences, scale, *(named[name] for name in gradients))


class _WithGradient(torch.autograd.Function):
    """A value whose gradient with respect to some parameters is given, up to a scale."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], scale: Tensor, *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple:
        return None, None, None, *(factor * ctx.scale * gradient for gradient in ctx.gradients)
