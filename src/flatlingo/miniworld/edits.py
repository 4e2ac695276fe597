"""Edits of a frame whose effect on truth is known: the natural logic of the mini world.

An edit takes a frame f to a frame g and names their relation, in the manner of MacCartney & Manning (2009):

=============  ==========================================  =========================================
`FORWARD`      f entails g, not the other way round         a dog runs → an animal runs
`REVERSE`      g entails f, not the other way round         an animal runs → a dog runs
`NEGATION`     exactly one of f and g is true               every dog runs → not every dog runs
`EXCLUSION`    not both are true, maybe neither             Laura is in the garden → … in the kitchen
`INDEPENDENT`  neither says anything about the other        no dog runs → no cat runs
=============  ==========================================  =========================================

Which of FORWARD and REVERSE a broader word gives depends on the polarity of its position: "every" and "no" turn their
noun around, "no", "not every" and negation turn the verb and all that follows it around.
"""

from collections.abc import Iterator
from typing import NamedTuple

from flatlingo.miniworld import lexicon
from flatlingo.miniworld.frame import COUNTS, DEFINITE, NP, NUMBERS, UNIVERSAL, Frame, negation, problem
from flatlingo.miniworld.lexicon import CONCEPTS

FORWARD, REVERSE, NEGATION, EXCLUSION, INDEPENDENT = "forward", "reverse", "negation", "exclusion", "independent"

# What two edits in a row amount to. Pairs that are not listed leave the relation open and are never used.
JOIN = {
    (FORWARD, FORWARD): FORWARD,
    (FORWARD, NEGATION): EXCLUSION,
    (FORWARD, EXCLUSION): EXCLUSION,
    (REVERSE, REVERSE): REVERSE,
    (REVERSE, NEGATION): INDEPENDENT,
    (NEGATION, FORWARD): INDEPENDENT,
    (NEGATION, REVERSE): EXCLUSION,
    (NEGATION, EXCLUSION): REVERSE,
    (EXCLUSION, REVERSE): EXCLUSION,
    (EXCLUSION, NEGATION): FORWARD,
}


class Edit(NamedTuple):
    """An edit: its name, the relation of the old frame to the new one, and a frame with the changes to it.

    `loose` marks edits after which a reader may take the new frame to entail the old one *and* back (adding "today",
    "a dog" → "the dog"): they may not lead to the label "neutral".
    """

    operation: str
    relation: str
    base: Frame
    changes: dict
    loose: bool = False

    @property
    def frame(self) -> Frame:
        """The new frame, made when asked for: of a hundred edits of a frame one or two are used."""
        return self.base._replace(**self.changes)

    @property
    def valid(self) -> bool:
        """Whether the new frame is inside the fragment."""
        return problem(self.frame) is None


def edits(frame: Frame) -> list[Edit]:
    """All edits of a frame in plain wording; not all are `valid`."""
    found = [*_noun_phrase_edits(frame), *_quantifier_edits(frame), *_person_edits(frame)]
    found += [*_verb_edits(frame), *_place_edits(frame), *_time_edits(frame), *_role_edits(frame)]
    if opposite := negation(frame):
        found.append(Edit("negation", NEGATION, opposite, {}))
    return found


def predicate_polarity(frame: Frame) -> int:
    """+1 where a broader verb, place or time makes the sentence weaker, -1 where it makes it stronger."""
    return -1 if frame.negated or frame.subject.quantifier in ("no", "not every") else 1


def _noun_polarity(quantifier: str, polarity: int) -> int:
    if quantifier in DEFINITE:
        return 0
    return -polarity if quantifier in UNIVERSAL else polarity


def _broader(polarity: int) -> str:
    return FORWARD if polarity > 0 else REVERSE


def _narrower(polarity: int) -> str:
    return REVERSE if polarity > 0 else FORWARD


# Noun phrases ---------------------------------------------------------------------------------------------------------


