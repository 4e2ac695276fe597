"""Plain autograd for one example: what the fast routes are held against while they run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError

TOGETHER = 2**24  # elements of the gradients formed in one pass, unless one of them has more
SQUARED = 2**17  # elements squared at a time: in float64 as much as a cache holds


def plain_norms(
    logits: Tensor, parameters: Iterable[nn.Parameter], direction: Tensor, *, again: bool = False
) -> Tensor:
    """‖∇_θ (direction · logits)‖² of each parameter θ, (P,) in float64, from its gradient.

    A pass forms some of the gradients, so that no more memory is taken than for the largest (or 64 MiB in float32).

    Args:
        logits: (B, C) with their graph.
        parameters: which.
        direction: (B, C).
        again: whether the graph is needed afterwards.
    """
    parameters = list(parameters)
    norms = torch.zeros(len(parameters), dtype=torch.float64, device=logits.device)
    if not logits.requires_grad:
        return norms
    portions = _portions([parameter.numel() for parameter in parameters], TOGETHER)
    for portion in portions:
        kept = again or portion is not portions[-1]
        some = [parameters[k] for k in portion]
        with autograd_explained():
            found = torch.autograd.grad(logits, some, direction.to(logits), retain_graph=kept, allow_unused=True)
        for k, gradient in zip(portion, found, strict=True):
            if gradient is not None:
                norms[k] = squared_norm(gradient)
        del found, gradient  # before the next are formed
    return norms


def _portions(sizes: list[int], most: int) -> list[list[int]]:
    """Numbers of parameters whose gradients are formed together: neighbours, no larger together than the largest one.

    >>> _portions([9, 2, 2, 8, 1], most=4)
    [[0], [1, 2], [3, 4]]
    """
    most, portions, taken = max(most, *sizes), [[]], 0
    for k, size in enumerate(sizes):
        if taken + size > most:
            portions.append([])
            taken = 0
        portions[-1].append(k)
        taken += size
    return portions


def squared_norm(gradient: Tensor) -> Tensor:
    """∑ g² in float64, a piece at a time: no copy of the whole in float64; of a sparse gradient too."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.stack([piece.double().square().sum() for piece in values.flatten().split(SQUARED)]).sum()


def differing(names: Iterable[str], found: Tensor, expected: Tensor, precision: torch.dtype) -> list[str]:
    """The parameters whose norms (P,) differ by more than rounding explains.

    A gradient that is lost or counted twice is wrong by its own size or more, rounding by far less than ε^¼ of it
    (0.02 in float32), unless the gradient cancels to nothing, below ε^¾ of the whole (6e-6 in float32).
    """
    epsilon = torch.finfo(precision).eps
    allowed = epsilon**0.25 * expected + epsilon**0.75 * expected.sum()
    wrong = ~((found - expected).abs() <= allowed.clamp_min(torch.finfo(torch.float64).tiny))
    return [name for name, is_wrong in zip(names, wrong.tolist(), strict=True) if is_wrong]


REFUSALS = {  # what autograd says of models that it cannot differentiate, and what helps
    "modified by an inplace operation": "write the operation without its underscore or inplace=True",
    "use_reentrant=True": "pass use_reentrant=False to torch.utils.checkpoint",
    "Inference tensors cannot be saved": "make the tensor outside torch.inference_mode()",
}


@contextmanager
def autograd_explained() -> Iterator[None]:
    """Say that it is autograd which cannot differentiate the model, and what helps.

    Raises:
        FlatlingoError: with autograd's own words.
    """
    try:
        yield
    except RuntimeError as error:
        fix = next((fix for words, fix in REFUSALS.items() if words in str(error)), None)
        if fix is None:
            raise
        said = str(error).splitlines()[0]
        raise FlatlingoError(f"autograd cannot differentiate the model: {said}; {fix}") from error


def coarser(x: torch.dtype, y: torch.dtype) -> torch.dtype:
    """The less precise of two floating-point types."""
    return x if torch.finfo(x).eps >= torch.finfo(y).eps else y
