"""Tr(F) of a batch as a differentiable function of the parameters, from an ordinary forward pass.

The Gram form of `flatlingo.fisher.roles`, once more with its graph: the cotangents come from a backward pass through
the activations that can itself be differentiated (so attention must not be fused), and each example has its own norm,
so no labels are drawn and no cross terms between examples appear.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.gradnorms import batch_size, by_row, first_argument, listed, modules_using, uses_in_graph
from flatlingo.fisher.roles import EMBEDDING, LastGram, Role
from flatlingo.fisher.trace import softmax_factor


class Call(NamedTuple):
    """A call of a module that holds parameters: their roles by name, its input and its output, with their graph."""

    module: nn.Module
    uses: dict[str, Role]
    inputs: Tensor
    output: Tensor


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """Within the context a forward pass leaves its calls in the list, for `batch_trace`.

    Only trainable parameters are looked at. What the pass computes is unchanged.
    """
    calls: list[Call] = []
    size = 0

    def begin(module, args, kwargs):
        nonlocal size
        calls.clear()
        size = batch_size({"": args[0]} if args else kwargs)

    def record(uses, module, args, kwargs, output):
        inputs = first_argument(args, kwargs)
        if (
            EMBEDDING in uses.values() and len(inputs) == 1 < size
        ):  # position ids (1, T), whose gradient would come summed over the batch
            inputs, output = (x.expand(size, *x.shape[1:]) for x in (inputs, output))
        calls.append(Call(module, uses, inputs, output))
        return output

    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for module, uses in modules_using(model, trainable):
            stack.callback(module.register_forward_hook(partial(record, uses), with_kwargs=True).remove)
        yield calls


def check_covered(model: nn.Module, logits: Tensor, calls: list[Call]) -> None:
    """Refuse a model with a trainable parameter whose every use is not a call of a known kind.

    Raises:
        FlatlingoError: naming the parameters.
    """
    count = Counter(name for call in calls for name in call.uses)
    roles = defaultdict(set)
    odd = set()
    for call in calls:
        for name, role in call.uses.items():
            roles[name].add(role)
            with torch.no_grad():
                fits = role.fits(call.module, call.inputs, call.output)
            if len(call.inputs) != len(logits) or not fits:
                odd.add(name)
    in_graph = uses_in_graph(logits)
    for name, parameter in model.named_parameters():
        uses = in_graph[id(parameter)] if parameter.requires_grad else 0
        if uses and (uses != count[name] or len(roles[name]) > 1 or name in odd):
            odd.add(name)
        elif not uses:
            odd.discard(name)
    if odd:
        raise FlatlingoError(
            f"{listed(sorted(odd))}: used in a way that the differentiable Tr(F) does not cover; freeze what is named "
            "(requires_grad_(False)), or use the Fisher penalty"
        )


def batch_trace(logits: Tensor, calls: list[Call]) -> Tensor:
    r"""Tr(F_batch) = 1/B ∑ᵢ ∑_c p_c(xᵢ) ‖∇_θ log p_c(xᵢ)‖², a scalar in nats² that can be differentiated.

    The value is that of `flatlingo.fisher_trace` for the pass that was recorded, with its dropout masks. The gradient
    is that of the whole expression, the probabilities p included.

    Args:
        logits: (B, C), what the recorded pass gave, with its graph.
        calls: what `recorded` kept of the pass.
    """
    size = len(logits)
    count = Counter(name for call in calls for name in call.uses)
    grams = LastGram()
    kept = []
    for call in calls:
        rows = by_row(call.inputs, size)
        roles = call.uses.items()
        kept.append([(n, role, role.keep(call.module, rows, call.output, grams, count[n] > 1)) for n, role in roles])
    outputs = [call.output for call in calls]
    weights, directions = softmax_factor(logits)
    traces = torch.zeros_like(weights[:, 0])
    for weight, direction in zip(weights.unbind(1), directions.unbind(1), strict=True):
        cotangents = torch.autograd.grad(logits, outputs, direction.to(logits), create_graph=True, allow_unused=True)
        pairs = defaultdict(list)
        for uses, cotangent in zip(kept, cotangents, strict=True):
            if cotangent is not None:
                for name, role, value in uses:
                    pairs[name, role].append((value, by_row(cotangent, size)))
        traces = traces + weight * sum(role.norm(values, grams) for (_, role), values in pairs.items())
    return traces.mean()
