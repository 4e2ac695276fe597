"""What holds for any input: files of rows, words and their segmentations, presets. Inputs are made by hypothesis."""

import json
import random
import string

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, make_tokenizer

from flatlingo.errors import FlatlingoError
from flatlingo.rowfiles import read_rows
from flatlingo.segmentation import WordPieceSampler
from flatlingo.study.presets import Preset, expand, load_preset
from flatlingo.taskfiles import load_description
from flatlingo.tasks import load_task

# The same examples on every machine; files are written anew for each.
settings.register_profile(
    "flatlingo",
    max_examples=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("flatlingo")

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0"), min_size=1).filter(str.strip)
PIECE = st.sampled_from(
    [b"text_a", b"text_b", b"\t", b"\n", b"\r", b"\0", b'"', b'{"text_a": ', b'"x"', b"}", b"neutral\n"]
)
BYTES = st.lists(st.one_of(PIECE, st.binary(max_size=6)), max_size=30).map(b"".join)
TOKENIZER = make_tokenizer()


@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), kind=st.sampled_from(["tsv", "jsonl"]))
def test_rows_that_are_written_are_the_rows_that_are_read(rows, kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    rows = [{"text_a": first, "text_b": second} for first, second in rows]
    header, write = (["text_a\ttext_b"], lambda row: "\t".join(row.values())) if kind == "tsv" else ([], json.dumps)
    path.write_bytes("\n".join([*header, *map(write, rows)]).encode())
    assert read_rows(path) == rows


@settings(max_examples=200)
@given(content=BYTES, kind=st.sampled_from(["tsv", "jsonl"]))
def test_any_bytes_give_rows_or_the_clear_error(content, kind, tmp_path):
    path = tmp_path / f"any.{kind}"
    path.write_bytes(content)
    try:
        assert read_rows(path)
    except FlatlingoError as error:
        assert str(path) in str(error)  # noqa: PT017 (either outcome is right)


def write_xnli(folder, english, german):
    (folder / "xnli").mkdir(exist_ok=True)
    for name, content in {"train-en": english, "dev-en": english, "dev-de": german}.items():
        (folder / "xnli" / f"{name}.tsv").write_bytes(content)


@settings(max_examples=15)
@given(rows=st.lists(st.tuples(CELL, CELL, st.sampled_from(load_description("xnli").labels)), min_size=2, max_size=6))
def test_a_folder_of_rows_is_read_whole(rows, tmp_path):
    content = "".join("\t".join(row) + "\n" for row in rows).encode()
    write_xnli(tmp_path, content, content)
    read = load_task("xnli", data=tmp_path, languages=["en", "de"]).rows("de", "validation")
    assert [(row["text_a"], row["text_b"], load_description("xnli").labels[row["label"]]) for row in read] == rows


@settings(max_examples=80)
@given(content=BYTES)
def test_any_bytes_in_a_folder_give_rows_or_the_clear_error(content, tmp_path):
    write_xnli(tmp_path, b"a\tb\tneutral\n" * 3, content)
    try:
        load_task("xnli", data=tmp_path, languages=["en", "de"])
    except FlatlingoError as error:
        assert "xnli" in str(error)  # noqa: PT017


@given(
    text=st.text(st.one_of(st.sampled_from("".join(VOCABULARY)), st.characters(codec="utf-8")), max_size=30),
    mode=st.sampled_from(["faithful", "clean"]),
)
def test_without_rejections_any_text_is_cut_as_the_tokenizer_cuts_it(text, mode):
    assert WordPieceSampler(TOKENIZER, 0.0, mode).sample(text, random.Random(0)) == TOKENIZER.tokenize(text)


@given(
    words=st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=12), min_size=1, max_size=4),
    p=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_pieces_of_any_known_words_make_the_words_again(words, p, seed):
    pieces = WordPieceSampler(TOKENIZER, p, "clean").sample(" ".join(words), random.Random(seed))
    assert "".join(pieces).replace("##", "") == "".join(words)


@settings(max_examples=8)
@given(
    name=st.from_regex(r"\A[a-z][a-z0-9.-]{0,8}\Z"),
    epochs=st.integers(1, 50),
    rate=st.floats(1e-8, 1.0),
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=4, unique_by=lambda weight: f"{weight:g}"),
)
def test_any_valid_preset_survives_its_file_and_every_run_has_a_name_of_its_own(name, epochs, rate, weights, tmp_path):
    values = load_preset("smoke").model_dump(mode="json") | {"name": name}
    values["plans"]["nli"]["setup"]["training"] |= {"epochs": epochs, "learning_rate": rate}
    values["plans"]["nli"]["conditions"] = {"none": [0], "consistency": weights}
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(values))
    preset = load_preset(str(path))
    assert preset == Preset.model_validate(values)
    ids = [spec.name for spec in expand("nli", preset, seeds=2)]
    assert len(set(ids)) == len(ids) == 2 * (1 + len(weights))
    assert not any(separator in run_id for run_id in ids for separator in "/\\")


@given(
    values=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "encoder", "plans", "nli", "setup", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_any_other_yaml_is_refused_as_a_preset(values, tmp_path):
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(FlatlingoError, match=r"preset any\.yaml"):
        load_preset(str(path))
