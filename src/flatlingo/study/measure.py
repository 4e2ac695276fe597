"""What is measured of a trained classifier, each step a function: scalars for `result.json`, arrays for `rows.npz`.

Everything is float32 in eval mode, whatever the precision of training. Fine-tuned weights are not kept, so what one may
want to ask later is stored now: predictions and margins row by row, the trace of each example and of each tensor.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from scipy.special import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flatlingo import evaluation
from flatlingo.encoding import batches
from flatlingo.fisher import FisherTrace, distance, empirical_fisher, sam_sharpness, scale_aware
from flatlingo.fisher.selection import module_group
from flatlingo.regularizers.perturbations import View

CURVE = ("loss", "trace/", "trace_target/")  # beginnings of the names that a curve keeps of a log


class Measured(NamedTuple):
    """Numbers of a result by name, and arrays by name (a name's first part says what, the others of what)."""

    numbers: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Classifier(NamedTuple):
    """A model with its tokenizer and the largest number of tokens that it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    def logits(self, rows: Dataset) -> np.ndarray:
        """Logits (rows, classes) in float32."""
        return evaluation.logits(self.model, self.tokenizer, rows, max_length=self.max_length)

    def traces(self, rows: Dataset, **options: Any) -> FisherTrace:
        """Tr(F) of rows; options as for `evaluation.trace_of_rows`."""
        return evaluation.trace_of_rows(self.model, self.tokenizer, rows, max_length=self.max_length, **options)


def fit(classifier: Classifier, rows: Dataset) -> Measured:
    """How well the training rows are fitted, as labelled and as they should be, and the wrong labels among them.

    Arrays: `fitted/train`, whether a row is predicted as labelled; `noisy/train`, whether its label is a wrong one.
    """
    logits, labels = classifier.logits(rows), np.array(rows["label"])
    clean = np.array(rows["clean_label"]) if "clean_label" in rows.column_names else labels
    predicted = logits.argmax(1)
    numbers = evaluation.memorised(predicted, labels, clean) | {
        "train_loss": _loss(logits, labels),
        "train_margin": float(evaluation.label_margins(logits, labels).mean()),
        "clean_train_loss": _loss(logits, clean),
    }
    return Measured(numbers, {"fitted/train": predicted == labels, "noisy/train": clean != labels})


def accuracy(classifier: Classifier, rows: Dataset, language: str, kept: int) -> Measured:
    """Accuracy on a language's validation rows.

    Arrays: `correct/<language>` of every row; `margin/<language>` of the first `kept`: log p of the label less that of
    the most probable other class.
    """
    logits, labels = classifier.logits(rows), np.array(rows["label"])
    correct = logits.argmax(1) == labels
    margins = evaluation.label_margins(logits, labels)
    return Measured(
        {"accuracy": float(correct.mean()), "loss": _loss(logits, labels), "margin": float(margins.mean())},
        {f"correct/{language}": correct, f"margin/{language}": margins[:kept].astype(np.float16)},
    )


def trace(classifier: Classifier, rows: Dataset, start: Mapping[str, torch.Tensor]) -> Measured:
    """Tr(F) on English rows, by module group and by tensor, and the empirical Fisher of the same rows.

    Args:
        classifier: the trained model.
        rows: the rows.
        start: its weights before training, by name: how far it has moved is the norm of the difference.

    Returns:
        Numbers: the `trace` with its parts, `empirical_fisher`, `scale_aware` and `distance` (see
        `flatlingo.fisher.weights`).
        Arrays: `trace/en` of each row; of each tensor `tensor/name`, `tensor/size`, `tensor/trace`,
        `tensor/squared_norm` and `tensor/squared_distance`.
    """
    model = classifier.model
    by_tensor = classifier.traces(rows, by="parameter")
    parts = by_tensor.contributions.mean()
    groups = parts.groupby([module_group(model, name) for name in parts.index], sort=False).sum()
    weights = {name: parameter.detach().double().cpu() for name, parameter in model.named_parameters()}
    tensors = {
        "name": np.array(list(parts.index)),
        "size": np.array([weights[name].numel() for name in parts.index]),
        "trace": parts.to_numpy().astype(np.float32),
        "squared_norm": np.array([_squared_norm(weights[name]) for name in parts.index], dtype=np.float32),
        "squared_distance": np.array(
            [_squared_norm(weights[name] - start[name].double()) for name in parts.index], dtype=np.float32
        ),
    }
    return Measured(
        {
            "trace": _summary(by_tensor) | {"groups": groups.to_dict()},
            "empirical_fisher": classifier.traces(rows, measure=empirical_fisher).value,
            "scale_aware": scale_aware(by_tensor, model).value,
            "distance": distance(model, start),
        },
        {"trace/en": by_tensor.per_example.astype(np.float32)}
        | {f"tensor/{name}": values for name, values in tensors.items()},
    )


def sharpness(classifier: Classifier, rows: Dataset, radius: float) -> Measured:
    """How much the loss on training rows rises within a radius, see `fisher.sam_sharpness`."""
    padded = batches(classifier.tokenizer, rows, max_length=classifier.max_length, batch_size=evaluation.TRACE_BATCH)
    return Measured({"sharpness": sam_sharpness(classifier.model.eval(), padded, radius)}, {})


def segmentation_kl(classifier: Classifier, rows: Dataset, view: View) -> Measured:
    """How far apart predictions for two segmentations of a text are: what a consistency loss would make small.

    ½ KL(p ‖ q) + ½ KL(q ‖ p), in nats, p for the tokenizer's own segmentation and q for one that is drawn, the same for
    every model; the mean over rows. Array `segmentation_kl/en`: of each row.
    """
    own = log_softmax(classifier.logits(rows).astype(float), axis=1)
    drawn = evaluation.view_logits(*classifier[:2], view, rows, max_length=classifier.max_length, seed=0)
    drawn = log_softmax(drawn.astype(float), axis=1)
    found = 0.5 * ((np.exp(own) - np.exp(drawn)) * (own - drawn)).sum(axis=1)
    return Measured({"segmentation_kl": float(found.mean())}, {"segmentation_kl/en": found.astype(np.float32)})


def target_trace(classifier: Classifier, rows: Dataset, language: str) -> Measured:
    """Tr(F) on another language's rows; array `trace/<language>`: of each row."""
    found = classifier.traces(rows)
    return Measured({"trace": _summary(found)}, {f"trace/{language}": found.per_example.astype(np.float32)})


def held_out(classifier: Classifier, rows: Dataset, name: str) -> Measured:
    """Accuracy on held-out rows of the second stage; array `name`: whether each is right."""
    correct = classifier.logits(rows).argmax(1) == np.array(rows["label"])
    return Measured({"accuracy": float(correct.mean())}, {name: correct})


def curve(log: Sequence[Mapping[str, float]]) -> list[dict]:
    """The training curve to 5 digits: of each entry of a Trainer's log the step, the loss and its terms, and Tr(F).

    Of rows set aside (`trace/…`) and, where one is held at a target, of the batches (`trace_target/trace`, 0 before
    that begins).
    """
    kept = [{name: float(f"{value:.5g}") for name, value in entry.items() if name.startswith(CURVE)} for entry in log]
    return [{"step": entry["step"]} | values for entry, values in zip(log, kept, strict=True) if values]


def _summary(found: FisherTrace) -> dict[str, float]:
    return {
        "value": found.value,
        "standard_error": found.standard_error,
        "examples": found.n,
        "log_mean": found.log_mean,
        "log_standard_error": found.log_standard_error,
    }


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross entropy in nats."""
    return float(-log_softmax(logits.astype(float), axis=1)[np.arange(len(labels)), labels].mean())


def _squared_norm(values: torch.Tensor) -> float:
    return float(values.square().sum())
