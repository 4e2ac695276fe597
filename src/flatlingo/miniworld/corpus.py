"""Documents for pre-training: sentences about a scene, or a single claim, said again in other words or languages."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flatlingo.errors import FlatlingoError
from flatlingo.miniworld import lexicon
from flatlingo.miniworld.draw import reworded, with_synonyms
from flatlingo.miniworld.examples import split_of
from flatlingo.miniworld.frame import COUNTS, DEFINITE, NP, NUMBERS, Frame, negation, problem
from flatlingo.miniworld.grammar import render
from flatlingo.miniworld.lexicon import CONCEPTS, LANGUAGES
from flatlingo.miniworld.paraphrase import two_meanings
from flatlingo.miniworld.semantics import Event, Individual, Situation, true_in

CLAIMS = 0.6  # share of the documents that are claims, by default
RESTATED = 0.7  # share of the others that say everything twice
_NAMES = lexicon.of_kind("name")
_VERBS = lexicon.of_kind("verb")
_PLACES = lexicon.of_kind("place")
_TIMES = lexicon.of_kind("time")
_NUMBERS = tuple(NUMBERS)


def pick(rng: random.Random, items: Sequence):
    """`rng.choice`, three times as fast."""
    return items[int(rng.random() * len(items))]


@dataclass(frozen=True, slots=True)
class Scene:
    """Participants (as they are introduced), where each one's individuals lie in the situation, and what goes on."""

    participants: tuple[NP, ...]
    members: tuple[range, ...]
    events: tuple[tuple[str, int, int | None], ...]  # verb, subject, object: positions among the participants
    place: str
    time: str | None
    situation: Situation


def _participant(rng: random.Random, classes: tuple[str, ...], single: bool = False) -> NP:
    if "person" in classes and rng.random() < 0.3:
        return NP("name", pick(rng, _NAMES))
    noun = pick(rng, lexicon.nouns_for(classes))
    adjectives = lexicon.adjectives_for(noun)
    adjective = pick(rng, adjectives) if adjectives and rng.random() < 0.5 else None
    return NP("a" if single or rng.random() < 0.65 else pick(rng, _NUMBERS), noun, adjective)


def make_scene(rng: random.Random) -> Scene:
    """Draw a scene with one to three participants, one place, at most one time and one to four goings-on."""
    verb = CONCEPTS[pick(rng, _VERBS)]
    participants = [_participant(rng, verb.subject)]
    while verb.object and len(participants) < 2:
        object_ = _participant(rng, verb.object, single=participants[0].quantifier not in DEFINITE)
        participants += [object_] if object_ not in participants else []
    if len(participants) < 2 or rng.random() < 0.3:
        other = _participant(rng, ("person", "animal"), single=True)
        participants += [other] if other not in participants else []
    events = [(verb.id, 0, 1 if verb.object else None)]
    for _ in range(3):
        event = _random_event(rng, participants)
        if event and not any(e[1] == event[1] and lexicon.exclude(e[0], event[0]) for e in events):
            events.append(event)
    place = pick(rng, _PLACES)
    time = pick(rng, _TIMES) if rng.random() < 0.6 else None
    return _build(participants, events, place, time)


def another_scene(scene: Scene, rng: random.Random) -> Scene:
    """Draw a scene of the same cast: roles swapped or other verbs, often another place or time."""
    events: list[tuple[str, int, int | None]] = []
    while not events:
        for verb, subject, object_ in scene.events:
            event = (verb, object_, subject) if object_ is not None and rng.random() < 0.5 else None
            if event is None or not _sayable(event, scene.participants):
                event = _random_event(rng, list(scene.participants))
            if event is None or not _sayable(event, scene.participants):
                continue
            if not any(e[1] == event[1] and lexicon.exclude(e[0], event[0]) for e in events):
                events.append(event)
    place = pick(rng, _PLACES) if rng.random() < 0.5 else scene.place
    time = scene.time if rng.random() < 0.5 else pick(rng, _TIMES)
    return _build(list(scene.participants), events, place, time)


def _sayable(event: tuple[str, int, int | None], participants: Sequence[NP]) -> bool:
    verb, subject, object_ = event
    return problem(Frame(participants[subject], verb, None if object_ is None else participants[object_])) is None


