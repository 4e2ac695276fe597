"""Paraphrase: do two sentences of much the same words mean the same?

Two frames of different meaning are drawn together, mostly the same words in other roles. Either may be the first
sentence; the second is the same frame again or the other one. Voice, fronting and synonyms are then drawn in the same
way for both labels, so the second sentence alone gives nothing away. How many words two sentences share does a little,
in German and Chinese more than in English: other roles take other case endings and measure words.
"""

import random
from collections.abc import Iterator

from flatlingo.miniworld import lexicon
from flatlingo.miniworld.draw import random_frame, reworded, with_synonyms
from flatlingo.miniworld.frame import COUNTS, NP, NUMBERS, Frame, adverbials, can_be_passive, problem
from flatlingo.miniworld.lexicon import CONCEPTS

LABELS = ("different", "paraphrase")
SWAPS = 0.85  # share of pairs of frames with exactly the same words


def swaps(frame: Frame) -> dict[str, Frame]:
    """Frames of the same words in other roles, by operation; not all of them valid."""
    subject, object_ = frame.subject, frame.object
    roles = frame._replace(subject=object_, object=subject)
    mutual = "mutual" in CONCEPTS[frame.verb].flags
    swapped = {}
    if not mutual:
        swapped["roles swapped"] = roles
        if "name" not in (subject.quantifier, object_.quantifier):
            swapped["nouns swapped"] = frame._replace(
                subject=subject._replace(noun=object_.noun), object=object_._replace(noun=subject.noun)
            )
    if subject.adjective != object_.adjective:
        swapped["adjectives swapped"] = frame._replace(
            subject=subject._replace(adjective=object_.adjective),
            object=object_._replace(adjective=subject.adjective),
        )
    quantifiers = {subject.quantifier, object_.quantifier}
    if len(quantifiers) == 2 and "name" not in quantifiers and quantifiers != {"a", "the"}:
        swapped["quantifiers swapped"] = frame._replace(
            subject=subject._replace(quantifier=object_.quantifier),
            object=object_._replace(quantifier=subject.quantifier),
        )
    return {operation: other for operation, other in swapped.items() if not (mutual and other.meaning == roles.meaning)}


def substitutions(frame: Frame, rng: random.Random) -> dict[str, Frame]:
    """Frames in which one word is another of its kind, by operation; not all of them valid."""
    changed = {}
    if others := lexicon.excluded(frame.verb):
        changed["verb substituted"] = frame._replace(verb=rng.choice(others))
    if frame.place:
        changed["place substituted"] = frame._replace(place=rng.choice(lexicon.excluded(frame.place)))
    if frame.time and lexicon.siblings(frame.time):
        changed["time substituted"] = frame._replace(time=rng.choice(lexicon.siblings(frame.time)))
    for role in ("subject", "object"):
        np: NP = getattr(frame, role)
        if np.adjective and lexicon.excluded(np.adjective):
            adjective = rng.choice(lexicon.excluded(np.adjective))
            changed["antonym"] = frame._replace(**{role: np._replace(adjective=adjective)})
        if np.quantifier in COUNTS:
            prefix, number = np.quantifier.rpartition(" ")[::2]
            other = rng.choice([n for n in NUMBERS if n != number])
            changed["numeral substituted"] = frame._replace(
                **{role: np._replace(quantifier=f"{prefix} {other}".strip())}
            )
    return changed


def two_meanings(rng: random.Random) -> tuple[Frame, Frame, str]:
    """Draw two frames of different meaning and similar words, in random order."""
    while True:
        frame = random_frame(rng, transitive=1.0)
        changed = swaps(frame) if rng.random() < SWAPS else substitutions(frame, rng)
        options = [
            (operation, other)
            for operation, other in changed.items()
            if problem(other) is None
            and other.meaning != frame.meaning
            and can_be_passive(other) == can_be_passive(frame)
            and adverbials(other) == adverbials(frame)
        ]
        if options:
            operation, other = rng.choice(options)
            return (frame, other, operation) if rng.random() < 0.5 else (other, frame, operation)


def candidates(label: str, rng: random.Random) -> Iterator[tuple[Frame, Frame, str]]:
    """Yield (first, second, operation) with the label, without end."""
    while True:
        first, other, operation = two_meanings(rng)
        second = first if label == "paraphrase" else other
        wording_first = reworded(first, rng, passive=0.5, front=0.4)
        wording_second = with_synonyms(reworded(second, rng, passive=0.5, front=0.4), rng, 0.4)
        same_voice = (wording_first.passive, wording_first.front) == (wording_second.passive, wording_second.front)
        same_words = wording_second._replace(passive=second.passive, front=second.front) == second
        if same_voice and same_words:
            continue
        yield wording_first, wording_second, "same meaning" if label == "paraphrase" else operation
