"""Sentences for frames: one small grammar a language.

A frame first becomes a `Clause`, in which the phrases stand in surface order; a negated sentence with an indefinite
object, or one whose subject is "no ...", has an "any" phrase in second place.
"""

from functools import lru_cache
from typing import NamedTuple

from flatlingo.miniworld import german
from flatlingo.miniworld.frame import COUNTS, NP, NUMBERS, UNIVERSAL, Frame
from flatlingo.miniworld.lexicon import FORMS, is_animal, is_person

_cached = lru_cache(maxsize=1 << 16)


class Clause(NamedTuple):
    """A frame in surface order. `first` is the grammatical subject, `second` the object or the agent of a passive."""

    first: NP
    second: NP | None
    verb: str
    negated: bool
    passive: bool
    place: str | None
    time: str | None
    front: str | None


def clause(frame: Frame) -> Clause:
    """Put the phrases of a frame in surface order."""
    first, second = frame.subject, frame.object
    if second and second.quantifier == "a" and (frame.negated or first.quantifier == "no"):
        second = second._replace(quantifier="any")
    if frame.passive:
        first, second = second, first
    return Clause(first, second, frame.verb, frame.negated, frame.passive, frame.place, frame.time, frame.front)


# English --------------------------------------------------------------------------------------------------------------


@_cached
def english_np(np: NP) -> str:
    """English noun phrase."""
    form = FORMS["en"][np.noun]
    quantifier = np.quantifier
    if quantifier == "name":
        return form["word"]
    noun = form["plural"] if quantifier == "all" or quantifier in COUNTS else form["word"]
    if np.adjective:
        noun = f"{FORMS['en'][np.adjective]['word']} {noun}"
    if quantifier == "a" and noun[0] in "aeiou":
        quantifier = "an"
    return f"{quantifier} {noun}"


def english(c: Clause) -> str:
    """English sentence in the present progressive."""
    verb = FORMS["en"][c.verb]
    parts = [english_np(c.first)]
    if c.front:
        parts.insert(0, FORMS["en"][c.place if c.front == "place" else c.time]["word"] + ",")
    parts.append("are" if c.first.quantifier == "all" or c.first.quantifier in COUNTS else "is")
    if c.negated:
        parts.append("not")
    parts.append(f"being {verb['participle']} by" if c.passive else verb["word"])
    if c.second:
        parts.append(english_np(c.second))
    if c.place and c.front != "place":
        parts.append(FORMS["en"][c.place]["word"])
    if c.time and c.front != "time":
        parts.append(FORMS["en"][c.time]["word"])
    return _sentence(parts)


# Spanish --------------------------------------------------------------------------------------------------------------

_SPANISH_DETERMINERS = {  # singular quantifiers: masculine, feminine
    "a": ("un", "una"),
    "the": ("el", "la"),
    "every": ("cada", "cada"),
    "no": ("ningún", "ninguna"),
    "any": ("ningún", "ninguna"),
}
_SPANISH_PLURALS = {
    "all": ("todos los", "todas las"),
    "not every": ("no todos los", "no todas las"),
} | {
    prefix + english_: (f"{spanish_prefix}{spanish_}",) * 2
    for prefix, spanish_prefix in (("", ""), ("at least ", "al menos "))
    for english_, spanish_ in zip(NUMBERS, ("dos", "tres", "cuatro", "cinco"), strict=True)
}


@_cached
def spanish_np(np: NP) -> str:
    """Spanish noun phrase: the adjective follows the noun and agrees with it."""
    form = FORMS["es"][np.noun]
    if np.quantifier == "name":
        return form["word"]
    feminine, plural = form["gender"] == "f", np.quantifier in _SPANISH_PLURALS
    determiner = (_SPANISH_PLURALS if plural else _SPANISH_DETERMINERS)[np.quantifier][feminine]
    noun = form["plural"] if plural else form["word"]
    if np.adjective:
        column = (("word", "plural"), ("feminine", "feminine_plural"))[feminine][plural]
        noun = f"{noun} {FORMS['es'][np.adjective][column]}"
    return f"{determiner} {noun}"


@_cached
def spanish_object(np: NP) -> str:
    """Spanish direct object: persons, and animals that are definite or universal, take "a", and a + el = al."""
    text = spanish_np(np)
    if not is_person(np.noun) and not (is_animal(np.noun) and np.quantifier in ("the", *UNIVERSAL)):
        return text
    return f"al {text[3:]}" if text.startswith("el ") else f"a {text}"


