"""The meaning of a sentence, before any language: noun phrases and frames."""

from typing import NamedTuple

from flatlingo.miniworld import lexicon

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}
COUNTS = NUMBERS | {f"at least {word}": number for word, number in NUMBERS.items()}
UNIVERSAL = ("every", "all")
DEFINITE = ("name", "the")
SINGLE = ("a", "name", "the")
QUANTIFIERS = ("a", "the", "name", *UNIVERSAL, "no", "not every", *COUNTS)


class NP(NamedTuple):
    """A noun phrase: a quantifier of `QUANTIFIERS`, a noun ("name": the id of a proper name), maybe an adjective."""

    quantifier: str
    noun: str
    adjective: str | None = None


class Frame(NamedTuple):
    """The meaning of one sentence with two choices of wording, `passive` and `front`, that do not change it.

    `front` is None, "place" or "time": the adverbial that opens the sentence. All other fields are concept ids.
    """

    subject: NP
    verb: str
    object: NP | None = None
    place: str | None = None
    time: str | None = None
    negated: bool = False
    passive: bool = False
    front: str | None = None

    @property
    def meaning(self) -> tuple:
        """What the frame says: equal for frames that differ in voice, fronting, synonyms or every/all only."""
        return (
            _canonical_np(self.subject),
            lexicon.canonical(self.verb),
            self.object and _canonical_np(self.object),
            self.place,
            self.time,
            self.negated,
        )


def _canonical_np(np: NP) -> tuple[str, str, str | None]:
    quantifier = "every" if np.quantifier == "all" else np.quantifier
    return quantifier, lexicon.canonical(np.noun), np.adjective and lexicon.canonical(np.adjective)


def can_be_passive(frame: Frame) -> bool:
    """Whether the passive of a frame exists and means the same, so that no quantifier changes its scope.

    There is none under negation: Chinese would say that something has not been done, not that it is not going on.
    """
    if frame.object is None or "active" in lexicon.CONCEPTS[frame.verb].flags or frame.negated:
        return False
    subject, object_ = frame.subject.quantifier, frame.object.quantifier
    if subject in ("no", "not every"):
        return False
    return subject in DEFINITE or object_ in DEFINITE or (subject in SINGLE and object_ in SINGLE)


def adverbials(frame: Frame) -> tuple[str, ...]:
    """What can open the sentence, of "place" and "time".

    A place only before a single subject: "in the garden, every dog is running" speaks of the dogs in the garden alone.
    """
    place = frame.place and frame.subject.quantifier in SINGLE
    return (("place",) if place else ()) + (("time",) if frame.time else ())


def problem(frame: Frame) -> str | None:
    """Say why a frame is outside the fragment, None if it is inside.

    The fragment leaves out what is ambiguous in one of the languages: two quantifiers whose order matters, negation
    with an indefinite subject or beside a place ("Laura is not sleeping in the garden", but elsewhere), a place beside
    a universal object ("every cat in the garden") or in front of a quantified subject (`adverbials`), and a definite
    phrase that may mean the other participant ("the person is praising Laura").
    """
    subject, object_ = frame.subject, frame.object
    verb = lexicon.CONCEPTS[frame.verb]
    if (object_ is None) != (not verb.object):
        return f"verb {verb.id!r} {'needs an' if verb.object else 'takes no'} object"
    for np, classes in ((subject, verb.subject), (object_, verb.object)):
        if np is None:
            continue
        if np.quantifier not in QUANTIFIERS:
            return f"quantifier {np.quantifier!r} is unknown"
        if (np.quantifier == "name") != (lexicon.CONCEPTS[np.noun].kind == "name"):
            return f"{np.noun!r} does not go with quantifier {np.quantifier!r}"
        if not lexicon.fits(np.noun, classes):
            return f"{np.noun!r} does not go with verb {verb.id!r}"
        if np.adjective and (np.quantifier == "name" or np.adjective not in lexicon.adjectives_for(np.noun)):
            return f"{np.adjective!r} does not go with {np.noun!r}"
    if frame.front and frame.front not in adverbials(frame):
        return f"there is no {frame.front} that could stand in front"
    if frame.negated and subject.quantifier not in DEFINITE:
        return "only a sentence about a name or 'the' can be negated"
    if frame.negated and frame.place:
        return "a place beside a negation is ambiguous"
    if object_ is not None and (reason := _object_problem(frame)):
        return reason
    if frame.passive and not can_be_passive(frame):
        return "the passive would not mean the same"
    return None


def _object_problem(frame: Frame) -> str | None:
    object_ = frame.object
    quantifier = object_.quantifier
    if quantifier in ("no", "not every"):
        return f"quantifier {quantifier!r} is for subjects"
    if quantifier not in SINGLE and (frame.negated or frame.subject.quantifier not in DEFINITE):
        return f"quantifier {quantifier!r} in the object needs a name or 'the' as subject and no negation"
    if quantifier in UNIVERSAL and frame.place:
        return "a place beside a universal object is ambiguous"
    if frame.subject == object_ and quantifier == "name":
        return "subject and object are the same"
    nouns = (lexicon.ancestors(frame.subject.noun), lexicon.ancestors(object_.noun))
    if "the" in (frame.subject.quantifier, quantifier) and (nouns[0] <= nouns[1] or nouns[1] <= nouns[0]):
        return "subject and object may be the same"
    return None


def active(frame: Frame) -> Frame:
    """Return the frame in its plain wording: active voice, nothing in front."""
    return frame._replace(passive=False, front=None)


_OPPOSITE = {"a": "no", "no": "a", "every": "not every", "all": "not every", "not every": "every"}


def negation(frame: Frame) -> Frame | None:
    """Return the frame in plain wording that is true just when this one is false; None where the fragment has none.

    >>> negation(Frame(NP("every", "dog"), "sleep")).subject.quantifier
    'not every'
    """
    plain, quantifier = active(frame), frame.subject.quantifier
    if quantifier in DEFINITE:
        opposite = plain._replace(negated=not frame.negated)
    elif quantifier in _OPPOSITE:
        opposite = plain._replace(subject=frame.subject._replace(quantifier=_OPPOSITE[quantifier]))
    else:
        return None
    return None if problem(opposite) else opposite
