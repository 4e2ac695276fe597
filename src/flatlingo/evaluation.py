"""Measures of a classifier on rows of text: accuracy, memorised labels, Tr(F), and checkpoints compared by it."""

import numbers
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flatlingo.encoding import PairCollator, check_length, encode, indexed_batches, padding_id
from flatlingo.errors import FlatlingoError
from flatlingo.fisher import FisherTrace, empirical_fisher, fisher_trace
from flatlingo.labels import class_order, with_classes_of_model
from flatlingo.masks import whole_masks
from flatlingo.regularizers.perturbations import View

__all__ = [
    "accuracy",
    "comparison",
    "evaluating",
    "logits",
    "margins",
    "memorisation",
    "prediction_batch",
    "trace_of_rows",
    "view_logits",
]

TRACE_BATCH = 32  # rows per batch where gradients are taken: Tr(F) and sharpness


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients, and every module back into its own mode afterwards."""
    # not inference_mode: it is no faster here, and a tensor that a model keeps from it cannot take part in training
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    batch_size: int | None = None,
) -> np.ndarray:
    """Logits of all rows in eval mode.

    Args:
        model: a sequence classifier, on any device. If its classes have names and the rows' labels do too (as those of
            a `Task`), the classes are matched by name, and put into the labels' order with a warning where it is
            another.
        tokenizer: its tokenizer.
        rows: `text_a` and, for pairs, `text_b`.
        max_length: largest number of tokens; longer texts are cut, pairs longest first.
        batch_size: rows per forward pass, in order of length; by default 64 on CPU, 256 on a GPU.

    Returns:
        Shape (rows, classes), float32, in the order of the rows.

    Raises:
        FlatlingoError: rows that cannot be encoded, or are longer than the model can take; a model without padding
            token, or whose classes are not the rows' labels.
    """
    order = class_order(model.config, rows)
    items, collate = _encoded(model, tokenizer, rows, max_length)
    found = _logits(model, items, collate, batch_size)
    return found if order is None else found[:, order]


def view_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    view: View,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    seed: int,
) -> np.ndarray:
    """Logits of all rows in eval mode, of a perturbed view of their texts such as another segmentation.

    Args:
        model: as for `logits`, but its classes stay in its own order.
        tokenizer: its tokenizer.
        view: what perturbs the texts.
        rows: `row_id`, by which the views are drawn, `text_a` and, for pairs, `text_b`.
        max_length: as for `logits`.
        seed: of the views; the global generators are left alone.

    Returns:
        Shape (rows, classes), float32, in the order of the rows.
    """
    items = [view.features(row, seed=seed, epoch=0, max_length=max_length) for row in rows]
    return _logits(model, items, PairCollator(tokenizer, padding_id(model, tokenizer)))


def _logits(
    model: PreTrainedModel, items: Sequence[Mapping[str, Any]], collate: PairCollator, batch_size: int | None = None
) -> np.ndarray:
    """Logits of encoded rows, in their order and that of the model's classes."""
    batch_size = batch_size or prediction_batch(model.device)
    places, parts = [], []
    with evaluating(model), whole_masks(model):
        for positions, batch in indexed_batches(items, collate, batch_size=batch_size):
            inputs = {column: values.to(model.device) for column, values in batch.items() if column != "labels"}
            places += positions
            parts.append(model(**inputs).logits.float())  # stays on the device: a GPU need not wait for the next batch
    return torch.cat(parts).cpu().numpy()[np.argsort(places)]


def prediction_batch(device: torch.device) -> int:
    """Rows per forward pass where nobody says another number."""
    return 64 if device.type == "cpu" else 256


def margins(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], **settings: int
) -> tuple[np.ndarray, np.ndarray]:
    """What each row is predicted as, and by how much its label wins; arguments and errors as for `accuracy`.

    The mean margin is a rival of flatness in Bassi, Ataman & Cho (MRL 2024), whose code takes probabilities instead of
    their logarithms.

    Returns:
        The most probable class, (rows,) integers; and the margin, (rows,) in float32: the log probability of the row's
        `label` less that of the most probable other class, in nats; positive where the prediction is right.
    """
    labels = _classes(model, rows, "label")
    found = _class_logits(model, tokenizer, rows, **settings)
    return found.argmax(-1), label_margins(found, labels)


