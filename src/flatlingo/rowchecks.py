"""Rows before a model trains on them: an error for what cannot be learnt, a warning for what would be lost."""

import math
import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from flatlingo.encoding import EncodedRows
from flatlingo.errors import FlatlingoError
from flatlingo.regularizers import Consistency
from flatlingo.rowfiles import HALF_A_PAIR, has_half_a_pair, texts_of


def check_dataset(rows: object) -> None:
    """Refuse what looks like a data set and has no rows by number.

    Raises:
        FlatlingoError: naming what makes a data set of it.
    """
    if isinstance(rows, pd.DataFrame):
        raise FlatlingoError("rows are a pandas table; give Dataset.from_pandas(table) or table.to_dict('records')")
    if isinstance(rows, Mapping):
        raise FlatlingoError(f"rows are a dict of {', '.join(map(str, rows))}; give one of these")
    if isinstance(rows, Iterator):
        raise FlatlingoError("rows are a generator, which gives them only once; give a list of them")


def check_rows(rows: Sequence[Mapping[str, Any]], config: PretrainedConfig, *, needs_labels: bool) -> None:
    """Refuse rows that a model cannot learn from or be measured on.

    Args:
        rows: `text_a`, for pairs `text_b`, and `label`.
        config: of the model, which says what a label is.
        needs_labels: whether each row must have one.

    Raises:
        FlatlingoError: naming the first such row.
    """
    for position, row in enumerate(rows):
        name = f"row {row.get('row_id', position)!r}"
        for column in texts_of(rows[0]):
            if column not in row:
                raise FlatlingoError(f"{name} has no {column}; it has {', '.join(sorted(row))}")
            if not isinstance(row[column], str):
                raise FlatlingoError(f"{column} of {name} is {row[column]!r}, not a text; mend it or leave the row out")
            if has_half_a_pair(row[column]):
                raise FlatlingoError(f"{column} of {name} has {HALF_A_PAIR}; mend it or leave the row out")
        if "label" not in row:
            if needs_labels:
                raise FlatlingoError(f"{name} has no label to learn; it has {', '.join(sorted(row))}")
        elif expected := _unfit(row["label"], config):
            raise FlatlingoError(
                f"the label of {name} is {row['label']!r}, not {expected}; mend it or leave the row out"
            )


def _unfit(label: Any, config: PretrainedConfig) -> str | None:
    """What a label should be, where it is something else."""
    count, problem = config.num_labels, config.problem_type
    if problem == "multi_label_classification" or (problem == "regression" and count > 1):
        several = isinstance(label, Sequence) and len(label) == count
        floats = several and all(isinstance(value, float) and math.isfinite(value) for value in label)
        return None if floats else f"a list of {count} floats"
    if count == 1:
        number = isinstance(label, numbers.Real) and not isinstance(label, bool) and math.isfinite(label)
        return None if number else "a number, which a model of one label (a regression) learns"
    if isinstance(label, numbers.Integral) and not isinstance(label, bool) and 0 <= label < count:
        return None
    return f"a whole number (an int) from 0 to {count - 1}, for the {count} labels of the model"


def warn_if_cut(rows: EncodedRows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Count the rows, and the first 500 perturbed views of each consistency loss, that are longer than they may be."""
    full = [row for row, item in zip(rows.rows, rows.clean, strict=True) if len(item["input_ids"]) == rows.max_length]
    if full:
        texts = ([row[name] for row in full] for name in texts_of(full[0]))
        lengths = map(len, tokenizer(*texts, verbose=False)["input_ids"])  # not verbose: they are longer on purpose
        if cut := sum(length > rows.max_length for length in lengths):
            warnings.warn(
                f"{cut} of {len(rows)} training rows are longer than max_length {rows.max_length} and are cut",
                stacklevel=3,
            )

    views = rows.rows[:500]
    for regularizer in rows.regularizers:
        if not isinstance(regularizer, Consistency):
            continue
        settings = {"seed": rows.seed, "epoch": 0, "max_length": rows.max_length + 1}
        lengths = (len(regularizer.features(row, **settings)["input_ids"]) for row in views)
        if cut := sum(length > rows.max_length for length in lengths):
            warnings.warn(
                f"{cut} of the first {len(views)} perturbed views of {regularizer.name} are longer than max_length "
                f"{rows.max_length} and are cut",
                stacklevel=3,
            )


def warn_if_empty(rows: EncodedRows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Count the texts that have no pieces."""
    names = list(texts_of(rows.rows[0]))
    doubtful = [(row, name) for row in rows.rows for name in names if not any(map(str.isalnum, row[name]))]
    empty = [(row, name) for row, name in doubtful if not tokenizer(row[name], add_special_tokens=False)["input_ids"]]
    if empty:
        row, name = empty[0]
        warnings.warn(
            f"{len(empty)} of {len(names) * len(rows)} training texts have no pieces (first: {name} of row "
            f"{row['row_id']!r}): they are blank, or the tokenizer drops their characters",
            stacklevel=3,
        )
