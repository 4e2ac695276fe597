"""One forward pass for the clean rows of a batch and for further rows."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from flatlingo.errors import FlatlingoError

IGNORED = -100  # label of a row that PyTorch's cross entropy leaves out


@contextmanager
def joined(model: nn.Module, rows: Mapping[str, Tensor], *, padding_id: int) -> Iterator[list[ModelOutput]]:
    """Within the context a pass of the model takes further rows below its own, and gives the output of its own alone.

    Shorter rows are padded. A loss of the model's own is that of its own rows: the others have no label.

    Args:
        model: a classifier, called with keyword arguments.
        rows: the further rows, with the columns of the pass, labels aside.
        padding_id: of the tokenizer.

    Yields:
        A list, to which every pass appends the output for the further rows.

    Raises:
        FlatlingoError: in the pass, if its columns are others.
    """
    outputs: list[ModelOutput] = []

    def enter(_model, positional, columns):
        labels = {"labels": columns["labels"]} if columns.get("labels") is not None else {}
        own = {name: values for name, values in columns.items() if name != "labels"}
        if positional or own.keys() != rows.keys():
            raise FlatlingoError(
                f"one pass for both views needs the same columns: one has {', '.join(own)}, the other "
                f"{', '.join(rows)}; leave shared_pass out"
            )
        fill = {"input_ids": padding_id}
        both = {name: _stacked(values, rows[name], fill.get(name, 0)) for name, values in own.items()}
        ignored = {
            name: torch.cat([y, torch.full_like(y[:1], IGNORED).expand(_count(rows))]) for name, y in labels.items()
        }
        return (), both | ignored

    def leave(_model, _positional, output):
        own = _count(output) - _count(rows)
        outputs.append(_part(output, slice(own, None)))
        return _part(output, slice(own))

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(enter, with_kwargs=True).remove)
        # Several terms may add rows: what was added last is taken off first.
        stack.callback(model.register_forward_hook(leave, prepend=True).remove)
        yield outputs


def _stacked(first: Tensor, second: Tensor, fill: int) -> Tensor:
    length = max(first.shape[1], second.shape[1])
    return torch.cat([F.pad(values, (0, length - values.shape[1]), value=fill) for values in (first, second)])


def _count(columns: Mapping[str, Tensor]) -> int:
    return len(columns["logits" if "logits" in columns else "input_ids"])


def _part(value: Any, rows: slice) -> Any:
    """Some rows of an output; what has no rows (the loss) as it is, a decoder's cache left out."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim else value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _part(item, rows) for name, item in value.items()})
    return type(value)(_part(item, rows) for item in value) if isinstance(value, tuple | list) else None
