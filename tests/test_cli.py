"""The command line, run as a user runs it: a process of its own."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from flatlingo import cli
from flatlingo.errors import FlatlingoError
from flatlingo.study.locks import lock

HANGS = 600  # seconds: guards against hanging, on machines however busy


def process(*arguments, cwd=None, python=(), **options):
    command = [sys.executable, *python, "-m", "flatlingo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=HANGS, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    done = process("train", "--preset", "smoke", "--output", "model", "--family", "l2", "--weight", 0.1, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "model"


def test_train_keeps_the_model_and_its_result(checkpoint):
    result = json.loads((checkpoint / "result.json").read_text())
    assert set(result["accuracy"]) == {"en", "de", "es", "zh"}
    assert "second_stage" not in result
    assert (checkpoint / "model.safetensors").is_file()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]


def test_two_calls_do_not_train_into_one_folder(tmp_path):
    (tmp_path / ".model.work").mkdir()
    with lock(tmp_path / ".model.work" / "lock"):
        done = process("train", "--preset", "smoke", "--output", "model", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flatlingo: model: another call trains into this folder; wait for it, or give another\n"


def test_a_call_that_waited_for_another_does_not_train_what_that_one_has_made(tmp_path):
    output, work = tmp_path / "model", tmp_path / ".model.work"
    output.mkdir()
    with pytest.raises(FlatlingoError, match="model exists; give a new folder"), cli._alone(work, output):
        pytest.fail("it trains")
    assert not work.exists()


@pytest.mark.parametrize("option", ["--store", "--data", "--tensorboard"])
def test_a_path_from_a_variable_that_is_not_set_is_refused(flatlingo, option):
    code, _, message = flatlingo("sweep", "nli", option, "")
    assert code == 2
    assert f"Invalid value for '{option}': it is empty" in message


def test_a_full_disk_is_told_without_a_traceback(tmp_path):
    trained = ["train", "--preset", "smoke", "--output", "o"]
    command = shlex.join([sys.executable, "-m", "flatlingo", *trained])
    done = subprocess.run(["bash", "-c", f"ulimit -f 400; {command}"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_home_is_found_behind_an_equals_sign_too(flatlingo, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    code, _, message = flatlingo("train", "--output=~/model")
    assert (code, message) == (2, f"flatlingo: {tmp_path / 'model'} exists; give a new folder\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep", "nli", "--preset", "smoke"], "--store"),
        (["sweep", "nli", "--preset", "smoke", "--store", "s", "--data", "nowhere"], "nowhere"),
        (["sweep", "nli", "--preset", "smoke", "--store", "s", "--model", "./nowhere"], "nowhere"),
        (["trace", "mini-mbert", "--task", "mini-nli", "--language", "fr"], "fr"),
        (["train", "--output", "o", "--tensorboard", "/dev/null/board"], "/dev/null/board cannot be written"),
        (["pretrain", "nowhere.txt", "--output", "o"], "nowhere.txt"),
        (["notebook", "nowhere.ipynb", "o.ipynb"], "no notebook"),
        (["pretrain", "--mini-world", "--output", "/dev/null/encoder"], "/dev/null/encoder cannot be written: "),
        (["calibrate", "nli", "--preset", "smoke", "--store", "s", "--output", "."], "is a folder; give the name of a"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_mistake_ends_with_one_message_and_leaves_nothing(flatlingo, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, message = flatlingo(*arguments)
    refused(tmp_path, code, message, says)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "nli", "--preset", "smoke", "--store", "s"],
        ["calibrate", "nli", "--preset", "mini", "--store", "s", "--output", "c.csv"],
        ["pretrain", "--mini-world", "--output", "encoder"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_one_process_does_is_refused_under_a_launcher_of_several(flatlingo, tmp_path, monkeypatch, arguments):
    """Each would train all of it, and mix the others' gradients into its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, message = flatlingo(*arguments)
    refused(tmp_path, code, message, "is called by 2 processes (torchrun, accelerate launch)")


@pytest.mark.parametrize(
    "arguments", [["train", "--output", "o"], ["sweep", "nli", "--dry-run"], ["status", ".", "nli"]], ids=lambda a: a[0]
)
def test_a_folder_of_rows_is_where_the_command_is_given(tmp_path, arguments):
    done = process(*arguments, "--preset", "smoke", "--data", "rows", cwd=tmp_path)
    refused(tmp_path, done.returncode, done.stderr, f"{tmp_path / 'rows' / 'xnli'}: no such folder")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trace", "./nowhere", "--task", "mini-nli"], "nowhere"),
        (["rank", "mini-mbert", "./nowhere", "--task", "mini-nli"], "nowhere"),
        (["trace", "mini-mbert"], "--rows"),
        (["sweep", "figure1", "--preset", "smoke", "--store", "s"], "unknown plan"),
        (["sweep", "nli", "--preset", "mimi", "--store", "s"], "did you mean 'mini'"),
        (["train", "--family", "magic", "--output", "o"], "family"),
        (["train", "--family", "l2", "--weight", "-1", "--output", "o"], "weight"),
        (["train", "--family", "fisher_penalty", "--output", "o"], "needs a --weight above 0 (λ), as in Fisher"),
        (["train", "--weight", "3", "--output", "o"], "none at 3: this family has no weight"),
        (["train", "--preset", "absent.yaml", "--output", "o"], "absent.yaml: cannot be read: No such file"),
        (["train", "--output", "."], "exists"),
        (["train", "--output", "a/b", "--model", "./nowhere"], "nowhere"),
        (["train", "--family", "dropout", "--weight", "1.5", "--output", "o"], "a probability is below 1"),
        (["status", "nowhere"], "nowhere"),
        (["trace", "mini-mbert", "--task", "mnli"], "unknown task"),
        (["pretrain", "--output", "o"], "text files, or --mini-world"),
        (["pretrain", "nowhere.txt", "--output", "o", "--claims", "0.5"], "--claims"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_mistake_in_an_argument_is_told_without_waiting_for_torch(tmp_path, arguments, says):
    done = process(*arguments, cwd=tmp_path, python=["-X", "importtime"])
    refused(tmp_path, done.returncode, done.stderr, says)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "flatlingo.cli" in loaded
    assert not {"torch", "transformers", "datasets"} & loaded


def refused(folder, code, message, says):
    """That a command ended with one message and has left nothing."""
    assert code == 2
    message = re.sub("^import time:.*\n", "", message, flags=re.M)
    assert says in message
    assert "Traceback" not in message
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("lacking", "arguments", "extra"),
    [
        ("joblib", ["sweep", "nli", "--preset", "smoke", "--store", "s"], "study"),
        ("submitit", ["sweep", "nli", "--preset", "smoke", "--store", "s"], "study"),
        ("papermill", ["notebook", "a.ipynb", "b.ipynb"], "notebooks"),
        ("tensorboard", ["train", "--preset", "smoke", "--output", "o", "--tensorboard", "boards"], "study"),
    ],
)
def test_what_an_extra_brings_is_named_where_it_is_not_installed(tmp_path, lacking, arguments, extra):
    code = f"import sys; sys.modules[{lacking!r}] = None; from flatlingo.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=HANGS)
    refused(
        tmp_path, done.returncode, done.stderr, f'{lacking}, which is not installed: pip install "flatlingo[{extra}]"'
    )


def test_without_the_hub_a_name_fails_with_the_remedy(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "PATH": "", "FLATLINGO_CPU": "1"}
    done = process("sweep", "nli", "--preset", "paper", "--store", "s", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "--data" in done.stderr or "hf download" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()
