"""Rows in TSV and JSONL files: which lines hold which values, and rows of texts of a user's own."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flatlingo.errors import FlatlingoError

TEXTS = ("text_a", "text_b")
HALF_A_PAIR = "half of a surrogate pair, which no encoding knows"
# A value as CSV writers quote it, or one without any quote; then what ends it.
VALUE = re.compile(r'("(?:[^"]|"")*+"|[^"\t\r\n]*+)(\t|\r?\n|\Z)')


class LineError(ValueError):
    """What is wrong with a line that could not be made a row.

    Attributes:
        number: of the line, from 1.
    """

    def __init__(self, number: int, reason: str):
        super().__init__(reason)
        self.number = number


class TsvRow(NamedTuple):
    """A row of a tab separated file.

    Attributes:
        number: of its first line, from 1.
        values: its values, without the quotes that a CSV writer has put around them.
        quoted: whether there were such quotes.
    """

    number: int
    values: list[str]
    quoted: bool


def read_rows(path: str | Path) -> list[dict[str, str]]:
    r"""Read single texts or pairs of texts; `label` and any other column is ignored, for Tr(F) needs none.

    A TSV file has a first line with the columns' names and one row per line after it, either as it is or as a CSV
    writer quotes it (pandas' `to_csv(sep="\t")`); see `tsv_rows`. A JSONL file has one object per line. Both are
    UTF-8; blank lines are skipped.

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
    readers = {".tsv": _named_tsv, ".jsonl": _named_jsonl}
    if path.suffix not in readers:
        raise FlatlingoError(f"{path}: rows are read from .tsv and .jsonl files; convert it to one of these")
    rows = []
    try:
        for number, row in readers[path.suffix](read_text(path)):
            rows.append(_checked(number, row, rows[0] if rows else row))
    except LineError as error:
        raise FlatlingoError(f"{path}, line {error.number}: {error}") from error
    if not rows:
        raise FlatlingoError(f"{path}: no rows in this file")
    return rows


def misspelt(columns: Iterable[str]) -> str | None:
    """What is wrong with a column that is `text_a` or `text_b` but for case or spaces, and that would be ignored."""
    for name in columns:
        if name not in TEXTS and (meant := str(name).strip().casefold()) in TEXTS:
            return f"a column {name!r}, which is not {meant!r}; rename it"
    return None


def texts_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a row by column: `text_a` and, for pairs, `text_b`."""
    return {column: row[column] for column in TEXTS if column in row}


def has_half_a_pair(text: str) -> bool:
    r"""Whether a text was cut in the middle of a character that JSON writes as two, as emojis are.

    >>> has_half_a_pair("\ud83d"), has_half_a_pair("🙂")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, its line ends as they are.

    Raises:
        FlatlingoError: it cannot be read.
        LineError: a line is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise LineError(line, "not UTF-8; save the file in this encoding") from error
    except OSError as error:
        raise FlatlingoError(f"{path}: cannot be read: {error.strerror}") from error


def tsv_rows(text: str) -> list[TsvRow]:
    r"""The rows of a tab separated file, in whichever of two dialects it is written.

    In a *plain* file a quote is a character like any other. In a *quoted* one a CSV writer has put values that hold a
    quote, a tab or a line end in quotes, and doubled the quotes in them. A file is quoted if every quote in it is of
    this form, all rows have equally many values when it is read so, and it shows the writer: by a doubled quote, by
    quotes around every value that is no number, or by rows of different width when it is read as a plain one.

    Raises:
        LineError: a line that is neither.

    >>> [row.values for row in tsv_rows('a "b"\tc\n')]
    [['a "b"', 'c']]
    >>> [row.values for row in tsv_rows('"a ""b"" c"\td\n')]
    [['a "b" c', 'd']]
    """
    quoted = _quoted(text) if '"' in text else None
    if quoted is None:
        return _plain(text)
    rows, doubled = quoted
    if not _same_width(rows):
        return _plain(text)
    if doubled or _all_quoted(text):
        return rows
    plain = _plain(text)
    return plain if _same_width(plain) else rows


def jsonl_rows(text: str) -> Iterator[tuple[int, dict]]:
    """The objects of a file with one per line, and the numbers of their lines; blank lines are skipped.

    Raises:
        LineError: a line that is no JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LineError(number, f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise LineError(number, "not an object with a value for each column")
        yield number, row


def _plain(text: str) -> list[TsvRow]:
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    if (odd := next((i for i, line in enumerate(lines, start=1) if "\r" in line), None)) is not None:
        raise LineError(odd, r"a carriage return within the line; end lines with \n or \r\n, and nothing else")
    return [TsvRow(i, line.split("\t") if line else [], quoted=False) for i, line in enumerate(lines, start=1)]


def _quoted(text: str) -> tuple[list[TsvRow], bool] | None:
    """The rows if every quote is that of a CSV writer, and whether one is doubled; else None."""
    rows, doubled, position, number = [], False, 0, 1
    while position < len(text):
        start, values, end = position, [], "\t"
        while end == "\t":
            if not (match := VALUE.match(text, position)):
                return None
            value, end = match.groups()
            values.append(value)
            position = match.end()
        quoted = [value.startswith('"') for value in values]
        doubled |= any('""' in value[1:-1] for value in values)
        values = [v[1:-1].replace('""', '"') if q else v for v, q in zip(values, quoted, strict=True)]
        rows.append(TsvRow(number, values if values != [""] else [], any(quoted)))
        number += text.count("\n", start, position)
    return rows, doubled


def _same_width(rows: list[TsvRow]) -> bool:
    return len({len(row.values) for row in rows if row.values}) <= 1


def _all_quoted(text: str) -> bool:
    """Whether every value of a file is in quotes but for numbers and empty ones."""
    return all(
        value.startswith('"') or re.fullmatch(r"[-+.\deE]*", value)
        for value, _ in (match.groups() for match in VALUE.finditer(text))
    )


def _named_tsv(text: str) -> Iterator[tuple[int, dict]]:
    rows = [row for row in tsv_rows(text) if any(value.strip() for value in row.values)]
    number, columns = (rows[0].number, rows[0].values) if rows else (1, [])
    if "text_a" not in columns or len(set(columns)) < len(columns):
        header = "\t".join(columns)[:80]
        raise LineError(number, f"must name the columns, text_a and perhaps text_b among them; it is {header!r}")
    _refuse_misspelt(number, columns)
    for number, values, _ in rows[1:]:
        if len(values) != len(columns):
            raise LineError(number, f"{len(values)} columns, tab separated, where the first line has {len(columns)}")
        yield number, dict(zip(columns, values, strict=True))


def _named_jsonl(text: str) -> Iterator[tuple[int, dict]]:
    for number, row in jsonl_rows(text):
        if "text_a" not in row:
            raise LineError(number, 'not an object with "text_a"')
        _refuse_misspelt(number, row)
        yield number, row


def _refuse_misspelt(number: int, columns: Iterable[str]) -> None:
    if wrong := misspelt(columns):
        raise LineError(number, f"has {wrong}")


def _checked(number: int, row: dict, first: dict) -> dict[str, str]:
    """The texts of a row, which must be those that the first row has."""
    texts = texts_of(row)
    if ("text_b" in texts) != ("text_b" in first):
        raise LineError(number, "text_b must be in all rows or in none")
    for column, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise LineError(number, f"{column} is not a text, or an empty one")
        if has_half_a_pair(text):
            raise LineError(number, f"{column} has {HALF_A_PAIR}")
    return texts
