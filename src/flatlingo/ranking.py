"""Tr(F) of checkpoints on rows of text, and their comparison on the same rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flatlingo.encoding import PairCollator
from flatlingo.errors import FlatlingoError
from flatlingo.fisher import FisherTrace, fisher_trace


def trace_of_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int = 128,
    batch_size: int = 32,
    progress: bool = False,
) -> FisherTrace:
    """Exact Tr(F) over rows of single texts or pairs.

    Batches are made in order of length, so that little is padded; the result has the rows' own order, whatever the
    tokenizer, so that `FisherTrace.difference` may compare models that split the texts differently.

    Args:
        model: a sequence classifier, in eval mode.
        tokenizer: its tokenizer.
        rows: `text_a` and, for pairs, `text_b`.
        max_length: largest number of tokens; longer texts are cut, pairs longest first.
        batch_size: rows a batch.
        progress: show a progress bar.

    Raises:
        FlatlingoError: as `fisher_trace`; or the tokenizer cannot pad, or rows are longer than the model can take.
    """
    encoded = tokenizer(
        *([row[column] for row in rows] for column in ("text_a", "text_b") if column in rows[0]),
        truncation=True,
        max_length=max_length,
    )
    items = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    lengths = np.array([len(item["input_ids"]) for item in items])
    _check_lengths(model, tokenizer, int(lengths.max()))
    order = lengths.argsort(kind="stable")
    collate = PairCollator(tokenizer)
    batches = [
        collate([items[position] for position in order[start : start + batch_size]])
        for start in range(0, len(items), batch_size)
    ]
    contributions = fisher_trace(model, batches, progress=progress).contributions
    return FisherTrace(contributions.iloc[order.argsort()].reset_index(drop=True))


def _check_lengths(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    if tokenizer.pad_token_id is None or model.config.get_text_config().pad_token_id is None:
        raise FlatlingoError(
            "the checkpoint has no padding token; name one in its tokenizer (pad_token) and its configuration "
            "(pad_token_id), and save both"
        )
    positions = min(getattr(model.config, "max_position_embeddings", None) or longest, tokenizer.model_max_length)
    if longest > positions:
        raise FlatlingoError(
            f"a row has {longest} tokens and the model {positions} positions; cut the rows with max_length={positions}"
        )


def comparison(traces: Mapping[str, FisherTrace]) -> pd.DataFrame:
    """Traces of several models on the same rows, the flattest first.

    On the same rows the difference of two traces is known better than each of them: `difference` is to the first row
    of the table, with the standard error of the paired differences.

    Args:
        traces: by the models' names.

    Returns:
        Indexed by `model`: `trace`, `standard_error`, `difference`, `difference_se`, and the part of each module group.

    Raises:
        FlatlingoError: the traces are not of the same number of rows.

    Example:
        >>> flat, sharp = (FisherTrace(pd.DataFrame({"head": [1.0, 2.0, 3.0]}) * scale) for scale in (1, 4))
        >>> table = comparison({"sharp": sharp, "flat": flat})
        >>> [(row.Index, row.trace, row.difference, round(row.difference_se, 2)) for row in table.itertuples()]
        [('flat', 2.0, 0.0, 0.0), ('sharp', 8.0, 6.0, 1.73)]
    """
    ordered = sorted(traces, key=lambda name: traces[name].value)
    first = traces[ordered[0]]
    rows = []
    for name in ordered:
        trace = traces[name]
        difference, error = trace.difference(first)
        summary = {"trace": trace.value, "standard_error": trace.standard_error}
        rows.append({**summary, "difference": difference, "difference_se": error, **trace.groups})
    return pd.DataFrame(rows, index=pd.Index(ordered, name="model"))
