"""Random frames, the raw material of the tasks."""

import random

from flatlingo.miniworld import lexicon
from flatlingo.miniworld.frame import DEFINITE, NP, Frame, adverbials, can_be_passive, problem
from flatlingo.miniworld.lexicon import CONCEPTS

_TRANSITIVE = tuple(v for v in lexicon.of_kind("verb") if CONCEPTS[v].object)
_INTRANSITIVE = tuple(v for v in lexicon.of_kind("verb") if not CONCEPTS[v].object)
_SUBJECTS = {"name": 20, "the": 12, "a": 12, "every": 10, "all": 6, "no": 14, "not every": 12, "two": 1, "three": 1,
             "at least two": 4, "at least three": 4, "at least four": 2, "at least five": 2}  # fmt: skip
_OBJECTS = {"a": 40, "name": 20, "the": 20}
_OBJECTS_AFTER_DEFINITE = _OBJECTS | {
    "every": 8,
    "all": 6,
    "two": 2,
    "three": 2,
    "at least two": 4,
    "at least three": 4,
}


def noun_phrase(rng: random.Random, classes: tuple[str, ...], weights: dict[str, int]) -> NP:
    """Draw a noun phrase about one of the classes, its quantifier by weight."""
    quantifier = rng.choices(tuple(weights), tuple(weights.values()))[0]
    if quantifier == "name" and "person" not in classes:
        quantifier = "the"
    if quantifier == "name":
        return NP("name", rng.choice(lexicon.of_kind("name")))
    noun = rng.choice(lexicon.nouns_for(classes))
    adjectives = lexicon.adjectives_for(noun)
    return NP(quantifier, noun, rng.choice(adjectives) if adjectives and rng.random() < 0.4 else None)


def random_frame(rng: random.Random, transitive: float = 0.6, place: float = 0.5, time: float = 0.4) -> Frame:
    """Draw a frame of the fragment in plain wording, with an object, a place and a time of these probabilities."""
    while True:
        verb = CONCEPTS[rng.choice(_TRANSITIVE if rng.random() < transitive else _INTRANSITIVE)]
        subject = noun_phrase(rng, verb.subject, _SUBJECTS)
        definite = subject.quantifier in DEFINITE
        negated = definite and rng.random() < 0.5
        object_ = None
        if verb.object:
            object_ = noun_phrase(rng, verb.object, _OBJECTS_AFTER_DEFINITE if definite and not negated else _OBJECTS)
        where = rng.choice(lexicon.of_kind("place")) if not negated and rng.random() < place else None
        when = rng.choice(lexicon.of_kind("time")) if rng.random() < time else None
        frame = Frame(subject, verb.id, object_, where, when, negated)
        if problem(frame) is None:
            return frame


def reworded(frame: Frame, rng: random.Random, passive: float = 0.35, front: float = 0.25) -> Frame:
    """Draw the voice and what stands in front; the meaning stays."""
    movable = adverbials(frame)
    fronted = rng.choice(movable) if movable and rng.random() < front else None
    return frame._replace(passive=rng.random() < passive and can_be_passive(frame), front=fronted)


def with_synonyms(frame: Frame, rng: random.Random, probability: float) -> Frame:
    """Say each word that has a synonym by it with some probability, "every" by "all" and back."""

    def concept(x: str | None) -> str | None:
        others = lexicon.synonyms(x) if x else ()
        return rng.choice(others) if others and rng.random() < probability else x

    def phrase(np: NP | None) -> NP | None:
        if np is None or np.quantifier == "name":
            return np
        quantifier = {"every": "all", "all": "every"}.get(np.quantifier, np.quantifier)
        quantifier = quantifier if rng.random() < probability else np.quantifier
        return NP(quantifier, concept(np.noun), concept(np.adjective))

    return frame._replace(subject=phrase(frame.subject), verb=concept(frame.verb), object=phrase(frame.object))
