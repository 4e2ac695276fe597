"""From rows of texts to padded batches of token ids."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers import Regularizer

CHUNK = 1024  # rows a tokenizer call: bounds the memory that its encodings take


class EncodedRows(torch.utils.data.Dataset):
    """Rows encoded for a model: the clean encoding, made once, and what regularisers ask for, made on access.

    Args:
        rows: `text_a`, `text_b` and, optionally, `label` and `row_id` (default: position).
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

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = dict(self.clean[position])
        for regularizer in self.regularizers:
            features = regularizer.features(
                self.rows[position], seed=self.seed, epoch=int(self._epoch), max_length=self.max_length
            )
            item.update({f"{regularizer.name}/{column}": values for column, values in features.items()})
        return item


class PairCollator:
    """Make a batch of encoded rows: every column is padded on the right to its own longest row."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}

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
    """Encode the pairs of texts without padding; `label` becomes `labels`.

    Raises:
        FlatlingoError: if there are no rows, or they have no `text_a` and `text_b`.
    """
    if not rows:
        raise FlatlingoError("there are no rows to encode; check the split and its size")
    missing = {"text_a", "text_b"} - set(rows[0])
    if missing:
        raise FlatlingoError(f"rows lack {' and '.join(sorted(missing))}; they have {', '.join(sorted(rows[0]))}")
    items: list[dict[str, Any]] = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        encoded = tokenizer(
            [row["text_a"] for row in chunk],
            [row["text_b"] for row in chunk],
            truncation=True,
            max_length=max_length,
        )
        items += [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    for item, row in zip(items, rows, strict=True):
        if "label" in row:
            item["labels"] = row["label"]
    return items


def batches(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, Any]], *, max_length: int, batch_size: int
) -> list[dict[str, Tensor]]:
    """Batches of all rows for evaluation and `fisher_trace`, in order of length so that little is padded.

    Args:
        tokenizer: tokenizer of the model.
        rows: `text_a`, `text_b` and, optionally, `label`.
        max_length: largest number of tokens; longer pairs are truncated longest first.
        batch_size: rows a batch.

    Returns:
        Dicts of CPU tensors: what the model takes, and `labels` if the rows have a label.
    """
    return [batch for _, batch in indexed_batches(tokenizer, rows, max_length=max_length, batch_size=batch_size)]


def indexed_batches(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping[str, Any]], *, max_length: int, batch_size: int
) -> list[tuple[list[int], dict[str, Tensor]]]:
    """As `batches`, each with the positions of its rows."""
    items = encode(list(rows), tokenizer, max_length=max_length)
    order = sorted(range(len(items)), key=lambda position: len(items[position]["input_ids"]))
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    collate = PairCollator(tokenizer)
    return [(part, collate([items[position] for position in part])) for part in parts]