def _random_event(rng: random.Random, participants: list[NP]) -> tuple[str, int, int | None] | None:
    verb = CONCEPTS[pick(rng, _VERBS)]
    subjects = [i for i, np in enumerate(participants) if lexicon.fits(np.noun, verb.subject)]
    if not subjects:
        return None
    subject = pick(rng, subjects)
    if not verb.object:
        return verb.id, subject, None
    objects = [i for i, np in enumerate(participants) if i != subject and lexicon.fits(np.noun, verb.object)]
    return (verb.id, subject, pick(rng, objects)) if objects else None


def _build(participants: list[NP], events: list, place: str, time: str | None) -> Scene:
    individuals, members = [], []
    places = lexicon.ancestors(place)
    for np in participants:
        adjectives = frozenset({lexicon.canonical(np.adjective)}) if np.adjective else frozenset()
        count = COUNTS.get(np.quantifier, 1)
        members.append(range(len(individuals), len(individuals) + count))
        individuals += [Individual(lexicon.ancestors(np.noun), adjectives, places)] * count
    times = frozenset({time}) if time else frozenset()
    facts: list[Event] = [
        (verb, s, o, times)
        for verb, subject, object_ in events
        for s in members[subject]
        for o in (members[object_] if object_ is not None else (None,))
    ]
    return Scene(tuple(participants), tuple(members), tuple(events), place, time, Situation(individuals, facts))


def scene_frames(scene: Scene, count: int, rng: random.Random) -> list[Frame]:
    """Return `count` frames, all true in the scene; the first introduces the participants of its first event."""
    frames = [_introduction(scene, rng)]
    while len(frames) < count:
        frame = _true_frame(scene, rng)
        if frame is not None and frame != frames[-1]:
            frames.append(frame)
    return frames


def _introduction(scene: Scene, rng: random.Random) -> Frame:
    verb, subject, object_ = scene.events[0]
    second = scene.participants[object_] if object_ is not None else None
    place = scene.place if rng.random() < 0.7 else None
    time = scene.time if rng.random() < 0.7 else None
    return reworded(Frame(scene.participants[subject], verb, second, place, time), rng)


def _true_frame(scene: Scene, rng: random.Random) -> Frame | None:
    """Propose a frame about the scene and negate it if it is false; None where that leaves the fragment."""
    if rng.random() < 0.65:
        verb, subject, object_ = pick(rng, scene.events)
        if rng.random() < 0.3 and CONCEPTS[verb].isa:
            verb = CONCEPTS[verb].isa
        elif rng.random() < 0.2 and lexicon.synonyms(verb):
            verb = lexicon.synonyms(verb)[0]
    else:
        event = _random_event(rng, scene.participants)
        if event is None:
            return None
        verb, subject, object_ = event
    place = time = None
    if rng.random() < 0.4:
        place = pick(rng, _PLACES) if rng.random() < 0.3 else pick(rng, sorted(lexicon.ancestors(scene.place)))
    if scene.time and rng.random() < 0.35:
        time = pick(rng, _TIMES) if rng.random() < 0.2 else scene.time
    first = _mention(scene.participants[subject], rng)
    second = _mention(scene.participants[object_], rng) if object_ is not None else None
    frame = Frame(first, verb, second, place, time)
    if problem(frame) is not None:
        return None
    if not true_in(frame, scene.situation):
        frame = negation(frame)
        if frame is None or not true_in(frame, scene.situation):
            return None
    return reworded(frame, rng)


def _mention(np: NP, rng: random.Random) -> NP:
    """Refer to a participant again: by name, the same or a broader noun, with or without its adjective."""
    if np.quantifier == "name":
        return np if rng.random() < 0.8 else NP(pick(rng, ("a", "every", "no")), "person")
    noun, chance = np.noun, rng.random()
    if chance < 0.25 and CONCEPTS[noun].isa:
        noun = CONCEPTS[noun].isa
    elif chance < 0.4 and lexicon.synonyms(noun):
        noun = lexicon.synonyms(noun)[0]
    adjective = np.adjective if rng.random() < 0.4 else None
    if adjective and adjective not in lexicon.adjectives_for(noun):
        adjective = None
    if np.quantifier == "a":
        quantifier = pick(rng, ("the", "the", "the", "a", "every", "no"))
    else:
        at_least = "at least " + pick(rng, _NUMBERS)
        quantifier = pick(rng, ("all", "every", "a", "no", np.quantifier, at_least, at_least))
    return NP(quantifier, noun, adjective)


