import csv
import json
import os
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import constants

from flatlingo.errors import FlatlingoError
from flatlingo.taskfiles import load_description
from flatlingo.tasks import load_task, provenance

LANGUAGES = ("en", "de", "es", "zh")
XNLI_LABELS = ("entailment", "neutral", "contradiction")
HALVES = ("adapt_train", "adapt_validation")


def write(path, rows, end="\n", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join("\t".join(row) + end for row in rows).encode(encoding))


def xnli_rows(language, n=12):
    """Three hypotheses for each premise, as in XNLI."""
    return [(f"{language} premise {i // 3}", f"{language} hypothesis {i}", XNLI_LABELS[i % 3]) for i in range(n)]


def pawsx_rows(language, n=40, missing=()):
    """Every second row takes up a sentence of the one before, as in PAWS-X."""
    rows = [(f"{language} {i - i % 2}", f"{language} variant {i}", str(i // 3 % 2)) for i in range(n)]
    return [("NS", "NS", label) if i in missing else (a, b, label) for i, (a, b, label) in enumerate(rows)]


@pytest.fixture
def xnli(tmp_path):
    write(tmp_path / "xnli" / "train-en.tsv", xnli_rows("train", 60))
    for language in LANGUAGES:
        write(tmp_path / "xnli" / f"dev-{language}.tsv", xnli_rows(language))
    return tmp_path


MISSING = {"de": (4, 30), "es": (4,), "zh": (17,)}


@pytest.fixture
def pawsx(tmp_path):
    write(tmp_path / "pawsx" / "train-en.tsv", pawsx_rows("train", 60))
    for language in LANGUAGES:
        write(tmp_path / "pawsx" / f"dev-{language}.tsv", pawsx_rows(language, missing=MISSING.get(language, ())))
    return tmp_path


def sentences(task, split):
    columns = [name for name in ("text_a", "text_b") if name in task.rows("en", split).column_names]
    return {text for language in task.languages for name in columns for text in task.rows(language, split)[name]}


def table(task, language, split):
    rows = task.rows(language, split)
    return list(zip(*(rows[column] for column in ("row_id", "text_a", "text_b", "label")), strict=True))


# Reading files


@pytest.mark.parametrize(
    ("end", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-8"), ("\n", "utf-8-sig")], ids=["LF", "CRLF", "BOM"]
)
def test_rows_of_a_file_are_its_lines(xnli, end, encoding):
    write(xnli / "xnli" / "dev-zh.tsv", [("猫睡觉。", "猫没睡。", "entailment"), *xnli_rows("zh")[1:]], end, encoding)
    task = load_task("xnli", data=xnli, languages=["en", "zh"])
    first, second, *_ = table(task, "zh", "validation")
    assert first == (0, "猫睡觉。", "猫没睡。", 0)
    assert second == (1, "zh premise 0", "zh hypothesis 1", 1)
    assert len(task.rows("en", "train")) == 60


def test_last_line_needs_no_line_end(xnli):
    path = xnli / "xnli" / "dev-de.tsv"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(load_task("xnli", data=xnli).rows("de", "validation")) == 12


def test_blank_lines_at_the_end_are_no_rows(xnli):
    path = xnli / "xnli" / "dev-de.tsv"
    path.write_bytes(path.read_bytes() + b"\r\n\n")
    assert len(load_task("xnli", data=xnli).rows("de", "validation")) == 12


@pytest.mark.parametrize(
    "text", ['"unpaired', 'a "quoted" word', "null", "NA", "None", "nan", "3", " padded ", "\\t", "a\u2028b", "'"]
)
def test_texts_that_readers_take_for_something_else_arrive_verbatim(xnli, text):
    rows = xnli_rows("train", 60)
    rows[7] = rows[31] = (text, text, "neutral")
    write(xnli / "xnli" / "train-en.tsv", rows)
    train = table(load_task("xnli", data=xnli), "en", "train")
    assert len(train) == 60
    assert train[7] == (7, text, text, 1)


def test_rewritten_file_of_the_same_size_and_time_is_read_anew(xnli):
    path = xnli / "xnli" / "train-en.tsv"
    load_task("xnli", data=xnli)
    before = path.stat()
    path.write_text(path.read_text().replace("train", "other"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_task("xnli", data=xnli).rows("en", "train")[0]["text_a"] == "other premise 0"


def test_nothing_is_written_into_the_data_folder(xnli):
    before = sorted(xnli.rglob("*"))
    load_task("xnli", data=xnli).rows("en", "train").map(lambda row: {"length": len(row["text_a"])})
    assert sorted(xnli.rglob("*")) == before


def test_other_training_languages_are_read_where_there_are_files(xnli):
    write(xnli / "xnli" / "train-de.tsv", xnli_rows("train de", 30))
    task = load_task("xnli", data=xnli, train_size=9)
    assert [len(task.rows(language, "train")) for language in ("en", "de")] == [9, 9]
    with pytest.raises(FlatlingoError, match="no train rows in es"):
        task.rows("es", "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"one\ttwo\n", "2 columns where there must be 3"),
        (b"one\ttwo\tneutral\tmore\n", "4 columns"),
        (b"\n", "0 columns"),
        (b"one\ttwo\tcontradicts\n", "label 'contradicts'; the labels are entailment, neutral, contradiction"),
        (b"one\ttwo\t1\n", "label '1'; the labels are entailment"),
        (b"one\t \tneutral\n", "an empty text"),
        (b"one\tz\xfcrich\tneutral\n", "not UTF-8"),
        (b"one\rtwo\tthree\tneutral\n", "a carriage return within the line"),
    ],
    ids=["2 columns", "4 columns", "blank", "label", "number", "empty text", "latin-1", "stray CR"],
)
def test_malformed_line_is_named(xnli, line, message):
    path = xnli / "xnli" / "dev-es.tsv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], line, *lines[5:]]))
    with pytest.raises(FlatlingoError, match=f"dev-es.tsv, line 5: {message}"):
        load_task("xnli", data=xnli)


def test_empty_file(xnli):
    (xnli / "xnli" / "dev-es.tsv").write_bytes(b"")
    with pytest.raises(FlatlingoError, match=r"dev-es\.tsv: the file is empty"):
        load_task("xnli", data=xnli)


@pytest.mark.parametrize(("name", "missing"), [("dev-es", "dev-es"), ("train-en", "train-en")])
def test_missing_file(xnli, name, missing):
    (xnli / "xnli" / f"{name}.tsv").unlink()
    with pytest.raises(FlatlingoError, match=rf"{missing}\.tsv: no such file; the data folder must hold xnli/dev-LANG"):
        load_task("xnli", data=xnli)


def test_missing_folder(tmp_path):
    with pytest.raises(FlatlingoError, match="xnli: no such folder"):
        load_task("xnli", data=tmp_path / "nowhere")


def test_language_with_fewer_rows_is_not_aligned(xnli):
    write(xnli / "xnli" / "dev-es.tsv", xnli_rows("es", 11))
    with pytest.raises(FlatlingoError, match="11 validation rows in es but 12 in en"):
        load_task("xnli", data=xnli)


def test_language_in_another_order_is_not_aligned(xnli):
    rows = xnli_rows("es")
    write(xnli / "xnli" / "dev-es.tsv", rows[1:] + rows[:1])
    with pytest.raises(FlatlingoError, match=r"es are in another order than those of en \(12 of 12 labels differ\)"):
        load_task("xnli", data=xnli)


# Subsets


def test_training_subset_is_drawn_by_the_seed(xnli):
    def draw(seed):
        return table(load_task("xnli", data=xnli, train_size=20, seed=seed), "en", "train")

    everything = table(load_task("xnli", data=xnli), "en", "train")
    assert draw(1) == draw(1) != draw(2)
    assert draw(1) == sorted(draw(1))
    assert len(set(draw(1)) & set(everything)) == 20


@pytest.mark.parametrize(
    ("option", "size", "message"),
    [
        ("train_size", 61, "61 rows asked for, 60 there"),
        ("train_size", -1, "at least 0; got -1"),
        ("validation_size", 61, "61 rows asked for, 12 there"),
        ("validation_size", 0, "at least 1; got 0"),
    ],
)
def test_impossible_size(xnli, option, size, message):
    with pytest.raises(FlatlingoError, match=message):
        load_task("xnli", data=xnli, **{option: size})


def test_of_no_training_rows_none_are_needed(xnli):
    everything = load_task("xnli", data=xnli)
    (xnli / "xnli" / "train-en.tsv").unlink()
    task = load_task("xnli", data=xnli, train_size=0)
    for language in LANGUAGES:
        for split in ("validation", *HALVES):
            assert table(task, language, split) == table(everything, language, split)
    with pytest.raises(FlatlingoError, match="xnli has no train rows in en"):
        task.rows("en", "train")


def test_the_mini_world_without_training_rows():
    task, everything = (load_task("mini-nli", train_size=n, validation_size=30) for n in (0, 30))
    assert table(task, "zh", "validation") == table(everything, "zh", "validation")
    assert set(task.counts["split"]) == {"validation", *HALVES}
    assert "validation" in task.describe()


def test_validation_subset_is_the_same_in_every_language_and_for_every_seed(xnli):
    def ids(language, seed):
        return load_task("xnli", data=xnli, validation_size=9, seed=seed).rows(language, "validation")["row_id"][:]

    assert len(ids("en", 0)) == 9
    assert ids("en", 0) == ids("zh", 0) == ids("en", 1)


# Placeholders and halves


def test_placeholder_rows_are_dropped_in_their_language_and_counted(pawsx):
    task = load_task("pawsx", data=pawsx)
    for language in LANGUAGES:
        ids = set(task.rows(language, "validation")["row_id"])
        assert ids == set(range(40)) - set(MISSING.get(language, ()))
    counts = task.counts.set_index(["language", "split"])
    assert counts.loc[("de", "validation"), ["rows", "dropped"]].tolist() == [38, 2]
    assert counts.loc[("en", "validation"), ["rows", "dropped"]].tolist() == [40, 0]
    assert "NS" in counts.loc[("de", "validation"), "reason"]
    assert counts.loc[("en", "adapt_train"), "dropped"] == 3


@pytest.mark.parametrize("text", ["NS", " NS ", "", "  "])
@pytest.mark.parametrize("side", [0, 1])
def test_what_counts_as_placeholder(pawsx, text, side):
    rows = [list(row) for row in pawsx_rows("zh")]
    rows[8][side] = text
    write(pawsx / "pawsx" / "dev-zh.tsv", rows)
    assert set(range(40)) - set(load_task("pawsx", data=pawsx).rows("zh", "validation")["row_id"]) == {8}


def test_language_of_placeholders_only_is_an_empty_split(pawsx):
    write(pawsx / "pawsx" / "dev-zh.tsv", pawsx_rows("zh", missing=range(40)))
    with pytest.raises(FlatlingoError, match="no usable validation rows in zh"):
        load_task("pawsx", data=pawsx)


def test_halves_hold_the_same_rows_in_every_language(pawsx):
    task = load_task("pawsx", data=pawsx)
    ids = {split: {tuple(task.rows(language, split)["row_id"]) for language in LANGUAGES} for split in HALVES}
    assert [len(different) for different in ids.values()] == [1, 1]
    first, second = (set(*different) for different in ids.values())
    assert first.isdisjoint(second)
    assert first | second == set(range(40)) - {4, 17, 30}
    assert abs(len(first) - len(second)) <= 1


def test_halves_are_balanced_in_labels(pawsx):
    task = load_task("pawsx", data=pawsx)
    first, second = (Counter(task.rows("en", split)["label"]) for split in HALVES)
    assert all(abs(first[label] - second[label]) <= 2 for label in (0, 1))


def test_halves_share_no_sentence_though_rows_are_chained_across_sides_and_languages(pawsx):
    rows = {language: [list(row) for row in pawsx_rows(language)] for language in LANGUAGES}
    rows["en"][10][1] = rows["en"][20][0]  # second sentence of a row, first of another
    rows["de"][20][0] = rows["de"][31][1]  # linked in German only, so 10, 20 and 31 belong together
    rows["es"][5][0] = rows["zh"][38][0] = "Madrid"  # across languages
    for language in LANGUAGES:
        write(pawsx / "pawsx" / f"dev-{language}.tsv", rows[language])
    task = load_task("pawsx", data=pawsx)
    first, second = (set(task.rows("en", split)["row_id"]) for split in HALVES)
    assert sentences(task, "adapt_train").isdisjoint(sentences(task, "adapt_validation"))
    for together in ({10, 20, 31}, {5, 38}):
        assert together <= first or together <= second
    assert (len(first), len(second)) == (20, 20)


def test_premises_of_xnli_stay_together(xnli):
    task = load_task("xnli", data=xnli)
    groups = [{row_id // 3 for row_id in task.rows("en", split)["row_id"]} for split in HALVES]
    assert groups[0].isdisjoint(groups[1])
    assert [len(task.rows("en", split)) for split in HALVES] == [6, 6]


def test_halves_do_not_depend_on_the_seed_of_a_run(pawsx):
    first, second = (load_task("pawsx", data=pawsx, seed=seed) for seed in (1, 2))
    assert table(first, "de", "adapt_train") == table(second, "de", "adapt_train")


def test_rows_that_all_share_a_sentence_cannot_be_halved(xnli):
    rows = [("One premise", hypothesis, label) for _, hypothesis, label in xnli_rows("en")]
    write(xnli / "xnli" / "dev-en.tsv", rows)
    task = load_task("xnli", data=xnli)
    assert len(task.rows("en", "adapt_train")) == 12
    with pytest.raises(FlatlingoError, match="no adapt_validation rows in en"):
        task.rows("en", "adapt_validation")


def test_description_gives_rows_per_split_and_language(pawsx):
    lines = load_task("pawsx", data=pawsx).describe().splitlines()
    assert lines[0] == "pawsx: different, paraphrase"
    assert lines[1].split() == list(LANGUAGES)
    assert lines[2].split() == ["train", "60", "-", "-", "-"]
    assert lines[3].split() == ["validation", "40", "38", "39", "39"]
    assert any(line.startswith("validation without de 2, es 1, zh 1 ('NS'") for line in lines)


# The Hub


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The files of PAWS-X as the Hub has them, in the Hugging Face cache; no connection."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "datasets--google-research-datasets--paws-x"
    folder = repository / "snapshots" / load_description("pawsx").hub.revision
    for language in LANGUAGES:
        hub_file(folder, language, "validation", pawsx_rows(language, missing=MISSING.get(language, ())))
    hub_file(folder, "en", "train", pawsx_rows("train", 60))
    return folder


def hub_file(folder, language, split, rows, **changes):
    (folder / language).mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows, columns=["sentence1", "sentence2", "label"]).assign(id=range(1, len(rows) + 1))
    frame = frame.astype({"label": "int64", "id": "int32"}).assign(**changes)
    frame.to_parquet(folder / language / f"{split}-00000-of-00001.parquet")


def test_hub_gives_the_same_rows_as_files(hub_cache, pawsx):
    online, local = load_task("pawsx"), load_task("pawsx", data=pawsx)
    pd.testing.assert_frame_equal(online.counts, local.counts)
    for language, split in local.splits:
        assert table(online, language, split) == table(local, language, split)


def test_of_no_training_rows_none_are_fetched_from_the_hub(hub_cache):
    (hub_cache / "en" / "train-00000-of-00001.parquet").unlink()
    assert len(load_task("pawsx", train_size=0).rows("de", "validation")) == 38


def test_unlabelled_hub_rows_are_dropped(hub_cache):
    hub_file(hub_cache, "en", "train", pawsx_rows("train", 60), label=[-1, *[0, 1] * 29, 0])
    train = load_task("pawsx").rows("en", "train")
    assert len(train) == 59
    assert set(train["label"]) == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 2}, "paws-x, de validation: label .*2.* is not one of pawsx: different, paraphrase"),
        ({"id": range(40)}, "in another order"),
    ],
    ids=["label", "ids"],
)
def test_unexpected_hub_rows(hub_cache, changes, message):
    hub_file(hub_cache, "de", "validation", pawsx_rows("de"), **changes)
    with pytest.raises(FlatlingoError, match=message):
        load_task("pawsx")


def test_without_the_hub_the_remedy_is_named(hub_cache):
    with pytest.raises(FlatlingoError, match="hf download facebook/xnli --repo-type dataset"):
        load_task("xnli")


# The mini world


@pytest.mark.parametrize(("name", "classes"), [("mini-nli", 3), ("mini-paraphrase", 2)])
def test_mini_task_has_all_splits_in_all_languages(name, classes):
    task = load_task(name, train_size=60, validation_size=40, label_noise=0.2)
    assert len(task.labels) == classes
    for language in LANGUAGES:
        assert len(task.rows(language, "train")) == 60
        assert len(task.rows(language, "validation")) == 40
        assert sum(len(task.rows(language, split)) for split in HALVES) == 40
    train = task.rows("de", "train")
    assert train.column_names == ["row_id", "text_a", "text_b", "label", "clean_label"]
    assert set(train["clean_label"]) == set(range(classes))
    assert train["label"] == task.rows("zh", "train")["label"]
    assert sentences(task, "adapt_train").isdisjoint(sentences(task, "adapt_validation"))


def test_mini_training_rows_follow_the_seed_and_validation_rows_do_not():
    one, same, other = (load_task("mini-nli", train_size=30, validation_size=30, seed=seed) for seed in (1, 1, 2))
    assert table(one, "es", "train") == table(same, "es", "train") != table(other, "es", "train")
    for split in ("validation", *HALVES):
        assert table(one, "es", split) == table(other, "es", split)


def test_label_noise_touches_training_labels_only():
    task = load_task("mini-nli", train_size=300, validation_size=60, label_noise=0.5)
    train, validation = task.rows("en", "train"), task.rows("en", "validation")
    changed = sum(a != b for a, b in zip(train["label"], train["clean_label"], strict=True)) / 300
    assert 0.2 < changed < 0.6
    assert validation["label"] == validation["clean_label"]
    assert task.rows("de", "adapt_validation")["label"] == task.rows("de", "adapt_validation")["clean_label"]


# Label noise


def wrong(rows):
    return sum(label != clean for label, clean in zip(rows["label"], rows["clean_label"], strict=True)) / len(rows)


@pytest.fixture
def large(tmp_path):
    """Files of 900 rows, every one with a premise of its own."""
    for name in ("train-en", "train-de", "dev-en", "dev-de"):
        rows = [(f"{name} {i}", f"hypothesis {name} {i}", XNLI_LABELS[i % 3]) for i in range(900)]
        write(tmp_path / "xnli" / f"{name}.tsv", rows)
    return {"task": "xnli", "data": tmp_path, "languages": ["en", "de"]}


@pytest.mark.parametrize("world", ["files", "mini"])
def test_a_share_of_the_labels_of_both_stages_is_redrawn_and_the_rest_is_clean(large, world):
    mini = {"task": "mini-nli", "languages": ["en", "de"], "train_size": 900, "validation_size": 900}
    arguments = large if world == "files" else mini
    noisy, clean = load_task(**arguments, label_noise=0.3), load_task(**arguments)
    for split in ("train", "adapt_train"):
        rows = noisy.rows("en", split)
        assert rows["clean_label"] == clean.rows("en", split)["label"]
        # of 0.3 a third falls on the label that was there; three standard deviations
        assert wrong(rows) == pytest.approx(0.2, abs=3 * (0.2 / 3 / len(rows)) ** 0.5)
        assert set(rows["label"]) == {0, 1, 2}
    for split in ("validation", "adapt_validation"):
        assert noisy.rows("en", split)["label"] == clean.rows("en", split)["label"]


def test_exactly_the_share_is_redrawn(large):
    changed = {
        row["row_id"]
        for seed in range(30)  # whatever a row's label is redrawn to, it changes with one of many other draws
        for row in load_task(**large, label_noise=0.01, train_size=100, seed=seed).rows("en", "train")
        if row["label"] != row["clean_label"]
    }
    assert 10 < len(changed) <= 30  # one row of 100 per seed


def test_label_noise_is_the_same_in_every_language_and_follows_the_seed(large):
    one, same, other = (load_task(**large, label_noise=0.5, seed=seed) for seed in (1, 1, 2))
    for split in ("train", "adapt_train"):
        assert one.rows("en", split)["label"] == one.rows("de", split)["label"] == same.rows("en", split)["label"]
        assert one.rows("en", split)["label"] != other.rows("en", split)["label"]
    assert one.rows("en", "adapt_train")["clean_label"] == other.rows("en", "adapt_train")["clean_label"]


def test_the_second_stage_may_have_noise_of_its_own(large):
    task = load_task(**large, label_noise=0.3, second_stage_noise=0.0)
    assert wrong(task.rows("en", "train")) > 0
    assert "clean_label" not in task.rows("en", "adapt_train").column_names
    task = load_task(**large, second_stage_noise=0.3)
    assert "clean_label" not in task.rows("en", "train").column_names
    assert wrong(task.rows("de", "adapt_train")) > 0


def test_without_noise_real_rows_have_one_label(xnli):
    assert load_task("xnli", data=xnli).rows("en", "train").column_names == ["row_id", "text_a", "text_b", "label"]


def test_rows_name_their_labels(xnli):
    rows = load_task("xnli", data=xnli, label_noise=0.5).rows("en", "train")
    assert rows.features["label"].names == rows.features["clean_label"].names == list(XNLI_LABELS)


# Files as people have them


SAID = 'She said "yes".'


def csv_written(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", **options).writerows(rows)


@pytest.mark.parametrize(
    "options",
    [{}, {"lineterminator": "\n"}, {"quoting": csv.QUOTE_ALL}, {"quoting": csv.QUOTE_NONNUMERIC}],
    ids=["csv", "LF", "all quoted", "words quoted"],
)
@pytest.mark.parametrize("text", [SAID, '"', '"all of it"', '""', "a\tb", "two\nlines", 'only, a "', "plain"])
def test_files_of_a_csv_writer_give_the_texts_that_were_written(xnli, options, text):
    rows = xnli_rows("train", 60)
    rows[7] = (text, "and so on", "neutral")
    rows[8] = (SAID, "and on", "neutral")
    csv_written(xnli / "xnli" / "train-en.tsv", rows, **options)
    task = load_task("xnli", data=xnli)
    assert [row[1:3] for row in table(task, "en", "train")] == [row[:2] for row in rows]
    quoted = 60 if "quoting" in options else 1 + any(sign in text for sign in '"\t\n')
    assert task.counts.set_index(["language", "split"]).loc[("en", "train"), "quoted"] == quoted
    assert f"train without the quotes of a CSV writer around texts: en {quoted}" in task.describe()


def test_one_text_that_no_csv_writer_wrote_makes_a_file_a_plain_one(xnli):
    rows = xnli_rows("train", 60)
    rows[3] = ('"She said ""yes""."', "and so on", "neutral")
    rows[40] = ('"No", he said.', "and on", "neutral")
    write(xnli / "xnli" / "train-en.tsv", rows)
    task = load_task("xnli", data=xnli)
    assert [row[1:3] for row in table(task, "en", "train")] == [row[:2] for row in rows]
    assert task.counts["quoted"].sum() == 0


def test_a_malformed_row_after_a_text_of_two_lines_is_named_by_its_own_line(xnli):
    csv_written(xnli / "xnli" / "dev-de.tsv", [('one "1"\nand more', "two", "neutral"), ("one", "two", "maybe")])
    with pytest.raises(FlatlingoError, match=r"dev-de.tsv, line 3: label 'maybe'"):
        load_task("xnli", data=xnli)


# XNLI-1.0/xnli.dev.tsv
XNLI_COLUMNS = [
    *(
        "language",
        "gold_label",
        "sentence1_binary_parse",
        "sentence2_binary_parse",
        "sentence1_parse",
        "sentence2_parse",
    ),
    *("sentence1", "sentence2", "promptID", "pairID", "genre", "label1", "label2", "label3", "label4", "label5"),
    *("sentence1_tokenized", "sentence2_tokenized", "match"),
]


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_the_original_release_of_xnli(tmp_path, kind):
    """All languages in one file, by name; labels that annotators did not agree on; training rows as translated."""
    records = [
        dict.fromkeys(XNLI_COLUMNS, "x")
        | {"language": language, "sentence1": a, "sentence2": b, "gold_label": label, "pairID": str(i)}
        for language in ("de", "en", "fr")
        for i, (a, b, label) in enumerate(xnli_rows(language))
    ]
    records[4]["gold_label"] = "-"
    lines = (
        ["\t".join(XNLI_COLUMNS), *("\t".join(record.values()) for record in records)]
        if kind == "tsv"
        else [json.dumps(record) for record in records]
    )
    write(tmp_path / "XNLI-1.0" / f"xnli.dev.{kind}", [(line,) for line in lines])
    train = [(a, b, label.replace("contradiction", "contradictory")) for a, b, label in xnli_rows("train", 60)]
    folder = tmp_path / "XNLI-MT-1.0" / "multinli"
    write(folder / "multinli.train.en.tsv", [("premise", "hypo", "label"), *train])
    task = load_task("xnli", data=tmp_path, languages=["en", "de"])
    assert table(task, "en", "validation") == [
        (i, a, b, XNLI_LABELS.index(label)) for i, (a, b, label) in enumerate(xnli_rows("en"))
    ]
    assert [row[0] for row in table(task, "de", "validation")] == [i for i in range(12) if i != 4]
    assert table(task, "en", "train")[2] == (2, "train premise 0", "train hypothesis 2", 2)
    assert "validation without de 1 (blank or unlabelled)" in task.describe()


def test_files_of_all_languages_need_the_column_that_tells_them_apart(tmp_path):
    path = describe(tmp_path, train="train", validation="dev", language="lang")
    rows = [{"review": f"review {i} in {x}", "stars": 1 + i % 2 * 4, "lang": x} for i in range(6) for x in ("en", "fr")]
    write(tmp_path / "files" / "train.jsonl", [(json.dumps(row),) for row in rows if row["lang"] == "en"])
    write(tmp_path / "files" / "dev.jsonl", [(json.dumps(row),) for row in rows])
    task = load_task(path)
    assert task.rows("fr", "validation")["text_a"] == [f"review {i} in fr" for i in range(6)]
    assert [key for key in task.splits if key[1] == "train"] == [("en", "train")]
    for row in rows:
        del row["lang"]
    write(tmp_path / "files" / "dev.jsonl", [(json.dumps(row),) for row in rows])
    with pytest.raises(FlatlingoError, match="dev.jsonl, line 1: a file of all languages must have the column 'lang'"):
        load_task(path)
    write(tmp_path / "files" / "dev.tsv", [(row["review"], str(row["stars"])) for row in rows])
    with pytest.raises(FlatlingoError, match="dev.tsv, line 1: a file of all languages must have the column 'lang'"):
        load_task(path)


def test_the_original_release_of_pawsx(tmp_path):
    for language in LANGUAGES:
        rows = [(str(i + 1), *row) for i, row in enumerate(pawsx_rows(language, missing=MISSING.get(language, ())))]
        write(tmp_path / "x-final" / language / "dev_2k.tsv", [("id", "sentence1", "sentence2", "label"), *rows])
    train = [(str(i + 1), *row) for i, row in enumerate(pawsx_rows("train", 60))]
    write(tmp_path / "x-final" / "en" / "train.tsv", [("id", "sentence1", "sentence2", "label"), *train])
    task = load_task("pawsx", data=tmp_path)
    assert table(task, "en", "train")[0] == (0, "train 0", "train variant 0", 0)
    assert set(task.rows("de", "validation")["row_id"]) == set(range(40)) - {4, 30}


def test_rows_of_other_ids_are_not_translations(tmp_path, pawsx):
    for language in ("en", "de"):
        rows = [(str(i + (language == "de")), *row) for i, row in enumerate(pawsx_rows(language))]
        write(pawsx / "pawsx" / f"dev-{language}.tsv", [("id", "sentence1", "sentence2", "label"), *rows])
    with pytest.raises(FlatlingoError, match="validation rows of de are in another order"):
        load_task("pawsx", data=pawsx)


# Tasks of one's own


REVIEWS = {
    "name": "reviews",
    "labels": ["bad", "good"],
    "texts": "review",
    "label": "stars",
    "spellings": {"bad": [1, 2], "good": [4, 5]},
    "languages": ["en", "fr"],
    "folder": "files",
}


def describe(where, **changes):
    path = where / "reviews.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (REVIEWS | changes).items() if value is not None}))
    return path


def reviews(folder, language, split="dev", n=10, kind="tsv"):
    rows = [{"id": i, "review": f"{language} {split} review {i}", "stars": (1, 5, 4, 2)[i % 4]} for i in range(n)]
    path = folder / "files" / "reviews" / f"{split}-{language}.{kind}"
    lines = (
        ["id\treview\tstars", *("\t".join(map(str, row.values())) for row in rows)]
        if kind == "tsv"
        else map(json.dumps, rows)
    )
    write(path, [(line,) for line in lines])


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_single_texts_of_ones_own(tmp_path, kind):
    reviews(tmp_path, "en", "train", 20, kind)
    for language in ("en", "fr"):
        reviews(tmp_path, language, kind=kind)
    task = load_task(describe(tmp_path))
    assert (task.name, task.labels, task.languages) == ("reviews", ("bad", "good"), ("en", "fr"))
    assert task.rows("fr", "validation").column_names == ["row_id", "text_a", "label"]
    assert task.rows("fr", "validation")[1] == {"row_id": 1, "text_a": "fr dev review 1", "label": 1}
    assert task.rows("en", "train")["label"][:4] == [0, 1, 1, 0]
    assert [len(task.rows("en", half)) for half in HALVES] == [5, 5]
    assert sentences(task, "adapt_train").isdisjoint(sentences(task, "adapt_validation"))


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_xnli_under_other_names_is_the_same_task(xnli, tmp_path, kind):
    """Other labels, columns and paths for the same rows."""
    names = {"entailment": "follows", "neutral": "open", "contradiction": "clash"}
    for name in ("train-en", *(f"dev-{language}" for language in LANGUAGES)):
        rows = [line.split("\t") for line in (xnli / "xnli" / f"{name}.tsv").read_text().splitlines()]
        rows = [{"verdict": names[label], "then": b, "said": a} for a, b, label in rows]
        lines = ["verdict\tthen\tsaid", *("\t".join(row.values()) for row in rows)]
        path = tmp_path / "mine" / f"{name}.{kind}"
        write(path, [(line,) for line in (lines if kind == "tsv" else map(json.dumps, rows))])
    path = describe(
        tmp_path,
        labels=list(names.values()),
        texts=["said", "then"],
        label="verdict",
        spellings=None,
        languages=list(LANGUAGES),
        folder=None,
        train="mine/train-{language}",
        validation="mine/dev-{language}",
    )
    mine, theirs = load_task(path, data=tmp_path), load_task("xnli", data=xnli)
    for language, split in theirs.splits:
        assert table(mine, language, split) == table(theirs, language, split)


def test_a_task_of_ones_own_on_the_hub(hub_cache, tmp_path):
    """The rows of PAWS-X under another description; the columns and the folder of a split are told."""
    changes = {"folder": None, "texts": "sentence1", "label": "label", "languages": ["en", "de"]}
    source = {"id": "google-research-datasets/paws-x", "revision": load_description("pawsx").hub.revision}
    task = load_task(describe(tmp_path, **changes, spellings=None, hub=source))
    assert task.rows("de", "validation")[6] == {"row_id": 6, "text_a": "de 6", "label": 0}
    task = load_task(describe(tmp_path, **changes, spellings={"bad": [1], "good": [0]}, hub=source))
    assert task.rows("de", "validation")[6] == {"row_id": 6, "text_a": "de 6", "label": 1}


def test_labels_on_the_hub_are_matched_by_the_names_that_it_gives(hub_cache, tmp_path):
    features = Features({"review": Value("string"), "label": ClassLabel(names=["good", "bad"])})
    rows = Dataset.from_list([{"review": f"review {i}", "label": i % 2} for i in range(8)], features=features)
    for split in ("train", "validation"):
        rows.to_parquet(hub_cache / "en" / f"{split}-00000-of-00001.parquet")
    source = {"id": "google-research-datasets/paws-x", "revision": load_description("pawsx").hub.revision}
    asked = {"folder": None, "label": "label", "spellings": None, "languages": "en", "hub": source}
    assert load_task(describe(tmp_path, **asked)).rows("en", "train")["label"][:3] == [1, 0, 1]
    with pytest.raises(FlatlingoError, match="label 'good' is not one of reviews: poor, fine"):
        load_task(describe(tmp_path, **asked | {"labels": ["poor", "fine"]}))
    numbers = Features({"review": Value("string"), "label": Value("int64")})
    for known, names in ((rows, None), (rows.cast(numbers), {"good": ["0"], "bad": ["1"]})):
        nameless = known.add_item({"review": "a review that nobody has judged", "label": None})
        nameless.to_parquet(hub_cache / "en" / "train-00000-of-00001.parquet")
        task = load_task(describe(tmp_path, **asked | {"spellings": names}))
        assert task.rows("en", "train")["label"] == [1, 0] * 4, "and the row without a label is left out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "task reviews.yaml: labels: Field required"),
        ({"labels": ["yes"]}, "labels: Tuple should have at least 2"),
        ({"labels": [True, "b"]}, r"labels.0: .*string \(YAML reads yes, no, on and off"),
        ({"texts": ["a", "b", "c"]}, "texts: .*at most 2"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"spellings": {"god": ["5"]}}, "spellings: unknown label 'god'; did you mean 'good'"),
        ({"spellings": {"good": ["bad"]}}, "'bad' stands for two things"),
        ({"train": "reviews/train"}, "train: reviews/train is the same file for every language"),
        ({"hub": {"id": "a/b", "splits": 3}}, "hub.splits: Extra"),
        ({"name": "xnli"}, "name: xnli is a task that comes with flatlingo"),
        ({"name": "../xnli"}, "name: .*pattern"),
        ({"languages": ["fr"]}, "must include en"),
        ({"folder": None}, "names neither a folder nor a data set on the Hub"),
        ({"folder": "elsewhere"}, r"elsewhere/reviews: no such folder; the data folder must hold reviews/dev-LANG"),
        (
            {"texts": ["text", "headline"]},
            "train-en.tsv, line 1: label 'stars'; the labels are bad",
        ),
        (
            {"texts": "text"},
            r"line 1: 3 columns where there must be 2.* first line must name their columns .text, stars",
        ),
        ({"label": "colour"}, "line 1: 3 columns where there must be 2"),
        (
            {"spellings": {"bad": [1, 2], "good": [4]}},
            "train-en.tsv, line 3: label '5'; the labels are bad .1, 2., good",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_a_description_or_its_files_is_named(tmp_path, changes, message):
    reviews(tmp_path, "en", "train", 20)
    for language in ("en", "fr"):
        reviews(tmp_path, language)
    with pytest.raises(FlatlingoError, match=message):
        load_task(describe(tmp_path, **changes))


def test_a_column_that_a_file_has_twice_is_named(tmp_path):
    reviews(tmp_path, "en", "train", 20)
    reviews(tmp_path, "en")
    path = tmp_path / "files" / "reviews" / "dev-en.tsv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{header}\treview", *(f"{line}\tagain" for line in lines)]))
    with pytest.raises(FlatlingoError, match=r"dev-en.tsv, line 1: two columns are called 'review'"):
        load_task(describe(tmp_path, languages=["en"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("labels: [a", "not a YAML file"),
        ("labels: [a, b]\nname: x\nlabels: [c]", "line 3: 'labels' is given twice"),
        (None, "cannot be read: No such"),
    ],
)
def test_a_description_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(FlatlingoError, match=rf"task .*mine.yaml.*{message}"):
        load_description(path)


def test_descriptions_are_read_without_the_libraries_that_train():
    code = "import sys; from flatlingo import taskfiles as t; t.load_description('xnli'); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False"


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "pawsX"}, "unknown task 'pawsX'; did you mean 'pawsx'"),
        ({"task": "mini-nli", "languages": ["en", "fr"]}, "unknown language 'fr'"),
        ({"task": "xnli", "languages": ["en", "ja"]}, "xnli: unknown language 'ja'"),
        ({"task": "mini-nli", "languages": ["de"]}, "must include en"),
        ({"task": "mini-nli", "data": "."}, "takes no data folder"),
        ({"task": "mini-nli", "label_noise": 1.5}, "label_noise is 1.5"),
        ({"task": "xnli", "data": ".", "label_noise": -0.1}, "label_noise is -0.1"),
        ({"task": "mini-nli", "train_size": -1}, "train_size must be at least 0"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_wrong_argument(arguments, message):
    with pytest.raises(FlatlingoError, match=message):
        load_task(**arguments)


@pytest.mark.parametrize(
    ("language", "split", "message"),
    [("fr", "train", "xnli: unknown language 'fr'"), ("en", "test", "unknown split 'test'.* known: train, validation")],
)
def test_unknown_language_or_split_of_a_task(xnli, language, split, message):
    with pytest.raises(FlatlingoError, match=message):
        load_task("xnli", data=xnli).rows(language, split)


# Fingerprints


def test_provenance_follows_the_files_that_are_used(xnli):
    first = provenance("xnli", xnli, ["en", "de"])
    write(xnli / "xnli" / "dev-es.tsv", xnli_rows("new"))
    assert provenance("xnli", xnli, ["en", "de"]) == first
    write(xnli / "xnli" / "train-en.tsv", xnli_rows("new"))
    assert provenance("xnli", xnli, ["en", "de"]) != first


def test_provenances_tell_tasks_apart_and_need_no_hub():
    found = [provenance(name) for name in ("xnli", "pawsx", "mini-nli", "mini-paraphrase")]
    assert [p["source"] for p in found] == [
        "facebook/xnli",
        "google-research-datasets/paws-x",
        "generated",
        "generated",
    ]
    assert (
        [p["sha256"] is None for p in found] == [p["revision"] is not None for p in found] == [True, True, False, False]
    )
    assert found[2]["sha256"] != found[3]["sha256"]
    assert provenance("mini-nli", languages=["en"]) != found[2]


def test_provenance_of_a_task_of_ones_own_follows_its_description(tmp_path):
    for language, split in (("en", "train"), ("en", "dev"), ("fr", "dev")):
        reviews(tmp_path, language, split)
    first = provenance(describe(tmp_path))
    assert first["source"] == "files"
    assert provenance(describe(tmp_path, folder=str(tmp_path / "files"))) == first  # the same rows elsewhere
    assert provenance(describe(tmp_path, labels=["good", "bad"])) != first


def test_provenance_names_a_missing_file(xnli):
    (xnli / "xnli" / "dev-es.tsv").unlink()
    with pytest.raises(FlatlingoError, match=r"dev-es\.tsv: no such file"):
        provenance("xnli", xnli)
