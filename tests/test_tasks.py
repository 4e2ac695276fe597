import os
from collections import Counter

import pandas as pd
import pytest
from huggingface_hub import constants

from flatlingo.errors import FlatlingoError
from flatlingo.tasks import fingerprint, load_task

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
    return {text for language in task.languages for row in table(task, language, split) for text in row[1:3]}


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
        (b"one\ttwo\tcontradictory\n", "label 'contradictory'; the labels are entailment, neutral, contradiction"),
        (b"one\ttwo\t-\n", "label '-'"),
        (b"one\t \tneutral\n", "an empty text"),
        (b"one\tz\xfcrich\tneutral\n", "not UTF-8"),
        (b"one\rtwo\tthree\tneutral\n", "new-line character"),
        (b"one\t" + b"long " * 40_000 + b"\tneutral\n", "field larger than"),
    ],
    ids=["2 columns", "4 columns", "blank", "label", "gold label -", "empty text", "latin-1", "stray CR", "huge"],
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
    with pytest.raises(FlatlingoError, match=rf"{missing}\.tsv: no such file; the data folder must hold xnli/train-en"):
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


@pytest.mark.parametrize("option", ["train_size", "validation_size"])
@pytest.mark.parametrize(("size", "message"), [(61, "61 rows asked for, (60|12) there"), (0, "at least 1; got 0")])
def test_impossible_size(xnli, option, size, message):
    with pytest.raises(FlatlingoError, match=message):
        load_task("xnli", data=xnli, **{option: size})


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
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = repository / "snapshots" / ("0" * 40)
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


def test_unlabelled_hub_rows_are_dropped(hub_cache):
    hub_file(hub_cache, "en", "train", pawsx_rows("train", 60), label=[-1, *[0, 1] * 29, 0])
    train = load_task("pawsx").rows("en", "train")
    assert len(train) == 59
    assert set(train["label"]) == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"label": 2}, "labels in de validation are not those of pawsx"), ({"id": range(40)}, "in another order")],
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


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "pawsX"}, "unknown task 'pawsX'; did you mean 'pawsx'"),
        ({"name": "mini-nli", "languages": ["en", "fr"]}, "unknown language 'fr'"),
        ({"name": "xnli", "languages": ["en", "ja"]}, "xnli: unknown language 'ja'"),
        ({"name": "mini-nli", "languages": ["de"]}, "must include en"),
        ({"name": "mini-nli", "data": "."}, "takes no data folder"),
        ({"name": "mini-nli", "label_noise": 1.5}, "label_noise is 1.5"),
        ({"name": "xnli", "data": ".", "label_noise": 0.1}, "xnli takes no label_noise"),
        ({"name": "mini-nli", "train_size": 0}, "train_size must be at least 1"),
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


def test_fingerprint_follows_the_files_that_are_used(xnli):
    first = fingerprint("xnli", xnli, ["en", "de"])
    write(xnli / "xnli" / "dev-es.tsv", xnli_rows("new"))
    assert fingerprint("xnli", xnli, ["en", "de"]) == first
    write(xnli / "xnli" / "train-en.tsv", xnli_rows("new"))
    assert fingerprint("xnli", xnli, ["en", "de"]) != first


def test_fingerprints_tell_tasks_apart_and_need_no_hub():
    assert fingerprint("mini-nli", None) == fingerprint("mini-nli", None)
    assert len({fingerprint(name, None) for name in ("xnli", "pawsx", "mini-nli", "mini-paraphrase")}) == 4


def test_fingerprint_names_a_missing_file(xnli):
    (xnli / "xnli" / "dev-es.tsv").unlink()
    with pytest.raises(FlatlingoError, match=r"dev-es\.tsv: no such file"):
        fingerprint("xnli", xnli)