def label_margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log probability of each label less that of the most probable other class, (rows,) in nats, from logits.

    >>> label_margins(np.array([[2.0, 0.5, 1.0]]), np.array([1]))
    array([-1.5])
    """
    each, others = np.arange(len(labels)), logits.copy()
    others[each, labels] = -np.inf
    return logits[each, labels] - others.max(-1)


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], **settings: int
) -> float:
    """Share of rows whose most probable class is their `label`; arguments and errors as for `logits`.

    Raises:
        FlatlingoError: also for a model of a single output or of several labels at once, logits that are not finite, or
            a label that is not one of the model's classes.
    """
    labels = _classes(model, rows, "label")
    return float(np.mean(_class_logits(model, tokenizer, rows, **settings).argmax(-1) == labels))


def memorisation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], **settings: int
) -> dict[str, float | None]:
    """How well a classifier fits its training rows, and the wrong labels among them; arguments as for `accuracy`.

    Returns:
        `train_accuracy`: share of rows predicted as labelled (what training saw);
        `clean_train_accuracy`: share predicted as `clean_label`, None if the rows have none;
        `noisy_fitted`: of the rows whose label is not their clean label, the share predicted as (wrongly) labelled;
        None if there is no such row.
    """
    labels = _classes(model, rows, "label")
    clean = _classes(model, rows, "clean_label") if "clean_label" in rows[0] else None
    return memorised(_class_logits(model, tokenizer, rows, **settings).argmax(-1), labels, clean)


def memorised(predicted: np.ndarray, labels: np.ndarray, clean: np.ndarray | None) -> dict[str, float | None]:
    """What `memorisation` returns, from the classes predicted, the labels, and the clean labels if they are known."""
    fitted = predicted == labels
    result: dict[str, float | None] = {"train_accuracy": float(fitted.mean())}
    if clean is None:
        return result | {"clean_train_accuracy": None, "noisy_fitted": None}
    noisy = clean != labels
    return result | {
        "clean_train_accuracy": float(np.mean(predicted == clean)),
        "noisy_fitted": float(fitted[noisy].mean()) if noisy.any() else None,
    }


def trace_of_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int = 128,
    batch_size: int = TRACE_BATCH,
    measure: Callable[..., FisherTrace] = fisher_trace,
    **options: Any,
) -> FisherTrace:
    """Exact Tr(F) over rows of single texts or pairs.

    Batches are made in order of length, so that little is padded; the result has the rows' own order, whatever the
    tokenizer, so that `FisherTrace.difference` may compare models that split the texts differently.

    Args:
        model: a sequence classifier, in eval mode.
        tokenizer: its tokenizer.
        rows: `text_a` and, for pairs, `text_b`.
        max_length: largest number of tokens; longer texts are cut, pairs longest first.
        batch_size: rows per batch.
        measure: `fisher_trace`; or `empirical_fisher`, for which rows need a `label`, matched by name as for `logits`.
        **options: of `measure`, such as `by` and `progress`; it takes all rows.

    Raises:
        FlatlingoError: as `measure` and `logits`, and for options that stop it before the last row.
    """
    if early := sorted({"max_examples", "tolerance"} & options.keys()):
        raise FlatlingoError(f"{early[0]}: of rows in order of length only the shortest would be measured; give fewer")
    items, collate = _encoded(model, tokenizer, rows, max_length)
    if measure is empirical_fisher:
        items = with_classes_of_model(items, "labels", class_order(model.config, rows))
    else:
        items = [{column: values for column, values in item.items() if column != "labels"} for item in items]
    order, batches = zip(*indexed_batches(items, collate, batch_size=batch_size), strict=True)
    order = np.concatenate(order)
    try:
        contributions = measure(model, batches, **options).contributions
    except FlatlingoError as error:  # which counts examples as they came, in order of length
        text = re.sub(r"\bexample (\d+)", lambda found: f"example {order[int(found[1])]}", str(error))
        raise FlatlingoError(text) from error
    return FisherTrace(contributions.iloc[np.argsort(order)].reset_index(drop=True))


def _encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_length: int
) -> tuple[list[dict[str, Any]], PairCollator]:
    """The encoded rows, and what makes batches of them as this model takes them."""
    collate = PairCollator(tokenizer, padding_id(model, tokenizer))
    items = encode(rows, tokenizer, max_length=max_length)
    longest = max(len(item["input_ids"]) for item in items)
    check_length(model, tokenizer, longest, f"a row has {longest} tokens")
    return items, collate


def comparison(traces: Mapping[str, FisherTrace], *, seed: int = 0, n_bootstrap: int = 2000) -> pd.DataFrame:
    """Traces of several models on the same rows, the flattest first, and how far to trust their order.

    On the same rows the difference of two traces is known better than each of them, so everything here is paired by
    row: standard errors are those of the paired differences, intervals and probabilities come from the same rows drawn
    anew (with replacement) for all models. They speak of which rows were measured; models of other seeds of training
    differ besides.

    Args:
        traces: by the models' names.
        seed: of the bootstrap; the global random state is left alone.
        n_bootstrap: samples of rows.

    Returns:
        Indexed by `model`: `trace`, `standard_error`; `difference` to the first row of the table, `difference_se`;
        `above`, the difference to the row above (NaN for the first), the 2.5 and 97.5 % percentile `low` and `high` of
        its bootstrap, and `order`, the share of samples in which this model is the sharper of the two; and the part of
        each module group.

    Raises:
        FlatlingoError: the traces are not of the same number of rows.

    Example:
        >>> flat, sharp = (FisherTrace(pd.DataFrame({"head": [1.0, 2.0, 3.0]}) * scale) for scale in (1, 4))
        >>> table = comparison({"sharp": sharp, "flat": flat})
        >>> [(row.Index, row.trace, row.above, round(row.difference_se, 2), row.order) for row in table.itertuples()]
        [('flat', 2.0, nan, 0.0, nan), ('sharp', 8.0, 6.0, 1.73, 1.0)]
    """
    ordered = sorted(traces, key=lambda name: traces[name].value)
    first, above = traces[ordered[0]], None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(first.n, np.full(first.n, 1 / first.n), size=n_bootstrap) / first.n
    rows = []
    for name in ordered:
        trace = traces[name]
        difference, error = trace.difference(first)
        rows.append(
            {"trace": trace.value, "standard_error": trace.standard_error}
            | {"difference": difference, "difference_se": error}
            | _step(trace, above, drawn)
            | trace.groups
        )
        above = trace
    return pd.DataFrame(rows, index=pd.Index(ordered, name="model"))


def _step(trace: FisherTrace, above: FisherTrace | None, drawn: np.ndarray) -> dict[str, float]:
    """The difference to the flatter neighbour, from the shares (sample, row) of a bootstrap."""
    if above is None:
        return dict.fromkeys(("above", "low", "high", "order"), np.nan)
    gaps = trace.per_example - above.per_example
    samples = drawn @ gaps
    low, high = np.quantile(samples, [0.025, 0.975])
    order = np.mean(samples > 0) + np.mean(samples == 0) / 2
    return {"above": float(gaps.mean()), "low": float(low), "high": float(high), "order": float(order)}


def _class_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], **settings: int
) -> np.ndarray:
    """The `logits`, if they are numbers."""
    found = logits(model, tokenizer, rows, **settings)
    if not (finite := np.isfinite(found).all(axis=1)).all():
        raise FlatlingoError(f"the logits of row {finite.argmin()} are not finite; nothing can be said of the model")
    return found


def _classes(model: PreTrainedModel, rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A column of labels, each one of the model's classes."""
    number, problem = model.config.num_labels, getattr(model.config, "problem_type", None)
    if number < 2 or problem in ("regression", "multi_label_classification"):
        kind = "several labels at once" if problem == "multi_label_classification" else "a number, a regression"
        raise FlatlingoError(f"the model predicts {kind}; accuracy is of one label out of two or more")
    if len(rows) == 0:
        raise FlatlingoError("there are no rows to score; check the split and its size")
    with warnings.catch_warnings(action="ignore"):  # `logits` warns of another order
        class_order(model.config, rows)
    if name not in rows[0]:
        raise FlatlingoError(f"rows lack {name}; they have {', '.join(sorted(rows[0]))}")
    values = [row.get(name) for row in rows]
    for position, value in enumerate(values):
        if not isinstance(value, numbers.Integral) or not 0 <= value < number:
            raise FlatlingoError(
                f"{name} of row {position} is {value!r}, not one of the model's {number} classes, 0 to {number - 1}; "
                "mend it or leave the row out"
            )
    return np.array(values)
