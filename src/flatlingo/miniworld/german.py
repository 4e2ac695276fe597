"""German sentences: cases, adjective endings, verb-second order, separable verbs."""

from functools import lru_cache

from flatlingo.miniworld.frame import DEFINITE, NP, NUMBERS
from flatlingo.miniworld.lexicon import FORMS

_cached = lru_cache(maxsize=1 << 16)

# Endings by case, then gender m, f, n: jeder and der with weak adjectives, ein and kein with mixed ones.
_DER = {"nom": ("er", "e", "es"), "acc": ("en", "e", "es"), "dat": ("em", "er", "em")}
_EIN = {"nom": ("", "e", ""), "acc": ("en", "e", ""), "dat": ("em", "er", "em")}
_WEAK = {"nom": ("e", "e", "e"), "acc": ("en", "e", "e"), "dat": ("en", "en", "en")}
_MIXED = {"nom": ("er", "e", "es"), "acc": ("en", "e", "es"), "dat": ("en", "en", "en")}
_THE = {"nom": ("der", "die", "das"), "acc": ("den", "die", "das"), "dat": ("dem", "der", "dem")}
_EIN_WORDS = {"a": "ein", "no": "kein", "any": "kein", "any after no": "ein"}
_JEDER_WORDS = {"every": "jed", "not every": "nicht jed"}
_NUMERALS = {
    prefix + english: german_prefix + german
    for prefix, german_prefix in (("", ""), ("at least ", "mindestens "))
    for english, german in zip(NUMBERS, ("zwei", "drei", "vier", "fünf"), strict=True)
}


@_cached
def noun_phrase(np: NP, case: str) -> str:
    """German noun phrase in the case "nom", "acc" or "dat"."""
    form = FORMS["de"][np.noun]
    if np.quantifier == "name":
        return form["word"]
    if np.quantifier == "all" or np.quantifier in _NUMERALS:
        return _plural(np, case)
    gender = "mfn".index(form["gender"])
    if np.quantifier in _EIN_WORDS:
        determiner, ending = _EIN_WORDS[np.quantifier] + _EIN[case][gender], _MIXED[case][gender]
    elif np.quantifier == "the":
        determiner, ending = _THE[case][gender], _WEAK[case][gender]
    else:
        determiner, ending = _JEDER_WORDS[np.quantifier] + _DER[case][gender], _WEAK[case][gender]
    noun = form["word"] if case == "nom" else form["oblique"] or form["word"]
    return f"{determiner} {_adjective(np, ending)}{noun}"


def _plural(np: NP, case: str) -> str:
    dative = case == "dat"
    if np.quantifier == "all":  # alle kleinen Hunde: weak
        determiner, ending = "allen" if dative else "alle", "en"
    else:  # zwei kleine Hunde: strong
        determiner, ending = _NUMERALS[np.quantifier], "en" if dative else "e"
    noun = FORMS["de"][np.noun]["plural"]
    if dative and noun[-1] not in "ns":
        noun += "n"
    return f"{determiner} {_adjective(np, ending)}{noun}"


def _adjective(np: NP, ending: str) -> str:
    return f"{FORMS['de'][np.adjective]['word']}{ending} " if np.adjective else ""


def _agent(np: NP) -> str:
    text = noun_phrase(np, "dat")
    return f"vom {text[4:]}" if text.startswith("dem ") else f"von {text}"


def _object(np: NP, negated: bool) -> str:
    if np.quantifier == "any" and not negated:  # kein Hund jagt eine Katze
        np = NP("any after no", np.noun, np.adjective)
    return noun_phrase(np, "acc")


def sentence(c) -> str:
    """German sentence in the present tense for a `grammar.Clause`.

    A definite object stands before the time, another one after it; "nicht" ends the middle of the sentence.
    """
    verb = FORMS["de"][c.verb]
    plural = c.first.quantifier == "all" or c.first.quantifier in _NUMERALS
    time = FORMS["de"][c.time]["word"] if c.time and c.front != "time" else ""
    place = FORMS["de"][c.place]["word"] if c.place and c.front != "place" else ""
    negation = "nicht" if c.negated and not (c.second and c.second.quantifier == "any") else ""
    if c.passive:
        finite, last = "werden" if plural else "wird", verb["participle"]
        middle = [time, place, _agent(c.second)]
    else:
        finite, last = verb["plural"] if plural else verb["word"], verb["prefix"]
        second = _object(c.second, c.negated) if c.second else ""
        middle = [second, time] if c.second and c.second.quantifier in DEFINITE else [time, second]
        middle += [negation, place]  # never both: `frame.problem`
    first = noun_phrase(c.first, "nom")
    if c.front:
        opening = [FORMS["de"][c.place if c.front == "place" else c.time]["word"], finite, first]
    else:
        opening = [first, finite]
    text = " ".join(part for part in (*opening, *middle, last) if part)
    return f"{text[0].upper()}{text[1:]}."