def document(scene: Scene, rng: random.Random, language: str) -> str:
    """Write sentences about a scene or, in a share `RESTATED`, the same ones twice, in any of the languages."""
    if rng.random() >= RESTATED:
        return _text(scene_frames(scene, 2 + int(rng.random() * 2), rng), language)
    return _twice(scene_frames(scene, 1 + int(rng.random() * 2), rng), language, pick(rng, LANGUAGES), rng)


def claim(frame: Frame, rng: random.Random, language: str) -> str:
    """Write a sentence twice, the second time in the same language or, as often, in any."""
    other = language if rng.random() < 0.5 else pick(rng, LANGUAGES)
    return _twice([reworded(frame, rng)], language, other, rng)


def _twice(frames: Sequence[Frame], language: str, other: str, rng: random.Random) -> str:
    """The sentences in one language and, in other words, in another."""
    again = [with_synonyms(reworded(frame, rng, passive=0.5, front=0.4), rng, 0.3) for frame in frames]
    return _text(frames, language) + ("" if language == other == "zh" else " ") + _text(again, other)


def _text(frames: Sequence[Frame], language: str) -> str:
    return ("" if language == "zh" else " ").join(render(frame, language) for frame in frames)


def corpus(n_documents: int, *, seed: int, claims: float = CLAIMS) -> Iterator[str]:
    """Write documents of two to four sentences for pretraining.

    A share `claims` of the documents are claims, single sentences said twice; none has a meaning that the tasks keep
    for validation. The others are about scenes: all sentences of one are true in its scene, and a share `RESTATED` says
    everything twice, as a passage and its paraphrase or translation stand next to each other. Such pairs teach a small
    encoder within minutes what a large one finds in unaligned text.

    Languages take turns, and documents i and i XOR 4 (0 and 4, 1 and 5, …, 8 and 12, …) resemble each other: the same
    cast in other events, or two claims of nearly the same words, as "the dog bites the cat" and "the cat bites the
    dog". Sentences are separated by a space, by nothing between two Chinese ones.

    Args:
        n_documents: How many, at least 1.
        seed: Of a `random.Random`; the same seed gives the same documents.
        claims: From 0 to 1.

    Raises:
        FlatlingoError: `n_documents` is less than 1, or `claims` no share.

    >>> next(corpus(1, seed=0)) == next(corpus(5, seed=0))
    True
    """
    if n_documents < 1:
        raise FlatlingoError(f"n_documents is {n_documents}: ask for at least one document.")
    if not 0 <= claims <= 1:
        raise FlatlingoError(f"claims is {claims}: it is a share of the documents, from 0 to 1.")
    return _documents(n_documents, random.Random(seed), claims)


def _documents(n_documents: int, rng: random.Random, claims: float) -> Iterator[str]:
    write, subjects = document, []
    for i in range(n_documents):
        position = i % (2 * len(LANGUAGES))
        if position == 0:
            write, subjects = (claim, _claims(rng)) if rng.random() < claims else (document, _scenes(rng))
        yield write(subjects[position], rng, LANGUAGES[position % len(LANGUAGES)])


def _scenes(rng: random.Random) -> list[Scene]:
    """A scene for each language, then another one of the same cast for each."""
    scenes = [make_scene(rng) for _ in LANGUAGES]
    return scenes + [another_scene(scene, rng) for scene in scenes]


def _claims(rng: random.Random) -> list[Frame]:
    """A claim for each language, then one of similar words and another meaning for each."""
    pairs = []
    while len(pairs) < len(LANGUAGES):
        first, second, _ = two_meanings(rng)
        if split_of(first) == split_of(second) == "train":
            pairs.append((first, second))
    firsts, seconds = zip(*pairs, strict=True)
    return [*firsts, *seconds]
