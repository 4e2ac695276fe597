"""`flatlingo trace` and `flatlingo rank` through the command line's own entry point."""

import io
import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
import transformers
from tiny import make_model, make_rows, make_tokenizer

from flatlingo.evaluation import comparison, trace_of_rows

GROUPS = ["embeddings", "other embeddings", "encoder", "pooler", "head"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints, and rows of pairs and of single texts."""
    folder = tmp_path_factory.mktemp("trace")
    for seed, name in enumerate(("one", "two")):
        make_model(seed=seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    rows = make_rows(9)
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "texts.tsv").write_text("text_a\tlabel\n" + "\n".join(f"{row['text_a']}\tspam" for row in rows))
    return folder


def expected(folder, name, columns):
    rows = [{column: row[column] for column in columns} for row in make_rows(9)]
    seed = {"one": 0, "two": 1}[name]
    return trace_of_rows(make_model(seed=seed), make_tokenizer(), rows, max_length=128)


def test_trace_as_json(flatlingo, folder):
    code, out, err = flatlingo("trace", folder / "one", "--rows", folder / "pairs.jsonl", "--output", "json")
    assert (code, "Tr(F)" in err) == (0, True)
    found, trace = json.loads(out), expected(folder, "one", ["text_a", "text_b"])
    assert (found["model"], found["examples"]) == (str(folder / "one"), 9)
    assert found["trace"] == pytest.approx(trace.value, rel=1e-5)
    assert found["standard_error"] == pytest.approx(trace.standard_error, rel=1e-5)
    assert list(found["groups"]) == GROUPS
    assert sum(group["value"] for group in found["groups"].values()) == pytest.approx(found["trace"])


def test_a_checkpoint_that_cannot_be_ranked_is_told_before_any_is_measured(flatlingo, folder):
    code, out, err = flatlingo("rank", folder / "one", "mini-mbert", "--rows", folder / "pairs.jsonl")
    assert (code, out) == (2, "")
    assert "mini-mbert" in err
    assert "1 of 2" not in err


def test_a_checkpoint_that_is_no_numbers_is_named(flatlingo, folder, tmp_path):
    broken = make_model()
    broken.classifier.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    make_tokenizer().save_pretrained(tmp_path / "broken")
    code, _, err = flatlingo("rank", folder / "one", tmp_path / "broken", "--rows", folder / "pairs.jsonl")
    assert (code, f"{tmp_path / 'broken'}: the logits of example" in err) == (2, True)


@pytest.mark.parametrize("examples", [2, 40])
def test_the_classes_are_those_of_the_task_whatever_rows_are_drawn(flatlingo, tmp_path, examples):
    config = transformers.BertConfig(**make_model().config.to_diff_dict() | {"num_labels": 2})
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "two")
    make_tokenizer().save_pretrained(tmp_path / "two")
    code, _, err = flatlingo("trace", tmp_path / "two", "--task", "mini-nli", "--examples", examples)
    assert (code, "tells 2 classes apart, the task has 3" in err) == (2, True)


def test_trace_as_csv(flatlingo, folder):
    code, out, err = flatlingo(
        "trace", folder / "one", "--rows", folder / "texts.tsv", "--output", "csv", "--no-progress"
    )
    assert (code, err) == (0, "")
    table = pd.read_csv(io.StringIO(out), index_col="group")
    assert list(table.index) == [*GROUPS, "all"]
    assert table.loc["all", "value"] == pytest.approx(expected(folder, "one", ["text_a"]).value, rel=1e-5)


def test_trace_as_a_table_in_a_process_of_its_own(folder):
    command = [sys.executable, "-m", "flatlingo", "trace", "one", "--rows", "texts.tsv", "--examples", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first.startswith("Tr(F) = ")
    assert first.endswith("nats², 4 examples")
    assert [line.rsplit(maxsplit=3)[0] for line in lines[2:]] == [*GROUPS, "all"]


def test_trace_of_one_row_has_no_standard_error(flatlingo, folder, tmp_path):
    (tmp_path / "one.tsv").write_text("text_a\nthe cat\n")
    _, out, _ = flatlingo("trace", folder / "one", "--rows", tmp_path / "one.tsv", "--output", "json")
    assert json.loads(out)["standard_error"] is None


def test_trace_on_a_task(flatlingo, folder):
    code, out, _ = flatlingo(
        "trace", folder / "one", "--task", "mini-nli", "--language", "de", "--examples", 12, "--max-length", 64
    )
    assert code == 0
    assert "12 examples" in out


@pytest.mark.parametrize("command", ["trace", "rank"])
def test_a_task_is_measured_on_without_its_training_rows(flatlingo, folder, tmp_path, command):
    (tmp_path / "xnli").mkdir()
    labels = ("entailment", "neutral", "contradiction")
    (tmp_path / "xnli" / "dev-en.tsv").write_text("".join(f"the cat\tdog {i}\t{labels[i % 3]}\n" for i in range(6)))
    models = [folder / name for name in ("one", "two")][: 1 if command == "trace" else 2]
    code, out, err = flatlingo(command, *models, "--task", "xnli", "--data", tmp_path)
    assert code == 0, err
    assert "6 examples" in out


@pytest.mark.parametrize("output", ["json", "csv"])
def test_rank_pairs_the_rows(flatlingo, folder, output):
    paths = [str(folder / name) for name in ("two", "one")]
    code, out, _ = flatlingo("rank", *paths, "--rows", folder / "pairs.jsonl", "--output", output)
    assert code == 0
    read = pd.DataFrame(json.loads(out)) if output == "json" else pd.read_csv(io.StringIO(out))
    columns = ["text_a", "text_b"]
    wanted = comparison({path: expected(folder, path.rpartition("/")[2], columns) for path in paths})
    pd.testing.assert_frame_equal(read.set_index("model"), wanted, rtol=1e-5)


def test_rank_as_a_table_says_what_is_under_way(flatlingo, folder):
    code, out, err = flatlingo("rank", folder / "one", folder / "two", "--rows", folder / "texts.tsv")
    assert code == 0
    assert "(2 of 2)" in err
    count, header, *lines = out.splitlines()
    assert count == "9 examples"
    assert header.split() == ["trace", "standard_error", "above", "low", "high", "order"]
    assert {line.split()[0] for line in lines[:2]} == {str(folder / "one"), str(folder / "two")}
    assert float(lines[0].split()[1]) <= float(lines[1].split()[1])
    *_, order = lines[1].split()
    assert len(lines) == (2 if float(order) >= 0.95 else 3)


def test_rank_marks_an_order_that_is_not_settled(flatlingo, folder, tmp_path):
    """A copy is neither flatter nor sharper than its original."""
    shutil.copytree(folder / "one", tmp_path / "copy")
    paths = [str(folder / "one"), str(tmp_path / "copy"), str(folder / "two")]
    code, out, _ = flatlingo("rank", *paths, "--rows", folder / "texts.tsv")
    assert code == 0
    _, _, *lines, last = out.splitlines()
    order = [line.split()[0] for line in lines]
    assert sorted(order) == sorted(paths)
    second = max(paths[:2], key=order.index)
    assert second in last
    assert last.startswith("not settled against the one above: ")


def test_rank_says_when_traces_are_over_other_numbers_of_parameters(flatlingo, folder, tmp_path):
    make_model(seed=3, num_hidden_layers=1).save_pretrained(tmp_path / "small")
    make_tokenizer().save_pretrained(tmp_path / "small")
    _, _, err = flatlingo("rank", folder / "one", tmp_path / "small", "--rows", folder / "texts.tsv", "--no-progress")
    sizes = [sum(p.numel() for p in make_model(num_hidden_layers=layers).parameters()) for layers in (2, 1)]
    assert f"differ in number: {folder / 'one'} {sizes[0]:,}, {tmp_path / 'small'} {sizes[1]:,}" in err


BAD = {
    "a language of a file": (["trace", "{one}", "--rows", "{texts}", "--language", "de"], "leave them out with --rows"),
    "an order of one row": (["rank", "{one}", "{two}", "--rows", "{single}"], "one row says nothing of an order"),
    "no rows named": (["trace", "{one}"], "give --task, or"),
    "two kinds of rows": (["trace", "{one}", "--task", "mini-nli", "--rows", "{texts}"], "give --task, or"),
    "no such file": (["trace", "{one}", "--rows", "nowhere.tsv"], "nowhere.tsv: cannot be read"),
    "a bad line": (["rank", "{one}", "{two}", "--rows", "{bad}"], "bad.tsv, line 3: 2 columns"),
    "twice the same": (["rank", "{one}", "{one}", "--rows", "{texts}"], "given twice"),
    "no such checkpoint": (["rank", "{one}", "./nowhere", "--rows", "{texts}", "--no-progress"], "./nowhere"),
    "no such format": (["trace", "{one}", "--rows", "{texts}", "--output", "xml"], "'xml'"),
    "no batch": (["trace", "{one}", "--rows", "{texts}", "--batch-size", "0"], "--batch-size"),
    "no such task": (["trace", "{one}", "--task", "mini-nil"], "did you mean 'mini-nli'"),
    "no such language": (["rank", "{one}", "--task", "mini-nli", "--language", "fr"], "fr"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_a_mistake_is_named_without_a_traceback(flatlingo, folder, tmp_path, arguments, says):
    (tmp_path / "bad.tsv").write_text("text_a\nx\ny\tz\n")
    (tmp_path / "single.tsv").write_text("text_a\nx\n")
    places = {
        "one": folder / "one",
        "single": tmp_path / "single.tsv",
        "two": folder / "two",
        "texts": folder / "texts.tsv",
        "bad": tmp_path / "bad.tsv",
    }
    code, out, err = flatlingo(*(argument.format(**places) for argument in arguments))
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
