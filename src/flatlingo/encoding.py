"""From rows of texts to padded batches of token ids."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError
from flatlingo.labels import class_order, with_classes_of_model
from flatlingo.regularizers import Regularizer
from flatlingo.rowfiles import has_half_a_pair, misspelt, texts_of

CHUNK = 1024  # rows per tokenizer call: bounds the memory that its encodings take
NO_PADDING = (
    "the checkpoint has no padding token; name one in its tokenizer (pad_token) and its configuration (pad_token_id), "
    "and save both"
)


class EncodedRows(torch.utils.data.Dataset):
    """Rows encoded for a model: the clean encoding, made once, and what regularisers ask for, made on access.

    Args:
        rows: `text_a`, for pairs `text_b` and, optionally, `label` and `row_id` (default: position).
        tokenizer: tokenizer of the model.
        max_length: largest number of tokens; longer pairs are truncated longest first.
        regularizers: whose features become columns `<name>/<column>`.
        seed: seed of these features.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        regularizers: Sequence[Regularizer] = (),
        seed: int = 0,
    ):
        self.rows = [{"row_id": position, **row} for position, row in enumerate(rows)]
        self.clean = encode(self.rows, tokenizer, max_length=max_length)
        self.max_length, self.seed = max_length, seed
        self.regularizers = [regularizer for regularizer in regularizers if regularizer.needs_text]
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # workers of a data loader see it change

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next rows are drawn for."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """Which epoch rows are drawn for."""
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = dict(self.clean[position])
        for regularizer in self.regularizers:
            features = regularizer.features(
                self.rows[position], seed=self.seed, epoch=self.epoch, max_length=self.max_length
            )
            item.update({f"{regularizer.name}/{column}": values for column, values in features.items()})
        return item


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Positions of rows in random batches of about one length, so that little is padded.

    The rows of an epoch are shuffled, sorted by length within pools of `POOL` batches, and the batches shuffled. The
    order depends on seed and epoch alone, so that a resumed training and every process see the same. Rows that are left
    over are the longest of the last pool: with one pool the same in every epoch, and in a mean over fewer rows each
    weighs more.

    Args:
        rows: the rows, which know their epoch.
        batch_size: rows per batch; only the last batch may hold fewer.
        seed: of the order.
    """

    POOL = 50

    def __init__(self, rows: EncodedRows, batch_size: int, *, seed: int):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.rows.epoch])
        lengths = np.array([len(item["input_ids"]) for item in self.rows.clean])
        order, size = generator.permutation(len(lengths)), self.POOL * self.batch_size
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([pool[lengths[pool].argsort(kind="stable")] for pool in pools])
        whole = len(order) - len(order) % self.batch_size
        batches = generator.permutation(order[:whole].reshape(-1, self.batch_size))
        return iter([*batches.ravel().tolist(), *order[whole:].tolist()])


class PairCollator:
    """Make a batch of encoded rows: every column is padded on the right to its own longest row.

    Args:
        tokenizer: tokenizer of the model.
        padding_id: of the tokens that pad, see `padding_id`; the tokenizer's by default.

    Raises:
        FlatlingoError: if the tokenizer has no padding token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, padding_id: int | None = None):
        if tokenizer.pad_token_id is None:
            raise FlatlingoError(NO_PADDING)
        padding_id = tokenizer.pad_token_id if padding_id is None else padding_id
        self.fill = {"input_ids": padding_id, "token_type_ids": tokenizer.pad_token_type_id}

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return int64 tensors of shape (batch, length), and `labels` of shape (batch,)."""
        return {column: self._tensor(column, [item[column] for item in items]) for column in items[0]}

    def _tensor(self, column: str, values: list) -> Tensor:
        if column == "labels":
            return torch.tensor(values)
        longest = max(map(len, values))
        fill = [self.fill.get(column.rpartition("/")[2], 0)]
        return torch.tensor([list(value) + fill * (longest - len(value)) for value in values])


