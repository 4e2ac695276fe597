"""The one exception for mistakes a user can mend."""

import difflib
from collections.abc import Iterable, Sequence


class FlatlingoError(ValueError):
    """Something the user gave or the machine lacks; the message names the thing, the reason and the fix.

    The command line prints the message without a traceback and exits with code 2.
    """


class DivergedError(FlatlingoError):
    """A training whose loss is not finite any more: a result of its settings, which a repetition would have too."""


def first_line(error: BaseException) -> str:
    r"""What an error says in one line; its kind if it says nothing.

    >>> first_line(ValueError("no such layer\n  at 3")), first_line(MemoryError()), first_line(KeyError("x"))
    ('no such layer', 'MemoryError', "KeyError 'x'")
    """
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__} {said}".strip() if isinstance(error, KeyError) or not said else said


def listed(names: Sequence[str]) -> str:
    """The names in a sentence, or the first four of them.

    >>> listed(["a", "b"]), listed("abcdef")
    ('a, b', 'a, b, c, d and 2 more')
    """
    more = len(names) - 4
    return ", ".join(names[:4]) + (f" and {more} more" if more > 0 else "")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest known one.

    >>> unknown("task", "pawsX", ["xnli", "pawsx"])
    "unknown task 'pawsX'; did you mean 'pawsx'? known: xnli, pawsx"
    """
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"unknown {kind} {name!r}; {f'did you mean {close[0]!r}? ' if close else ''}known: {', '.join(known)}"
