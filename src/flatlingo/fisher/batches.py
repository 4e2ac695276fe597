"""Batches as they are measured: checked, cut off, on the model's device, an example at a time; and their logits."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.checks import LABEL_KEYS, check_batch
from flatlingo.fisher.processes import process


class Batch(NamedTuple):
    """Inputs of the model, gold labels if there are any, and the number of examples before."""

    inputs: dict[str, Tensor]
    gold: Tensor | None
    start: int

    def part(self, first: int, size: int) -> "Batch":
        """The `size` examples from the one numbered `first` on."""
        rows = slice(first, first + size)
        gold = None if self.gold is None else self.gold[rows]
        return Batch({key: value[rows] for key, value in self.inputs.items()}, gold, self.start + first)


def prepared(batches: Iterable, model: nn.Module, max_examples: int | None) -> Iterator[Batch]:
    """The batches, checked and cut off after `max_examples`."""
    start = 0
    for position, batch in enumerate(batches):
        if max_examples is not None and start >= max_examples:
            return
        check_batch(model, batch, position)
        room = None if max_examples is None else max_examples - start
        inputs = {key: value[:room] for key, value in batch.items() if key not in LABEL_KEYS}
        gold = next((batch[key][:room] for key in LABEL_KEYS if key in batch), None)
        yield Batch(inputs, gold, start)
        start += batch_size(inputs)


def check_whole(batches: Iterable) -> None:
    """Refuse a single batch, and a DataLoader of which each of several processes would have its own share.

    Raises:
        FlatlingoError: naming the fix.
    """
    if isinstance(batches, Mapping):
        raise FlatlingoError("batches is a single batch; give a list of batches: [batch]")
    if process()[1] > 1 and isinstance(batches, (DataLoaderShard, DataLoaderDispatcher)):
        raise FlatlingoError("this DataLoader is already split over processes: give the one before accelerator.prepare")


def on_device(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs where the model is; copies of those made under inference_mode, which autograd cannot keep."""
    device = next(model.parameters()).device
    return {key: (value.clone() if value.is_inference() else value).to(device) for key, value in inputs.items()}


def example_of(batch: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    """The i-th example as a batch of one, padded as it is."""
    return {key: value[i : i + 1] for key, value in batch.items()}


def unpadded(example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of one without the columns before the first and after the last that its mask (1, T) attends to."""
    mask = example["attention_mask"]
    (attended,) = mask[0].nonzero(as_tuple=True)
    first, last = int(attended.min()), int(attended.max())
    return {
        key: value[:, first : last + 1] if value.shape[1:2] == mask.shape[1:] else value
        for key, value in example.items()
    }


def is_ragged(batch: Mapping[str, Tensor]) -> bool:
    """Whether the rows of a batch have several lengths, by its attention mask (B, T)."""
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return False
    lengths = mask.sum(1)
    return bool((lengths != lengths[0]).any())


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """Number of examples in a batch."""
    return len(next(iter(batch.values())))


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of a batch, (B, C): of an output that has them, or is a dict or a tuple with them."""
    try:
        output = model(**batch)
    except ValueError as error:
        if "padding token" in str(error):  # a decoder's, which looks for the last token before the padding
            raise FlatlingoError(f"{error} Set model.config.pad_token_id, or give batches of one.") from error
        raise
    if isinstance(output, tuple):
        return output[0]
    return output.get("logits", output) if type(output) is dict else getattr(output, "logits", output)