def encode(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[dict[str, Any]]:
    """Encode the texts, or pairs of texts, without padding; `label` becomes `labels`.

    Raises:
        FlatlingoError: if there are no rows, or they have no `text_a`, or only some have a `text_b`, or one is no text;
            or `max_length` leaves no room for them.
    """
    if not rows:
        raise FlatlingoError("there are no rows to encode; check the split and its size")
    columns = list(texts_of(rows[0]))
    if wrong := misspelt(rows[0]):
        raise FlatlingoError(f"rows have {wrong}")
    if "text_a" not in columns:
        raise FlatlingoError(f"rows lack text_a; they have {', '.join(sorted(rows[0]))}")
    if max_length <= (special := tokenizer.num_special_tokens_to_add(pair=len(columns) > 1)):
        raise FlatlingoError(f"max_length {max_length} leaves no room for texts beside {special} special tokens")
    items: list[dict[str, Any]] = []
    for start in range(0, len(rows), CHUNK):
        chunk = [rows[position] for position in range(start, min(start + CHUNK, len(rows)))]
        if odd := [row for row in chunk if list(texts_of(row)) != columns]:
            raise FlatlingoError(f"all rows must have {' and '.join(columns)} or none; one has {', '.join(odd[0])}")
        for row, column in ((row, column) for row in chunk for column in columns):
            if not isinstance(row[column], str) or has_half_a_pair(row[column]):
                raise FlatlingoError(f"{column} of a row is {row[column]!r}, not a text; mend it or leave the row out")
        encoded = tokenizer(
            *([row[column] for row in chunk] for column in columns), truncation=True, max_length=max_length
        )
        items += [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        for item, row in zip(items[start:], chunk, strict=True):
            if "label" in row:
                item["labels"] = row["label"]
    return items


def batches(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Mapping[str, Any]],
    *,
    max_length: int,
    batch_size: int,
    model: PreTrainedModel | None = None,
) -> list[dict[str, Tensor]]:
    """Batches of all rows for evaluation and `fisher_trace`, in order of length so that little is padded.

    Args:
        tokenizer: tokenizer of the model.
        rows: `text_a`, for pairs `text_b` and, optionally, `label`.
        max_length: largest number of tokens; longer texts are cut, pairs longest first.
        batch_size: rows per batch.
        model: for which model; only needed where its padding token or the order of its classes is not that of tokenizer
            and rows: rows are then padded as its configuration says, and labels matched with its classes by name.

    Returns:
        Dicts of CPU tensors: what the model takes, and `labels` if the rows have a label.

    Raises:
        FlatlingoError: as `encode`; the tokenizer has no padding token; a batch would have no row; or a label to be
            matched is no class of the rows.
    """
    items = encode(list(rows), tokenizer, max_length=max_length)
    padding = None if model is None else padding_id(model, tokenizer)
    order = None if model is None else class_order(model.config, rows)
    items = with_classes_of_model(items, "labels", order)
    return [batch for _, batch in indexed_batches(items, PairCollator(tokenizer, padding), batch_size=batch_size)]


def indexed_batches(
    items: Sequence[Mapping[str, Any]], collate: PairCollator, *, batch_size: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of encoded rows in order of length, each with the positions of its rows."""
    if batch_size < 1:
        raise FlatlingoError(f"batch_size must be 1 or more, got {batch_size}")
    order = sorted(range(len(items)), key=lambda position: len(items[position]["input_ids"]))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, collate([items[position] for position in part])


def padding_id(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that a model takes for padding, which its configuration says.

    A decoder finds a row's last token by it, and models of RoBERTa's kind count positions by it. Rows that are padded
    with the tokenizer's id, where the two differ, would be taken for longer ones.

    Raises:
        FlatlingoError: if the tokenizer or the configuration has no padding token.
    """
    found = model.config.get_text_config().pad_token_id
    if tokenizer.pad_token_id is None or found is None:
        raise FlatlingoError(NO_PADDING)
    return found


def largest_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
    """The largest number of tokens that a model, and its tokenizer, can take; None if nothing bounds it.

    It is the number of positions, less those up to the padding id in models of RoBERTa's kind, which count from there:
    512 of the 514 of XLM-R.
    """
    bounds = [getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            bounds.append(module.num_embeddings - module.padding_idx - 1)
    if tokenizer is not None:
        bounds.append(tokenizer.model_max_length)
    return min((bound for bound in bounds if bound and bound > 0), default=None)  # XLNet says -1


def check_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase, length: int, what: str) -> None:
    """Refuse a number of tokens that a model cannot take.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        length: number of tokens.
        what: what has that number, as the message begins: "a row has 600 tokens", "max_length 600".

    Raises:
        FlatlingoError: if it is too large; the message tells the largest.
    """
    largest = largest_length(model, tokenizer)
    if largest is not None and length > largest:
        raise FlatlingoError(
            f"{what} and the model {largest} positions for tokens; cut the rows with max_length={largest}"
        )
