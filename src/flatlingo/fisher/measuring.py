"""The measurement of a trace over batches: checks, the engine, groups of parameters, shared work, and when to stop."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, islice

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.batches import (
    Batch,
    batch_size,
    check_whole,
    example_of,
    logits_of,
    on_device,
    prepared,
    unpadded,
)
from flatlingo.fisher.checks import check_model, check_padding, check_signature, checked_logits, most_padded
from flatlingo.fisher.gradnorms import GradientNorms
from flatlingo.fisher.modes import as_written, full_float32, uncached_casts
from flatlingo.fisher.processes import gathered, process
from flatlingo.fisher.result import FisherTrace, error_of_mean
from flatlingo.fisher.selection import Selection, module_group, selected

CHECKED = 2  # examples seen first, to find out what is random, how rows go together and whether shortcuts hold
FEWEST_EXAMPLES = 100  # before `tolerance` may stop: the traces of examples are heavy-tailed

Directions = Callable[[Tensor, Batch], list[tuple[Tensor, Tensor]]]


def measure(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    directions: Directions,
    parameters: Selection = None,
    by: str | Callable[[str], str] = "module group",
    max_examples: int | None = None,
    tolerance: float | None = None,
    progress: bool = False,
) -> FisherTrace:
    """The trace over all batches; `directions` gives the terms (weight, direction) of a batch from its logits.

    Weights are (B,), directions (B, C); the other arguments are those of `fisher_trace`.
    """
    check_model(model)
    if max_examples is not None and (not isinstance(max_examples, int) or max_examples < 1):
        raise FlatlingoError(f"max_examples={max_examples!r}: give a whole number, 1 or more")
    measured = selected(model, parameters)
    groups = _Groups(list(measured), _grouping(model, by))
    check_whole(batches)
    rank, processes = process()
    bar = tqdm(batches, desc="Tr(F)", unit="batch", disable=not progress or rank > 0)
    stream = prepared(bar, model, max_examples)
    first = next(stream, None)
    if first is None:
        raise FlatlingoError("no batches: Tr(F) needs at least one example (a generator that is used up gives none)")

    table, seen_padding = np.empty((0, len(groups.names))), False
    with full_float32(), as_written(), _engine(model, measured, first) as norms:
        stream = chain([first], stream)
        while round_ := list(islice(stream, processes)):  # each process takes one batch of the round
            for batch in [] if seen_padding else round_:
                seen_padding |= padding_is_checked(model, batch.inputs)
            mine = [groups.sums(_norms(norms, batch, directions)) for batch in round_[rank:][:1]]
            table = np.concatenate([table, *gathered(np.concatenate([table[:0], *mine]), processes)])
            if tolerance is not None and _precise(table.sum(1), tolerance):
                break
    return FisherTrace(pd.DataFrame(table, columns=groups.names))


def _engine(model: nn.Module, parameters: dict[str, nn.Parameter], first: Batch) -> GradientNorms:
    """What measures, having seen the first examples."""
    few = on_device(model, {key: value[:CHECKED] for key, value in first.inputs.items()})
    check_signature(model, few)
    with torch.no_grad(), uncached_casts():
        alone = [checked_logits(model, logits_of(model, example_of(few, i)), i) for i in range(batch_size(few))]
    return GradientNorms(model, parameters, few, torch.cat(alone))


def padding_is_checked(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a batch has a padded row; its logits must be those that it has without padding (`check_padding`).

    Of BigBird this is not asked, which takes other attention for good once it sees a short row.
    """
    if any(hasattr(module, "set_attention_type") for module in model.modules()):
        return True
    if (row := most_padded(inputs)) is None:
        return False
    one = on_device(model, example_of(inputs, row))
    with torch.no_grad(), uncached_casts():
        padded, alone = (logits_of(model, example)[0] for example in (one, unpadded(one)))
    if not padded.isfinite().all():  # what is wrong with it, or that it reads more than the first token, is found below
        return False
    check_padding(model, inputs, row, padded, alone)
    return True


def _norms(norms: GradientNorms, batch: Batch, directions: Directions) -> Tensor:
    """∑ₖ weightₖ ‖∇(directionₖ · logits)‖² of each example and parameter, (B, P)."""

    def terms(logits: Tensor, first: int) -> list[tuple[Tensor, Tensor]]:
        part = batch.part(first, len(logits))
        return directions(checked_logits(norms.model, logits, part.start), part)

    return norms(on_device(norms.model, batch.inputs), terms, batch.start)


class _Groups:
    """Groups of parameters, in the order of their first ones."""

    def __init__(self, parameters: list[str], group_of: Callable[[str], str]):
        groups = [group_of(name) for name in parameters]
        self.names = list(dict.fromkeys(groups))
        self._index = torch.tensor([self.names.index(group) for group in groups])

    def sums(self, norms: Tensor) -> np.ndarray:
        """Sums over the parameters of each group: (B, groups) from (B, P)."""
        norms = norms.cpu()
        return norms.new_zeros(len(norms), len(self.names)).index_add_(1, self._index, norms).numpy()


def _grouping(model: nn.Module, by: str | Callable[[str], str]) -> Callable[[str], str]:
    if callable(by):
        return by
    if by == "parameter":
        return lambda name: name
    if by == "module group":
        return partial(module_group, model)
    raise FlatlingoError(f'by={by!r}: choose "module group", "parameter" or a function of the parameter\'s name')


def _precise(per_example: np.ndarray, tolerance: float) -> bool:
    return len(per_example) >= FEWEST_EXAMPLES and error_of_mean(per_example) <= tolerance * per_example.mean()