def _noun_phrase_edits(frame: Frame) -> Iterator[Edit]:
    polarity = _noun_polarity(frame.subject.quantifier, -1 if frame.subject.quantifier == "no" else 1)
    swappable = frame.subject.quantifier not in ("a", *COUNTS)
    for np, relation, operation in _restrictor_edits(frame.subject, polarity, swappable):
        yield Edit(f"subject {operation}", relation, frame, {"subject": np})
    if frame.object is None:
        return
    predicate = predicate_polarity(frame)
    polarity = _noun_polarity(frame.object.quantifier, predicate)
    swappable = predicate < 0 or frame.object.quantifier in UNIVERSAL
    for np, relation, operation in _restrictor_edits(frame.object, polarity, swappable):
        yield Edit(f"object {operation}", relation, frame, {"object": np})


def _restrictor_edits(np: NP, polarity: int, swappable: bool) -> Iterator[tuple[NP, str, str]]:
    """Edits of noun and adjective. `swappable`: another noun is clearly about others (no for "a dog runs")."""
    if not polarity:
        return
    parent = CONCEPTS[np.noun].isa
    if parent:
        yield NP(np.quantifier, parent, np.adjective), _broader(polarity), "hypernym"
    for noun in lexicon.hyponyms(np.noun):
        yield NP(np.quantifier, noun, np.adjective), _narrower(polarity), "hyponym"
    if np.adjective:
        yield NP(np.quantifier, np.noun), _broader(polarity), "adjective dropped"
    else:
        for adjective in lexicon.adjectives_for(np.noun):
            yield NP(np.quantifier, np.noun, adjective), _narrower(polarity), "adjective added"
    if swappable:
        for noun in lexicon.siblings(np.noun):
            if not lexicon.overlap(noun, np.noun):
                yield NP(np.quantifier, noun, np.adjective), INDEPENDENT, "noun swapped"
        for adjective in lexicon.excluded(np.adjective) if np.adjective else ():
            yield NP(np.quantifier, np.noun, adjective), INDEPENDENT, "antonym"


# Quantifiers ----------------------------------------------------------------------------------------------------------


def _quantifier_edits(frame: Frame) -> Iterator[Edit]:
    subject = frame.subject
    for quantifier, relation in _subject_quantifiers(subject.quantifier):
        yield Edit("subject quantifier", relation, frame, {"subject": subject._replace(quantifier=quantifier)})
    if subject.quantifier == "a":
        definite = subject._replace(quantifier="the")
        yield Edit("subject made definite", REVERSE, frame, {"subject": definite}, loose=True)
    if frame.object is None or predicate_polarity(frame) < 0:
        return
    for quantifier, relation in _existential_quantifiers(frame.object.quantifier):
        yield Edit("object quantifier", relation, frame, {"object": frame.object._replace(quantifier=quantifier)})


def _subject_quantifiers(quantifier: str) -> Iterator[tuple[str, str]]:
    yield from _existential_quantifiers(quantifier)
    if quantifier in UNIVERSAL:
        yield "no", EXCLUSION
        yield from ((f"at least {number}", INDEPENDENT) for number in NUMBERS)
    elif quantifier == "no":
        yield from ((other, EXCLUSION) for other in (*UNIVERSAL, *COUNTS))
    elif quantifier in COUNTS:
        yield "no", EXCLUSION


def _existential_quantifiers(quantifier: str) -> Iterator[tuple[str, str]]:
    if quantifier in UNIVERSAL:
        yield "a", FORWARD
    elif quantifier == "a":
        yield from ((other, REVERSE) for other in (*UNIVERSAL, *COUNTS))
    elif quantifier in COUNTS:
        yield "a", FORWARD
        exact = quantifier in NUMBERS
        for other, number in COUNTS.items():  # two and three side by side may be read as exact: one must be "at least"
            if number < COUNTS[quantifier] and other not in NUMBERS:
                yield other, FORWARD
            elif number > COUNTS[quantifier] and not exact:
                yield other, REVERSE


