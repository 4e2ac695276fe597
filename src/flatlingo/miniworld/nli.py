"""Inference: does the first sentence entail the second, contradict it, or neither?

The hypothesis is drawn first, and used only if all three labels can be had for it; the premise is then made from it by
one or two edits (`edits`). So hypotheses are distributed alike under every label and tell nothing about it. Premises
do: which quantifier they have, and whether they are negated or say where and when, goes with the edit.
"""

import random
from collections.abc import Iterator

from flatlingo.miniworld.draw import random_frame, reworded, with_synonyms
from flatlingo.miniworld.edits import EXCLUSION, FORWARD, INDEPENDENT, JOIN, NEGATION, REVERSE, Edit, edits
from flatlingo.miniworld.frame import COUNTS, Frame

LABELS = ("entailment", "neutral", "contradiction")
# Label of (premise, hypothesis) by the relation of the hypothesis to the premise made from it.
LABEL_OF = {
    REVERSE: "entailment",
    FORWARD: "neutral",
    INDEPENDENT: "neutral",
    NEGATION: "contradiction",
    EXCLUSION: "contradiction",
}


def _label(edit: Edit) -> str | None:
    label = LABEL_OF[edit.relation]
    return None if edit.loose and label == "neutral" else label


def _pick(found: list[Edit], rng: random.Random) -> Edit | None:
    """Draw a valid edit, its operation first so that operations with many outcomes are no more frequent."""
    by_operation: dict[str, list[Edit]] = {}
    for edit in found:
        by_operation.setdefault(edit.operation, []).append(edit)
    while by_operation:
        operation = rng.choice(list(by_operation))
        candidates = by_operation[operation]
        edit = candidates.pop(rng.randrange(len(candidates)))
        if edit.valid:
            return edit
        if not candidates:
            del by_operation[operation]
    return None


def _same_phrase(first: str, second: str) -> bool:
    """Whether both edits change one noun phrase; its quantifier may presuppose something of the noun in between."""
    return first.split()[0] == second.split()[0]


def _at_another_time(first: Edit, second: Edit) -> bool:
    """Whether a time comes or goes beside what another time has room for: "sleeping today" and "laughing"."""
    return any(
        one.operation in ("time added", "time dropped") and other.relation in (NEGATION, EXCLUSION)
        for one, other in ((first, second), (second, first))
    )


def _twice(first: Edit, label: str, rng: random.Random) -> Edit | None:
    """Add a second edit so that the two give the label; None where none does."""
    found = []
    for second in edits(first.frame):
        relation = JOIN.get((first.relation, second.relation))
        if relation is None or _same_phrase(first.operation, second.operation) or _at_another_time(first, second):
            continue
        both = Edit(f"{first.operation} + {second.operation}", relation, *second[2:4], first.loose or second.loose)
        if _label(both) == label:
            found.append(both)
    return _pick(found, rng)


def _some_or_not_all(premise: Frame, hypothesis: Frame) -> bool:
    """Whether one speaks of some and the other of not all: a reader may take either to imply the other."""
    quantifiers = {premise.subject.quantifier, hypothesis.subject.quantifier}
    return "not every" in quantifiers and not quantifiers.isdisjoint(("a", *COUNTS))


def candidates(label: str, rng: random.Random) -> Iterator[tuple[Frame, Frame, str]]:
    """Yield (premise, hypothesis, operation) with the label, without end; each hypothesis is offered once."""
    while True:
        hypothesis = random_frame(rng, transitive=0.2, place=0.3, time=0.2)
        found = edits(hypothesis)
        by_label = {name: _pick([e for e in found if _label(e) == name], rng) for name in LABELS}
        if None in by_label.values():
            continue
        edit = by_label[label]
        if rng.random() < 0.3:
            first = _pick([e for e in found if e.relation != INDEPENDENT], rng)
            joined = _twice(first, label, rng)
            if joined and not (label == "neutral" and _some_or_not_all(joined.frame, hypothesis)):
                edit = joined
        premise = reworded(with_synonyms(edit.frame, rng, 0.2), rng)
        yield premise, reworded(hypothesis, rng), edit.operation
