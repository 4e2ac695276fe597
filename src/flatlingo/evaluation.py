"""Accuracy of a classifier, and how far it has memorised wrong labels."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flatlingo.encoding import batches, indexed_batches
from flatlingo.errors import FlatlingoError

__all__ = ["accuracy", "batches", "evaluating", "memorisation", "predictions"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predictions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    batch_size: int = 64,
) -> np.ndarray:
    """Class probabilities p(y|x) in eval mode.

    Args:
        model: a sequence classifier, on any device.
        tokenizer: its tokenizer.
        rows: `text_a` and `text_b`.
        max_length: largest number of tokens; longer pairs are truncated longest first.
        batch_size: rows a forward pass.

    Returns:
        Shape (rows, classes), float32, in the order of the rows.
    """
    probabilities = np.empty((len(rows), model.config.num_labels), dtype=np.float32)
    with evaluating(model):
        for positions, batch in indexed_batches(tokenizer, rows, max_length=max_length, batch_size=batch_size):
            inputs = {column: values.to(model.device) for column, values in batch.items() if column != "labels"}
            probabilities[positions] = model(**inputs).logits.float().softmax(-1).cpu().numpy()
    return probabilities


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    batch_size: int = 64,
) -> float:
    """Share of rows whose most probable class is their `label`; arguments as for `predictions`."""
    predicted = predictions(model, tokenizer, rows, max_length=max_length, batch_size=batch_size).argmax(-1)
    return float(np.mean(predicted == _column(rows, "label")))


def memorisation(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    batch_size: int = 64,
) -> dict[str, float | None]:
    """How well a classifier fits its training rows, and the wrong labels among them; arguments as for `predictions`.

    Returns:
        `train_accuracy`: share of rows predicted as labelled (what training saw);
        `clean_train_accuracy`: share predicted as `clean_label`, None if the rows have none;
        `noisy_fitted`: of the rows whose label is not their clean label, the share predicted as (wrongly) labelled;
        None if there is no such row.
    """
    predicted = predictions(model, tokenizer, rows, max_length=max_length, batch_size=batch_size).argmax(-1)
    fitted = predicted == _column(rows, "label")
    result: dict[str, float | None] = {"train_accuracy": float(fitted.mean())}
    if "clean_label" not in rows[0]:
        return result | {"clean_train_accuracy": None, "noisy_fitted": None}
    clean = _column(rows, "clean_label")
    noisy = clean != _column(rows, "label")
    return result | {
        "clean_train_accuracy": float(np.mean(predicted == clean)),
        "noisy_fitted": float(fitted[noisy].mean()) if noisy.any() else None,
    }


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    if name not in rows[0]:
        raise FlatlingoError(f"rows lack {name}; they have {', '.join(sorted(rows[0]))}")
    return np.array([row[name] for row in rows])
