"""The command line, run as a user runs it: a process of its own."""

import json
import subprocess
import sys

import pytest


def flatlingo(*arguments, cwd=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "flatlingo", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, **options
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    done = flatlingo("train", "--preset", "smoke", "--output", "model", "--family", "l2", "--weight", 0.1, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "model"


def test_train_keeps_the_model_and_its_result(checkpoint):
    result = json.loads((checkpoint / "result.json").read_text())
    assert set(result["accuracy"]) == {"en", "de", "es", "zh"}
    assert (checkpoint / "model.safetensors").is_file()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep", "figure1", "--preset", "mimi", "--store", "s"], "did you mean 'mini'"),
        (["sweep", "figure1", "--preset", "smoke", "--store", "s", "--data", "nowhere"], "nowhere"),
        (["sweep", "figure1", "--preset", "smoke", "--store", "s", "--model", "./nowhere"], "nowhere"),
        (["trace", "./nowhere", "--task", "mini-nli"], "nowhere"),
        (["trace", "mini-mbert", "--task", "mnli"], "unknown task"),
        (["trace", "mini-mbert", "--task", "mini-nli", "--language", "fr"], "fr"),
        (["train", "--family", "magic", "--output", "o"], "family"),
        (["train", "--family", "l2", "--weight", "-1", "--output", "o"], "weight"),
        (["train", "--output", "."], "exists"),
        (["pretrain", "--output", "o"], "text files, or --mini-world"),
        (["pretrain", "nowhere.txt", "--output", "o"], "nowhere.txt"),
        (["pretrain", "nowhere.txt", "--output", "o", "--claims", "0.5"], "--claims"),
        (["notebook", "nowhere.ipynb", "o.ipynb"], "no notebook"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_mistake_ends_with_one_message_and_leaves_nothing(tmp_path, arguments, says):
    done = flatlingo(*arguments, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_the_hub_a_name_fails_with_the_remedy(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "PATH": ""}
    done = flatlingo("sweep", "figure1", "--preset", "paper", "--store", "s", cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "--data" in done.stderr or "hf download" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()