def _person_edits(frame: Frame) -> Iterator[Edit]:
    """Between a name and "person": every person runs → Laura runs → a person runs, and the same for "no"."""
    subject, negated = frame.subject, frame.negated
    if subject.quantifier == "name":
        weaker, stronger = ("not every", "no") if negated else ("a", "every")
        yield Edit("name generalised", FORWARD, frame, {"subject": NP(weaker, "person"), "negated": False})
        yield Edit("name generalised", REVERSE, frame, {"subject": NP(stronger, "person"), "negated": False})
        for name in lexicon.of_kind("name"):
            if name != subject.noun:
                yield Edit("name swapped", INDEPENDENT, frame, {"subject": NP("name", name)})
    elif subject.noun == "person" and subject.adjective is None and subject.quantifier in _PERSON_QUANTIFIERS:
        relation, negative = _PERSON_QUANTIFIERS[subject.quantifier]
        for name in lexicon.of_kind("name"):
            yield Edit("name inserted", relation, frame, {"subject": NP("name", name), "negated": negative})


_PERSON_QUANTIFIERS = {
    "a": (REVERSE, False),
    "every": (FORWARD, False),
    "all": (FORWARD, False),
    "no": (FORWARD, True),
    "not every": (REVERSE, True),
}

# The predicate --------------------------------------------------------------------------------------------------------


def _same_moment(frame: Frame) -> bool:
    """Whether two things that exclude each other cannot both be said; an evening has room for both."""
    subject = frame.subject.quantifier
    return frame.time in (None, "noon") and (subject in DEFINITE or subject in UNIVERSAL)


def _verb_edits(frame: Frame) -> Iterator[Edit]:
    polarity = predicate_polarity(frame)
    if parent := lexicon.strictly_above(frame.verb):
        yield Edit("verb hypernym", _broader(polarity), frame, {"verb": parent})
    for verb in lexicon.strictly_below(frame.verb):
        yield Edit("verb hyponym", _narrower(polarity), frame, {"verb": verb})
    if polarity < 0:
        for verb in lexicon.excluded(frame.verb):
            yield Edit("verb swapped", INDEPENDENT, frame, {"verb": verb})
    elif _same_moment(frame) and (frame.object is None or frame.object.quantifier in (*DEFINITE, *UNIVERSAL)):
        for verb in lexicon.excluded(frame.verb):
            yield Edit("verb swapped", EXCLUSION, frame, {"verb": verb})


def _place_edits(frame: Frame) -> Iterator[Edit]:
    polarity = predicate_polarity(frame)
    if frame.place is None:
        for place in lexicon.of_kind("place"):
            yield Edit("place added", _narrower(polarity), frame, {"place": place})
        return
    yield Edit("place dropped", _broader(polarity), frame, {"place": None})
    if parent := lexicon.strictly_above(frame.place):
        yield Edit("place hypernym", _broader(polarity), frame, {"place": parent})
    for place in lexicon.strictly_below(frame.place):
        yield Edit("place hyponym", _narrower(polarity), frame, {"place": place})
    exclusive = _same_moment(frame) and (frame.object is None or frame.object.quantifier == "name")
    if polarity < 0 or exclusive:
        for place in lexicon.excluded(frame.place):
            relation = INDEPENDENT if polarity < 0 else EXCLUSION
            if not lexicon.overlap(place, frame.place):
                yield Edit("place swapped", relation, frame, {"place": place})


def _time_edits(frame: Frame) -> Iterator[Edit]:
    """A time is added and dropped in plain statements only: who is not shouting now may shout this evening."""
    polarity = predicate_polarity(frame)
    parts = lexicon.hyponyms("today")
    if frame.time is None:
        if polarity > 0:
            for part in parts:
                yield Edit("time added", REVERSE, frame, {"time": part})
            yield Edit("time added", REVERSE, frame, {"time": "today"}, loose=True)
        return
    if polarity > 0:
        yield Edit("time dropped", FORWARD, frame, {"time": None}, loose=frame.time == "today")
    if frame.time == "today":
        for part in parts:
            yield Edit("time hyponym", _narrower(polarity), frame, {"time": part})
        return
    yield Edit("time hypernym", _broader(polarity), frame, {"time": "today"})


def _role_edits(frame: Frame) -> Iterator[Edit]:
    """Laura is not helping Emma → Emma is not helping Laura."""
    definite = frame.object and frame.object.quantifier in DEFINITE and frame.subject.quantifier in DEFINITE
    if definite and frame.negated and "mutual" not in CONCEPTS[frame.verb].flags:
        yield Edit("roles swapped", INDEPENDENT, frame, {"subject": frame.object, "object": frame.subject})
