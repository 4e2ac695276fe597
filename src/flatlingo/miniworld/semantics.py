"""A model checker: what sentences say about small explicit situations.

Conventions, chosen so that a human reader has nothing to argue about:

* A situation is one scene. Each individual is in one place all the time; a fact (who does what to whom) has one or
  more times of day. Facts are closed under verb hypernyms, nouns under noun hypernyms, "kitchen" is in "house", every
  time is in "today". Verbs that exclude each other never hold of the same individuals, nor do adjectives.
* A place is where the subject of the verb is. A name denotes the same person everywhere and implies only "person".
* Numerals mean "at least" and distribute: two dogs chase a cat if each of at least two dogs chases some cat.
* "the dog" needs exactly one dog. "every", "not every" and "no" speak of something there is: the tests compare pairs of
  sentences only in situations that contain what they quantify over.
* Negation says that the whole rest of the sentence, with place and time, is not so.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flatlingo.miniworld import lexicon
from flatlingo.miniworld.frame import COUNTS, DEFINITE, NP, UNIVERSAL, Frame

Event = tuple[str, int, int | None, frozenset[str]]  # verb, subject, object, times


@dataclass(frozen=True, slots=True)
class Individual:
    """What a situation's individual is (closed under hypernyms), its canonical adjectives and the places it is in."""

    kinds: frozenset[str]
    adjectives: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()


class Situation:
    """Individuals and facts.

    Args:
        individuals: They are known by their position.
        events: (verb, subject, object or None, times of day); the facts are these closed under hypernyms.
    """

    def __init__(self, individuals: Iterable[Individual], events: Iterable[Event]):
        self.individuals = tuple(individuals)
        self.times: dict[tuple[str, int, int | None], frozenset[str]] = {}
        for verb, subject, object_, times in events:
            closed = frozenset().union(*map(_time_closure, times))
            for above in lexicon.ancestors(verb):
                fact = above, subject, object_
                self.times[fact] = self.times.get(fact, frozenset()) | closed

    def extension(self, np: NP) -> list[int]:
        """Return the individuals that the noun (or name) and the adjective are true of."""
        noun, adjective = lexicon.canonical(np.noun), np.adjective and lexicon.canonical(np.adjective)
        return [
            i
            for i, individual in enumerate(self.individuals)
            if noun in individual.kinds and (adjective is None or adjective in individual.adjectives)
        ]

    def holds(self, frame: Frame, subject: int, object_: int | None) -> bool:
        """Whether the verb, place and time of a frame are true of individuals."""
        times = self.times.get((lexicon.canonical(frame.verb), subject, object_))
        if times is None or (frame.time and frame.time not in times):
            return False
        return frame.place is None or frame.place in self.individuals[subject].places


def _time_closure(time: str) -> frozenset[str]:
    return lexicon.ancestors(time) if time in lexicon.CONCEPTS else frozenset({time})


def true_in(frame: Frame, situation: Situation) -> bool:
    """Whether a frame is true in a situation; false as well where "the", "every" or a name lacks what it speaks of."""
    objects = situation.extension(frame.object) if frame.object else []
    if frame.negated and frame.object and frame.object.quantifier in DEFINITE and len(objects) != 1:
        return False

    def predicate(subject: int) -> bool:
        if frame.object is None:
            return situation.holds(frame, subject, None) is not frame.negated
        truths = (situation.holds(frame, subject, o) for o in objects)
        return _quantify(frame.object.quantifier, truths, len(objects)) is not frame.negated

    subjects = situation.extension(frame.subject)
    return _quantify(frame.subject.quantifier, map(predicate, subjects), len(subjects))


def _quantify(quantifier: str, truths: Iterable[bool], total: int) -> bool:
    if quantifier == "a":
        return any(truths)
    if quantifier in DEFINITE:
        return total == 1 and all(truths)
    if quantifier in UNIVERSAL:
        return total > 0 and all(truths)
    if quantifier == "no":
        return not any(truths)
    if quantifier == "not every":
        return not all(truths)
    return sum(truths) >= COUNTS[quantifier]
