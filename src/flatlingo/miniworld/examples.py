"""Labelled examples of the two tasks: balanced, split by meaning, aligned across languages, with known label noise."""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from flatlingo.errors import FlatlingoError
from flatlingo.miniworld import nli, paraphrase
from flatlingo.miniworld.frame import Frame
from flatlingo.miniworld.grammar import render
from flatlingo.miniworld.lexicon import LANGUAGES

LABELS = {"nli": nli.LABELS, "paraphrase": paraphrase.LABELS}
SPLITS = ("train", "validation")
LARGEST = 100_000
_CANDIDATES = {"nli": nli.candidates, "paraphrase": paraphrase.candidates}


@dataclass(frozen=True)
class Example:
    """A pair of sentences in every language.

    Attributes:
        texts: Language to (first sentence, second sentence).
        label: Class index as one trains on it, see `LABELS`; differs from `clean_label` where noise hit it.
        clean_label: Class index that is true.
        operation: The edits or the swap that made the pair.
        first: Meaning of the first sentence (the premise).
        second: Meaning of the second sentence (the hypothesis).
    """

    texts: dict[str, tuple[str, str]]
    label: int
    clean_label: int
    operation: str
    first: Frame
    second: Frame


def split_of(frame: Frame) -> str:
    """Split that first sentences of this meaning belong to, whatever the seed; one meaning in five is validation."""
    return "validation" if zlib.crc32(repr(frame.meaning).encode()) % 5 == 0 else "train"


def examples(task: str, n: int, *, split: str, seed: int, label_noise: float = 0.0) -> list[Example]:
    """Make n examples of a task.

    Classes are equally frequent (where n is no multiple of their number, the first have one more), in random order.
    No pair occurs twice, and no meaning is the first sentence of both a training and a validation example.

    Args:
        task: "nli" or "paraphrase".
        n: From 1 to 100 000.
        split: "train" or "validation".
        seed: The same arguments give the same examples, and other noise the same pairs.
        label_noise: Share r of the labels, in [0, 1], that is redrawn uniformly from all C classes; a share r·(C-1)/C
            is expected to end up wrong.

    Raises:
        FlatlingoError: An argument is none of these.

    >>> example = examples("paraphrase", 1, split="train", seed=0)[0]
    >>> sorted(example.texts), LABELS["paraphrase"][example.label]
    (['de', 'en', 'es', 'zh'], 'different')
    """
    _check(task, n, split, label_noise)
    rng = random.Random(f"{task} {split} {seed}")
    classes = LABELS[task]
    clean = [i % len(classes) for i in range(n)]
    rng.shuffle(clean)
    observed = _noisy(clean, len(classes), label_noise, random.Random(f"noise {task} {split} {seed}"))
    sources = [_new_pairs(_CANDIDATES[task](name, rng), split) for name in classes]
    made, seen = [], set()
    for true, label in zip(clean, observed, strict=True):
        first, second, operation = next(pair for pair in sources[true] if _texts_key(pair) not in seen)
        seen.add(_texts_key((first, second, operation)))
        texts = {x: (render(first, x), render(second, x)) for x in LANGUAGES}
        made.append(Example(texts, label, true, operation, first, second))
    return made


def _check(task: str, n: int, split: str, label_noise: float) -> None:
    if task not in LABELS:
        raise FlatlingoError(f"unknown task {task!r}: the mini world has {', '.join(LABELS)}.")
    if split not in SPLITS:
        raise FlatlingoError(f"unknown split {split!r}: use {' or '.join(SPLITS)}.")
    if n < 1:
        raise FlatlingoError(f"n is {n}: ask for at least one example.")
    if n > LARGEST:
        raise FlatlingoError(f"n is {n}: the mini world supplies at most {LARGEST} different examples at a time.")
    if not 0 <= label_noise <= 1:
        raise FlatlingoError(f"label_noise is {label_noise}: it is a share of the labels, from 0 to 1.")


def _texts_key(pair: tuple[Frame, Frame, str]) -> tuple:
    return pair[0].meaning, pair[1].meaning


def _new_pairs(pairs: Iterator[tuple[Frame, Frame, str]], split: str) -> Iterator[tuple[Frame, Frame, str]]:
    return (pair for pair in pairs if split_of(pair[0]) == split)


def _noisy(clean: list[int], n_classes: int, share: float, rng: random.Random) -> list[int]:
    noisy = list(clean)
    for i in rng.sample(range(len(clean)), round(share * len(clean))):
        noisy[i] = rng.randrange(n_classes)
    return noisy
