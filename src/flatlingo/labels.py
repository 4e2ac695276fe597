"""Names of classes: which class of a model is which label of a task."""

import numbers
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel
from transformers import PreTrainedConfig

from flatlingo.errors import FlatlingoError

NO_NAME = re.compile(r"(label[_ ]?)?\d+", re.IGNORECASE)
ALIASES = {"contradictory": "contradiction", "entails": "entailment", "contradicts": "contradiction"}


def class_names(config: PreTrainedConfig) -> list[str] | None:
    """The names of a model's classes in the order of its logits; None if they are LABEL_0, LABEL_1, … or numbers."""
    names = [str(config.id2label.get(position, position)) for position in range(config.num_labels)]
    return None if all(map(NO_NAME.fullmatch, names)) else names


def label_order(names: Sequence[str] | None, labels: Sequence[str]) -> list[int]:
    """For every label of a task, the model's class of the same name, whatever its case; 0, 1, … if there are no names.

    Args:
        names: of the model's classes, see `class_names`.
        labels: of the task.

    Raises:
        FlatlingoError: if the names are not those of the labels.

    >>> label_order(["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], ["entailment", "neutral", "contradiction"])
    [2, 1, 0]
    """
    if names is None:
        return list(range(len(labels)))
    known = {_plain(name): position for position, name in enumerate(names)}
    order = [known.get(_plain(label)) for label in labels]
    if None in order or len(names) != len(labels):
        raise FlatlingoError(
            f"the model's classes are {', '.join(names)} and the labels {', '.join(labels)}: they cannot be matched by "
            "name. If they mean the same, put the labels' names in the model's order into its configuration (id2label)"
        )
    return order


def class_order(config: PreTrainedConfig, rows: Any) -> list[int] | None:
    """The model's class for each label of rows; None where it is the same number, or the rows name no labels.

    Args:
        config: of the model.
        rows: a data set, whose `label` may be a `ClassLabel` as those of a `Task`; or rows without names.

    Raises:
        FlatlingoError: if the model has not as many classes as the rows labels, or others.

    Warns:
        UserWarning: if the classes are in another order.
    """
    feature = getattr(rows, "features", {}).get("label")
    if not isinstance(feature, ClassLabel):
        return None
    if config.num_labels != len(feature.names):
        raise FlatlingoError(
            f"the model has {config.num_labels} classes and the rows {len(feature.names)} labels "
            f"({', '.join(feature.names)}); it is of another task"
        )
    names = class_names(config)
    order = label_order(names, feature.names)
    if order == sorted(order):
        return None
    warnings.warn(
        f"the model's classes ({', '.join(names)}) are matched with the labels ({', '.join(feature.names)}) by name",
        stacklevel=3,
    )
    return order


def with_classes_of_model(
    rows: Sequence[Mapping[str, Any]], column: str, order: Sequence[int] | None
) -> Sequence[Mapping[str, Any]]:
    """The rows with the model's class in the place of each label.

    Args:
        rows: those without the column stay as they are.
        column: which holds the labels.
        order: as `class_order` gives it; None leaves all rows as they are.

    Raises:
        FlatlingoError: for a label that is none of those ordered, as the -1 of a row without one, which would otherwise
            be counted from the end.
    """
    if order is None:
        return rows
    for position, row in enumerate(rows):
        label = row.get(column, 0)
        if not isinstance(label, numbers.Integral) or not 0 <= label < len(order):
            raise FlatlingoError(
                f"the label of row {position} is {label!r}, not one of the {len(order)} classes, 0 to "
                f"{len(order) - 1}; mend it or leave the row out"
            )
    return [{**row, column: order[row[column]]} if column in row else row for row in rows]


def _plain(name: str) -> str:
    name = re.sub(r"[\s_-]+", " ", name.strip().casefold())
    return ALIASES.get(name, name)
