r"""Sharpness at a radius: how much the loss can rise nearby, a rival of Tr(F) as a measure of flatness."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.batches import logits_of
from flatlingo.fisher.checks import LABEL_KEYS, check_batch, check_gold, check_model, checked_logits
from flatlingo.fisher.measuring import padding_is_checked
from flatlingo.fisher.modes import uncached_casts


def sam_sharpness(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], rho: float) -> float:
    r"""How much the loss rises at the worst point within a distance, as SAM estimates it.

    .. math:: \max_{\lVert\epsilon\rVert_2 \le \rho} L(\theta + \epsilon) - L(\theta)
        \approx L(\theta + \rho \nabla L / \lVert\nabla L\rVert) - L(\theta)

    with L the mean cross entropy of the gold labels over *all* examples (one gradient, not one per batch) and ε over
    all trainable parameters together. In nats. For small ρ it is ρ ‖∇L‖. The weights are given back bit for bit.

    Args:
        model: a sequence classifier in eval mode: `model(**batch)` gives logits (B, C) or an output that has `.logits`.
        batches: dicts of tensors with "labels" (B,), each one of the model's classes; walked through twice.
        rho: the radius, above 0; SAM's own default is 0.05.

    Raises:
        FlatlingoError: for a radius that is not above 0 and finite, no example, batches that `fisher_trace` refuses, a
            label that is missing or no class of the model, a model in train mode or without a trainable parameter, or a
            gradient that is zero or not finite.

    References:
        Foret et al., ICLR 2021, equations 1 and 2.

    Example:
        >>> model = torch.nn.Linear(1, 2, bias=False).double().eval()
        >>> with torch.no_grad(): _ = model.weight.copy_(torch.tensor([[0.0], [0.0]]))
        >>> batch = {"input": torch.ones(1, 1).double(), "labels": torch.tensor([0])}
        >>> round(sam_sharpness(model, [batch], 2**0.5), 4)  # log(1 + e²) - log 2
        1.4338
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = list(batches)
    if not 0 < rho < float("inf"):
        raise FlatlingoError(f"rho is {rho}: the radius must be above 0, and finite")
    if not batches or not parameters:
        raise FlatlingoError(
            f"sharpness needs {'an example' if parameters else 'a parameter that requires a gradient'}"
        )
    if any(module.training for module in model.modules()):
        raise FlatlingoError("sharpness needs the model in eval mode: call model.eval()")
    check_model(model)
    for position, batch in enumerate(batches):
        check_batch(model, batch, position)
        if _gold(batch) is None:
            raise FlatlingoError(f'sharpness needs gold labels: batch {position} has no "labels" tensor')
    any(padding_is_checked(model, {k: v for k, v in batch.items() if k not in LABEL_KEYS}) for batch in batches)
    if low := [parameter.dtype for parameter in parameters if parameter.dtype in (torch.float16, torch.bfloat16)]:
        raise FlatlingoError(
            f"weights of {low[0]} cannot hold so small a step: call model.float() before measuring sharpness"
        )
    with torch.enable_grad(), uncached_casts():
        start, gradient = _loss_and_gradient(model, parameters, batches)
    norm = float(sum(part.double().square().sum() for part in gradient)) ** 0.5
    if not 0 < norm < float("inf"):
        raise FlatlingoError(f"the gradient of the loss has norm {norm:g}: there is no direction to go up")
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad(), uncached_casts():
            for parameter, part in zip(parameters, gradient, strict=True):
                parameter.add_(part, alpha=rho / norm)
            end = sum(float(loss) for loss in _losses(model, batches))
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
    return end - start


def _loss_and_gradient(
    model: nn.Module, parameters: Sequence[nn.Parameter], batches: Sequence[Mapping[str, Tensor]]
) -> tuple[float, list[Tensor]]:
    """L, and ∇L as a tensor per parameter (zero for one that the loss does not depend on)."""
    total, gradient = 0.0, [torch.zeros_like(parameter) for parameter in parameters]
    for loss in _losses(model, batches):
        total += float(loss.detach())
        for sum_, part in zip(gradient, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if part is not None:
                sum_ += part
    return total, gradient


def _losses(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Iterable[Tensor]:
    """What each batch adds to the mean over all examples."""
    examples, seen = sum(len(_gold(batch)) for batch in batches), 0
    device = next(model.parameters()).device
    for batch in batches:
        inputs = {name: values.to(device) for name, values in batch.items() if name not in LABEL_KEYS}
        logits, gold = checked_logits(model, logits_of(model, inputs), seen), _gold(batch)
        check_gold(gold, logits, seen)
        seen += len(gold)
        yield F.cross_entropy(logits, gold.to(device), reduction="sum") / examples


def _gold(batch: Mapping[str, Tensor]) -> Tensor | None:
    return next((batch[key] for key in LABEL_KEYS if key in batch), None)
