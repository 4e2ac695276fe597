"""The words of the mini world: one concept table and one table of forms per language.

`concepts.tsv` holds what does not depend on a language: the kind of a concept, its hypernym (`isa`), the concept it is
a synonym of (`same_as`), what cannot hold beside it (`excludes`), what is not beside but partly in it, in the words of
some language (`overlaps`: Krankenschwestern are women, a school may have a kitchen), the nouns it goes with (`subject`
and `object` of a verb; `subject` of an adjective is what it can modify), and `flags`: of a verb "mutual" (nearly
symmetric) and "active" (no passive); "loose" of what one may doubt to be a case of its hypernym (跳舞 of 移动, kitchens
of houses: schools have some). `en.tsv`, `de.tsv`, `es.tsv` and `zh.tsv` hold the forms:

* English: noun `word`/`plural`; verb `word` (-ing form) and `participle`.
* German: noun `word`/`gender`/`plural`/`oblique` (weak nouns: every singular case but the nominative); verb `word`
  (third person singular), `plural`, `participle`, separable `prefix`; adjective `word` (stem).
* Spanish: noun `word`/`gender`/`plural`; verb `word` (gerund) and `participle`; adjective
  `word`/`feminine`/`plural`/`feminine_plural`.
* Chinese: noun `word`/`classifier`, `bare` where it differs without a classifier (所有车辆); verb `word`, `passive`
  where it differs after 被; adjective `word` in its attributive form.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "de", "es", "zh")
_FOLDER = Path(__file__).parent


def read_table(name: str) -> list[dict[str, str]]:
    """Read the rows of `<name>.tsv` of this folder as dictionaries, one per concept."""
    with (_FOLDER / f"{name}.tsv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


@dataclass(frozen=True)
class Concept:
    """One row of `concepts.tsv`; the fields that list concepts are tuples of ids."""

    id: str
    kind: str
    isa: str | None
    same_as: str | None
    excludes: tuple[str, ...]
    overlaps: tuple[str, ...]
    subject: tuple[str, ...]
    object: tuple[str, ...]
    flags: tuple[str, ...]


def _load_concepts() -> dict[str, Concept]:
    concepts = {}
    for row in read_table("concepts"):
        lists = {field: tuple(row[field].split()) for field in ("excludes", "overlaps", "subject", "object", "flags")}
        isa = row["isa"] or (concepts[row["same_as"]].isa if row["same_as"] else None)
        concepts[row["id"]] = Concept(row["id"], row["kind"], isa, row["same_as"] or None, **lists)
    return concepts


CONCEPTS = _load_concepts()
FORMS = {language: {row["id"]: row for row in read_table(language)} for language in LANGUAGES}


@cache
def of_kind(kind: str) -> tuple[str, ...]:
    """Ids of all concepts of one kind ("noun", "verb", "adjective", "place", "time", "name"), in the table's order."""
    return tuple(concept.id for concept in CONCEPTS.values() if concept.kind == kind)


@cache
def canonical(concept: str) -> str:
    """Return the concept that stands for its synonyms.

    >>> canonical("physician"), canonical("doctor")
    ('doctor', 'doctor')
    """
    return CONCEPTS[concept].same_as or concept


@cache
def ancestors(concept: str) -> frozenset[str]:
    """Return the canonical concept and everything above it.

    >>> sorted(ancestors("poodle"))
    ['animal', 'dog', 'poodle']
    """
    parent = CONCEPTS[concept].isa
    return frozenset({canonical(concept)}) | (ancestors(parent) if parent else frozenset())


@cache
def strictly_above(concept: str) -> str | None:
    """The hypernym that whatever is called by a concept is called by in every language, if there is one.

    >>> strictly_above("run"), strictly_above("dance"), CONCEPTS["dance"].isa
    ('move', None, 'move')
    """
    return None if "loose" in CONCEPTS[concept].flags else CONCEPTS[concept].isa


@cache
def strictly_below(concept: str) -> tuple[str, ...]:
    """The `hyponyms` that a concept is true of in every language.

    >>> strictly_below("move")
    ('run', 'swim')
    """
    return tuple(below for below in hyponyms(concept) if strictly_above(below))


@cache
def hyponyms(concept: str) -> tuple[str, ...]:
    """Concepts one level below, synonyms included, names left out.

    >>> hyponyms("dog")
    ('poodle', 'dachshund')
    """
    below = (c for c in CONCEPTS.values() if c.isa == canonical(concept) and c.kind == CONCEPTS[concept].kind)
    return tuple(c.id for c in below)


@cache
def synonyms(concept: str) -> tuple[str, ...]:
    """Other concepts with the same meaning.

    >>> synonyms("doctor"), synonyms("dog")
    (('physician',), ())
    """
    same = (c.id for c in CONCEPTS.values() if canonical(c.id) == canonical(concept) and c.id != concept)
    return tuple(same)


@cache
def siblings(concept: str) -> tuple[str, ...]:
    """Concepts of other meaning below the same hypernym; none for a concept without a hypernym."""
    parent = CONCEPTS[concept].isa
    return tuple(c for c in hyponyms(parent) if canonical(c) != canonical(concept)) if parent else ()


@cache
def exclude(a: str, b: str) -> bool:
    """Whether two concepts cannot hold together: listed or inherited; two places unless one is in the other.

    >>> exclude("buy", "sell"), exclude("sleep", "whisper"), exclude("kitchen", "garden"), exclude("kitchen", "house")
    (True, True, True, False)
    """
    if CONCEPTS[a].kind == "place":
        return canonical(a) not in ancestors(b) and canonical(b) not in ancestors(a)
    return any(
        canonical(y) in CONCEPTS[x].excludes or canonical(x) in CONCEPTS[y].excludes
        for x in ancestors(a)
        for y in ancestors(b)
    )


@cache
def overlap(a: str, b: str) -> bool:
    """Whether one may be partly the other in some language: neither is said to be another thing, or another place.

    >>> overlap("woman", "nurse"), overlap("woman", "teacher"), overlap("kitchen", "school")
    (True, False, True)
    """
    return b in CONCEPTS[a].overlaps or a in CONCEPTS[b].overlaps


@cache
def excluded(concept: str) -> tuple[str, ...]:
    """All concepts of the same kind that cannot hold beside this one."""
    return tuple(other for other in of_kind(CONCEPTS[concept].kind) if exclude(concept, other))


@cache
def fits(noun: str, classes: tuple[str, ...]) -> bool:
    """Whether a noun or name falls under one of the classes."""
    return not ancestors(noun).isdisjoint(classes)


@cache
def nouns_for(classes: tuple[str, ...]) -> tuple[str, ...]:
    """All nouns that fall under one of the classes."""
    return tuple(noun for noun in of_kind("noun") if fits(noun, classes))


@cache
def adjectives_for(noun: str) -> tuple[str, ...]:
    """All adjectives that can modify a noun."""
    return tuple(a for a in of_kind("adjective") if fits(noun, CONCEPTS[a].subject))


def is_person(noun: str) -> bool:
    """Whether a noun or name denotes persons."""
    return "person" in ancestors(noun)


def is_animal(noun: str) -> bool:
    """Whether a noun denotes animals."""
    return "animal" in ancestors(noun)
