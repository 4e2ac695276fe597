"""Rows of a user's own, from a TSV or JSONL file."""

import json
from collections.abc import Iterator
from pathlib import Path

from flatlingo.errors import FlatlingoError

TEXTS = ("text_a", "text_b")


def read_rows(path: str | Path) -> list[dict[str, str]]:
    r"""Read single texts or pairs of texts; `label` and any other column is ignored, for Tr(F) needs none.

    A TSV file has a first line with the columns' names, one row a line after it, and no quoting. A JSONL file has one
    object a line. Both are UTF-8; blank lines are skipped.

    Args:
        path: a file that ends in .tsv or .jsonl.

    Returns:
        Dicts of `text_a` and, if the file has it, `text_b`.

    Raises:
        FlatlingoError: the file cannot be read, has no rows, lacks `text_a`, or has a malformed line (named).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mine.tsv")
        ...     _ = path.write_text("text_a\tlabel\nIt rains.\t1\n")
        ...     read_rows(path)
        [{'text_a': 'It rains.'}]
    """
    path = Path(path)
    readers = {".tsv": _tsv, ".jsonl": _jsonl}
    if path.suffix not in readers:
        raise FlatlingoError(f"{path}: rows are read from .tsv and .jsonl files; convert it to one of these")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FlatlingoError(f"{path}: cannot be read: {error.strerror}") from error
    rows = []
    try:
        for number, row in readers[path.suffix](_lines(content)):
            rows.append(_checked(number, row, rows[0] if rows else row))
    except _LineError as error:
        raise FlatlingoError(f"{path}, line {error.number}: {error}") from error
    if not rows:
        raise FlatlingoError(f"{path}: no rows in this file")
    return rows


class _LineError(ValueError):
    """What is wrong with a line that could not be made a row."""

    def __init__(self, number: int, reason: str):
        super().__init__(reason)
        self.number = number


def _lines(content: bytes) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise _LineError(number, "not UTF-8; save the file in this encoding") from error
        if text.strip():
            yield number, text


def _tsv(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict]]:
    number, header = next(lines, (1, ""))
    columns = header.split("\t")
    if "text_a" not in columns or len(set(columns)) < len(columns):
        raise _LineError(number, f"must name the columns, text_a and perhaps text_b among them; it is {header[:80]!r}")
    for number, line in lines:
        values = line.split("\t")
        if len(values) != len(columns):
            raise _LineError(number, f"{len(values)} columns, tab separated, where the first line has {len(columns)}")
        yield number, dict(zip(columns, values, strict=True))


def _jsonl(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict]]:
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _LineError(number, f"not JSON: {error}") from error
        if not isinstance(row, dict) or "text_a" not in row:
            raise _LineError(number, 'not an object with "text_a"')
        yield number, row


def _checked(number: int, row: dict, first: dict) -> dict[str, str]:
    """The texts of a row, which must be those that the first row has."""
    texts = {column: row[column] for column in TEXTS if column in row}
    if ("text_b" in texts) != ("text_b" in first):
        raise _LineError(number, "text_b must be in all rows or in none")
    for column, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise _LineError(number, f"{column} is not a text, or an empty one")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _LineError(number, f"{column} has half of a surrogate pair, which no encoding knows")
    return texts