@_cached
def spanish_participle(verb: str, first: NP) -> str:
    """Participle that agrees with the subject of a passive."""
    stem = FORMS["es"][verb]["participle"][:-1]
    ending = "a" if FORMS["es"][first.noun]["gender"] == "f" else "o"
    return stem + ending + ("s" if first.quantifier in _SPANISH_PLURALS else "")


def spanish(c: Clause) -> str:
    """Spanish sentence in the present progressive, as the simple present would be read as a habit."""
    parts = [spanish_np(c.first)]
    if c.front:
        parts.insert(0, FORMS["es"][c.place if c.front == "place" else c.time]["word"] + ",")
    if c.negated:
        parts.append("no")
    parts.append("están" if c.first.quantifier in _SPANISH_PLURALS else "está")
    if c.passive:
        parts += ["siendo", spanish_participle(c.verb, c.first), "por", spanish_np(c.second)]
    else:
        parts.append(FORMS["es"][c.verb]["word"])
        if c.second:
            parts.append(spanish_object(c.second))
    if c.place and c.front != "place":
        parts.append(FORMS["es"][c.place]["word"])
    if c.time and c.front != "time":
        parts.append(FORMS["es"][c.time]["word"])
    return _sentence(parts)


# Chinese --------------------------------------------------------------------------------------------------------------

_CHINESE_DETERMINERS = {"a": "一", "the": "这", "every": "每", "no": "没有一", "not every": "不是每"} | {
    prefix + english_: chinese_prefix + chinese_
    for prefix, chinese_prefix in (("", ""), ("at least ", "至少"))
    for english_, chinese_ in zip(NUMBERS, "两三四五", strict=True)
}
_WITHOUT_CLASSIFIER = {"all": "所有", "any": "任何"}


@_cached
def chinese_np(np: NP) -> str:
    """Chinese noun phrase: determiner, classifier, adjective, noun."""
    form = FORMS["zh"][np.noun]
    if np.quantifier == "name":
        return form["word"]
    adjective = FORMS["zh"][np.adjective]["word"] if np.adjective else ""
    if np.quantifier in _WITHOUT_CLASSIFIER:
        return _WITHOUT_CLASSIFIER[np.quantifier] + adjective + (form["bare"] or form["word"])
    return _CHINESE_DETERMINERS[np.quantifier] + form["classifier"] + adjective + form["word"]


def chinese(c: Clause) -> str:
    """Chinese sentence in the progressive: time and place before the verb, 都 after universals, 被 for the passive."""
    first = c.first.quantifier
    time = FORMS["zh"][c.time]["word"] if c.time else ""
    place = FORMS["zh"][c.place]["word"] if c.place else ""
    text = chinese_np(c.first)
    if c.front == "time":
        text, time = f"{time}，{text}", ""
    elif c.front == "place":
        text, place = f"在{place}，{text}", ""
    text += time
    if first in ("every", "all", "not every"):
        text += "都正在" if c.passive else "都在"
    elif c.negated:
        text += "没有在"
    else:
        text += "在" if first == "no" else "正在"
    verb, second = FORMS["zh"][c.verb], chinese_np(c.second) if c.second else ""
    return (
        f"{text}{place}被{second}{verb['passive'] or verb['word']}。"
        if c.passive
        else f"{text}{place}{verb['word']}{second}。"
    )


# ----------------------------------------------------------------------------------------------------------------------


def _sentence(parts: list[str]) -> str:
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


_RENDERERS = {"en": english, "de": german.sentence, "es": spanish, "zh": chinese}


def render(frame: Frame, language: str) -> str:
    """Say a frame of the fragment (`frame.problem`) in a language.

    Args:
        frame: The meaning and its wording (voice, fronting).
        language: One of `lexicon.LANGUAGES`.

    >>> frame = Frame(NP("a", "dog"), "chase", NP("the", "mouse", "young"), place="garden")
    >>> render(frame, "en"), render(frame, "de")
    ('A dog is chasing the young mouse in the garden.', 'Ein Hund verfolgt die junge Maus im Garten.')
    """
    return _RENDERERS[language](clause(frame))
