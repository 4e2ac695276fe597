"""Rows of a user's own: what is read, and that whatever is wrong is named with its line."""

import csv
import json

import pandas as pd
import pytest

from flatlingo.errors import FlatlingoError
from flatlingo.rowfiles import read_rows

PAIRS = [{"text_a": 'He said "no', "text_b": "NA"}, {"text_a": "猫吃鱼。", "text_b": "null"}]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "BOM"])
def test_tsv_is_read_without_quoting_and_without_missing_values(write, start, end):
    lines = ["id\ttext_b\tlabel\ttext_a", '7\tNA\t1\tHe said "no', "", "8\tnull\t\t猫吃鱼。"]
    assert read_rows(write("rows.tsv", start + end.join(lines) + end)) == PAIRS


def test_jsonl_is_read(write):
    lines = [json.dumps(row | {"label": "yes"}, ensure_ascii=bool(i)) for i, row in enumerate(PAIRS)]
    assert read_rows(write("rows.jsonl", "\n".join(lines))) == PAIRS


AWKWARD = [{"text_a": 'He said "no".', "text_b": '"'}, {"text_a": "a\tb", "text_b": "two\nlines"}, *PAIRS]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("index", [False, True], ids=["", "index"])
@pytest.mark.parametrize("rows", [AWKWARD, AWKWARD[:1], AWKWARD[1:2], PAIRS[1:]], ids=["all", "quotes", "tabs", "none"])
def test_rows_that_pandas_writes_are_read(tmp_path, rows, index, quoting):
    path = tmp_path / "rows.tsv"
    pd.DataFrame(rows).assign(label=range(len(rows))).to_csv(path, sep="\t", index=index, quoting=quoting)
    assert read_rows(path) == rows


def test_json_lines_that_pandas_writes_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    pd.DataFrame(AWKWARD).to_json(path, orient="records", lines=True)
    assert read_rows(path) == AWKWARD


def test_the_line_of_a_bad_row_counts_line_ends_within_texts(write):
    with pytest.raises(FlatlingoError, match="line 4: text_b"):
        read_rows(write("rows.tsv", 'text_a\ttext_b\n"one ""1""\nmore"\ttwo\none\t\n'))


def test_single_texts(write):
    assert read_rows(write("rows.tsv", "text_a\none\ntwo\n")) == [{"text_a": "one"}, {"text_a": "two"}]


def test_texts_may_be_long(write):
    long = "dog " * 40_000
    assert read_rows(write("a.tsv", f"text_a\ttext_b\r\n{long}\tx\r\n")) == [{"text_a": long, "text_b": "x"}]


BAD = {
    "no header": ("a.tsv", "one\ttwo\n", "line 1: must name the columns.*'one"),
    "a column twice": ("a.tsv", "text_a\ttext_a\nx\ty\n", "line 1: must name"),
    "too many columns": ("a.tsv", "text_a\nx\ny\tz\n", "line 3: 2 columns.*first line has 1"),
    "an empty text": ("a.tsv", "text_a\ttext_b\nx\ty\n \tz\n", "line 3: text_a"),
    "an empty second text": ("a.tsv", "text_a\ttext_b\nx\t\n", "line 2: text_b"),
    "not UTF-8": ("a.tsv", b"text_a\nx\n\xff\n", "line 3: not UTF-8"),
    "nearly text_b": ("a.tsv", "text_a\ttext_b \nx\ty\n", "line 1: has a column 'text_b ', which is not 'text_b'"),
    "text_b in capitals": ("a.jsonl", '{"text_a": "x", "Text_B": "y"}\n', "line 1: has a column 'Text_B'"),
    "a lone carriage return": ("a.tsv", "text_a\nx\ry\n", "line 2: a carriage return within the line"),
    "only a header": ("a.tsv", "text_a\n", "no rows"),
    "empty": ("a.jsonl", "", "no rows"),
    "not JSON": ("a.jsonl", '{"text_a": "x"}\n{"text_a"\n', "line 2: not JSON"),
    "a list": ("a.jsonl", "[1]\n", "line 1: not an object"),
    "no text": ("a.jsonl", '{"text": "x"}\n', "line 1: not an object with"),
    "a number for a text": ("a.jsonl", '{"text_a": 3}\n', "line 1: text_a is not a text"),
    "half a pair": ("a.jsonl", '{"text_a": "x", "text_b": "y"}\n\n{"text_a": "x"}\n', "line 3: text_b must be in all"),
    "half a surrogate pair": ("a.jsonl", '{"text_a": "\\ud800"}\n', "line 1: text_a has half"),
    "nested too deeply": ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
    "another ending": ("a.csv", "text_a\nx\n", "convert it"),
}


@pytest.mark.parametrize(("name", "content", "says"), BAD.values(), ids=BAD)
def test_bad_files_are_refused_with_the_line(write, name, content, says):
    path = write(name, content)
    with pytest.raises(FlatlingoError, match=says) as raised:
        read_rows(path)
    assert str(raised.value).startswith(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(FlatlingoError, match="cannot be read: No such file"):
        read_rows(tmp_path / "none.tsv")
