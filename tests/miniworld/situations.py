"""A search over random situations for what two sentences of the mini world have to do with each other."""

import random
from collections.abc import Iterable

from flatlingo.miniworld import lexicon
from flatlingo.miniworld.frame import COUNTS, DEFINITE, Frame
from flatlingo.miniworld.lexicon import CONCEPTS
from flatlingo.miniworld.semantics import Event, Individual, Situation, true_in


def admissible(frames: Iterable[Frame], situation: Situation) -> bool:
    """Whether a situation has what frames presuppose: one for a name and "the", some for every, not every, no."""
    for frame in frames:
        for np in (frame.subject, frame.object):
            if np is None or np.quantifier == "a" or np.quantifier in COUNTS:
                continue
            size = len(situation.extension(np))
            if size == 0 or (size > 1 and np.quantifier in DEFINITE):
                return False
    return True


def relation(premise: Frame, hypothesis: Frame, rng: random.Random, samples: int = 300) -> str | None:
    """Decide by search over admissible situations what a premise says about a hypothesis.

    Returns:
        "neutral" as soon as one situation makes both true and one only the premise; otherwise, after `samples`
        situations with a true premise (of at most 40 times as many drawn), "entailment" or "contradiction"; None if the
        premise was never true.
    """
    both = only_premise = 0
    for _ in range(40 * samples):
        situation = random_situation((premise, hypothesis), rng)
        if not admissible((premise, hypothesis), situation) or not true_in(premise, situation):
            continue
        if true_in(hypothesis, situation):
            both += 1
        else:
            only_premise += 1
        if both and only_premise:
            return "neutral"
        if both + only_premise >= samples:
            break
    if not both + only_premise:
        return None
    return "entailment" if both else "contradiction"


def equivalent(a: Frame, b: Frame, rng: random.Random, samples: int = 300) -> bool:
    """Whether no situation drawn separates two frames: both or neither say something true there, presuppositions met.

    Args:
        a: One frame.
        b: The other.
        rng: Source of the situations.
        samples: Situations with a true frame to look at (of at most 40 times as many drawn).

    Raises:
        RuntimeError: No situation drawn makes either true, so that nothing was tested.
    """
    seen = 0
    for _ in range(40 * samples):
        situation = random_situation((a, b), rng)
        says_a, says_b = (admissible((frame,), situation) and true_in(frame, situation) for frame in (a, b))
        if says_a != says_b:
            return False
        seen += says_a
        if seen >= samples:
            break
    if not seen:
        raise RuntimeError(f"no situation makes {a} or {b} true")
    return True


def random_situation(frames: tuple[Frame, ...], rng: random.Random) -> Situation:
    """Draw a situation that speaks of the nouns, adjectives, verbs, places and times of some frames.

    Individuals, facts, places and times are drawn with very different densities (none to all), so that universal and
    negated sentences are often true and often false.
    """
    individuals = _random_individuals(frames, rng)
    events = _random_events(frames, len(individuals), rng)
    return Situation(individuals, events)


def _random_individuals(frames: tuple[Frame, ...], rng: random.Random) -> list[Individual]:
    groups: dict[tuple[str, str | None], list[str]] = {}  # (noun, adjective) to the quantifiers it occurs with
    for np in (np for frame in frames for np in (frame.subject, frame.object) if np):
        key = lexicon.canonical(np.noun), np.adjective and lexicon.canonical(np.adjective)
        groups.setdefault(key, []).append(np.quantifier)
    adjectives = sorted({adjective for _, adjective in groups if adjective})
    places = [None, *sorted({frame.place for frame in frames if frame.place})]
    usual, individuals = rng.choice(places), []
    for (noun, adjective), quantifiers in groups.items():
        named = CONCEPTS[noun].kind == "name"
        for _ in range(_random_count(quantifiers, rng)):
            place = usual if rng.random() < 0.8 else rng.choice(places)
            chosen = frozenset() if named else _random_adjectives(adjective, adjectives, rng)
            below = lexicon.hyponyms(noun)
            kind = rng.choice(below) if below and rng.random() < 0.4 else noun
            located = lexicon.ancestors(place) if place else frozenset()
            individuals.append(Individual(lexicon.ancestors(kind), chosen, located))
    return individuals


def _random_count(quantifiers: list[str], rng: random.Random) -> int:
    if "name" in quantifiers:
        return 1
    needed = max(COUNTS.get(quantifier, 1) for quantifier in quantifiers)
    return rng.choice((0, 1, 1, 1, needed, 2) if "the" in quantifiers else (0, 1, 1, 2, needed, needed + 1))


def _random_adjectives(own: str | None, all_adjectives: list[str], rng: random.Random) -> frozenset[str]:
    chosen = [own] if own and rng.random() < 0.85 else []
    for adjective in reversed(all_adjectives) if rng.random() < 0.5 else all_adjectives:
        if rng.random() < 0.3 and not any(lexicon.exclude(adjective, other) for other in chosen):
            chosen.append(adjective)
    return frozenset(chosen)


def _random_events(frames: tuple[Frame, ...], size: int, rng: random.Random) -> list[Event]:
    times = ["another time", *sorted({frame.time for frame in frames if frame.time})]
    usual = _random_subset(times, rng)
    verbs = {lexicon.canonical(frame.verb): frame.object is not None for frame in frames}
    events: dict[tuple[int, int | None], list[Event]] = {}
    for verb, transitive in reversed(verbs.items()) if rng.random() < 0.5 else verbs.items():
        density = rng.choice((0.0, 0.2, 0.5, 0.9, 1.0))
        for subject in range(size):
            for object_ in range(size) if transitive else (None,):
                if rng.random() >= density:
                    continue
                others = events.setdefault((subject, object_), [])
                if others and any(lexicon.exclude(verb, other[0]) for other in others):
                    continue
                others.append((verb, subject, object_, usual if rng.random() < 0.8 else _random_subset(times, rng)))
    return [event for group in events.values() for event in group]


def _random_subset(items: list[str], rng: random.Random) -> frozenset[str]:
    if len(items) == 1:
        return frozenset(items)
    return frozenset(rng.sample(items, rng.randint(1, len(items))))
