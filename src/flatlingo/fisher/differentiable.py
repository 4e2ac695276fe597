"""Tr(F) of a batch as a differentiable function of the parameters, from an ordinary forward pass.

The Gram form of `flatlingo.fisher.roles`, once more with its graph: the cotangents come from a backward pass through
the activations that can itself be differentiated (so attention must not be fused), and each example has its own norm,
so no labels are drawn and no cross terms between examples appear.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from flatlingo.errors import FlatlingoError, listed
from flatlingo.fisher.batches import batch_size
from flatlingo.fisher.directions import softmax_factor
from flatlingo.fisher.recorder import Call, Tap, by_row, check_unchanged, recording, uses_in_graph
from flatlingo.fisher.reference import autograd_explained, coarser, differing, plain_norms
from flatlingo.fisher.roles import LastGram, Role


class RecordedCall(NamedTuple):
    """A call whose inputs and output have their graph.

    edge: where the output's cotangent arrives, whatever is done to the output in place.
    version: of the inputs, when they were used.
    fits: the parameters whose role is as assumed.
    """

    call: Call
    edge: GradientEdge | None
    version: int
    fits: frozenset[str]


@contextmanager
def recorded(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[list[RecordedCall]]:
    """Within the context a forward pass leaves its calls in the list, for `batch_trace`.

    Only the parameters given, by name, are looked at. What the pass computes is unchanged.
    """
    calls: list[RecordedCall] = []
    size, spread = 0, set()

    def begin(module, args, kwargs):
        nonlocal size
        calls.clear()
        size = batch_size({"": args[0]} if args else kwargs)

    def take(call: Call) -> Tensor:
        if call.is_for_all(size):
            spread.add(call.name)
            call = call.spread(size)
        with torch.no_grad():
            fits = {name for name, role in call.roles.items() if role.fits(call.module, call.inputs, call.output)}
        output = Tap.apply(call.output, None, None)
        edge = get_gradient_edge(output) if output.requires_grad else None
        calls.append(RecordedCall(call._replace(output=output), edge, call.inputs._version, frozenset(fits)))
        return output

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with recording(model, parameters, take):
            yield calls
    except RuntimeError as error:
        if spread and "size" in str(error):
            raise FlatlingoError(
                f"the differentiable Tr(F) repeats for each example what {listed(sorted(spread))} gives once for all, "
                f"and the model does not take it: {error}; freeze what it holds, or use the Fisher penalty"
            ) from error
        raise
    finally:
        handle.remove()


def connected(parameters: Mapping[str, nn.Parameter], logits: Tensor, calls: list[RecordedCall]) -> list[RecordedCall]:
    """The calls on which the logits depend, which are all the uses of the parameters that were looked at.

    Raises:
        FlatlingoError: naming the parameters of which there are other uses, or whose modules do not see one row per
            example; or a module whose input was overwritten.
    """
    in_graph, nodes = uses_in_graph(logits)
    calls = [recorded for recorded in calls if recorded.edge is not None and recorded.edge.node in nodes]
    count = Counter(name for recorded in calls for name in recorded.call.roles)
    kinds: dict[str, set[Role]] = defaultdict(set)
    odd = set()
    for call, _, version, fits in calls:
        check_unchanged(call.name, call.inputs, version)
        for name, role in call.roles.items():
            kinds[name].add(role)
            if call.output.numel() and not (name in fits and call.is_by_row(len(logits))):
                odd.add(name)
    for name, parameter in parameters.items():
        if in_graph[id(parameter)] != count[name] or len(kinds[name]) > 1:
            odd.add(name)
    refuse(odd)
    return [recorded for recorded in calls if recorded.call.output.numel()]


def refuse(names: set[str] | list[str]) -> None:
    """Refuse parameters, if there are any.

    Raises:
        FlatlingoError: naming them.
    """
    if names:
        raise FlatlingoError(
            f"{listed(sorted(names))}: used in a way that the differentiable Tr(F) does not cover; freeze what is "
            "named (requires_grad_(False)), leave it out by parameters=, or use the Fisher penalty"
        )


def batch_trace(logits: Tensor, calls: list[RecordedCall]) -> Tensor:
    r"""Tr(F_batch) = 1/B ∑ᵢ ∑_c p_c(xᵢ) ‖∇_θ log p_c(xᵢ)‖², a scalar in nats² that can be differentiated.

    The value is that of `flatlingo.fisher_trace` for the pass that was recorded, with its dropout masks. The gradient
    is that of the whole expression, the probabilities p included.

    Args:
        logits: (B, C), what the recorded pass gave, with its graph.
        calls: what `connected` gave of the pass.
    """
    norms = _Norms(logits, calls)
    weights, directions = softmax_factor(logits)
    traces = torch.zeros_like(weights[:, 0])
    for weight, direction in zip(weights.unbind(1), directions.unbind(1), strict=True):
        traces = traces + weight * sum(norms(direction).values())
    return traces.mean()


def check_norms(
    parameters: Mapping[str, nn.Parameter], logits: Tensor, calls: list[RecordedCall], example: int
) -> None:
    """Hold an example's norms against plain autograd through the same pass, and all against themselves with factors.

    Along one direction. Where a module sees examples in another order than the batch's, or together, the factors, one
    for each example, meet others.

    Raises:
        FlatlingoError: naming the parameters whose norms differ.
    """
    precision = reduce(coarser, (recorded.call.output.dtype for recorded in calls), logits.dtype)
    factors = torch.tensor([2.0 ** ((i + i // 16) % 16 - 8) for i in range(len(logits))]).to(logits)[:, None]
    with torch.no_grad():
        direction = softmax_factor(logits)[1][:, 0].to(logits)
        only = torch.zeros_like(direction)
        only[example] = direction[example]
    expected = plain_norms(logits, parameters.values(), only, again=True)
    norms = _Norms(logits, calls)
    found = norms.table(direction, parameters)
    again = norms.table(direction * factors, parameters) / factors.double().square()
    wrong = {*differing(parameters, found[example], expected, precision)}
    for row, other in zip(found, again, strict=True):
        wrong.update(differing(parameters, other, row, precision))
    refuse(wrong)


class _Norms:
    """Squared norms of the gradients of direction · logits, by parameter and example."""

    def __init__(self, logits: Tensor, calls: list[RecordedCall]):
        self._logits, self._size, self._edges = logits, len(logits), [recorded.edge for recorded in calls]
        self._grams, self._kept = LastGram(), []
        count = Counter(name for recorded in calls for name in recorded.call.roles)
        for call, *_ in calls:
            rows = by_row(call.inputs, self._size)
            keep = [
                (name, role, role.keep(call.module, rows, call.output, self._grams, count[name] > 1))
                for name, role in call.roles.items()
            ]
            self._kept.append(keep)

    def table(self, direction: Tensor, parameters: Iterable[str]) -> Tensor:
        """Squared norms of every example and parameter, (B, P) in float64, without a graph."""
        norms = self(direction, differentiable=False)
        nothing = torch.zeros(self._size, device=direction.device)
        return torch.stack([norms.get(name, nothing).detach().double() for name in parameters], dim=1)

    def __call__(self, direction: Tensor, *, differentiable: bool = True) -> dict[str, Tensor]:
        """Squared gradient norms of ⟨direction, logits⟩: (B,) for each parameter, from a direction (B, C)."""
        if not self._edges:
            return {}
        with autograd_explained():
            cotangents = torch.autograd.grad(
                self._logits, self._edges, direction.to(self._logits), retain_graph=True, create_graph=differentiable
            )
        pairs = defaultdict(list)
        for uses, cotangent in zip(self._kept, cotangents, strict=True):
            for name, role, value in uses:
                pairs[name, role].append((value, by_row(cotangent, self._size)))
        return {name: role.norm(values, self._grams) for (name, role), values in pairs.items()}
