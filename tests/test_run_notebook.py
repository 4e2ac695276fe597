"""Notebooks through papermill: parameters checked, results clean, failures kept for reading and told in one message."""

import json
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from flatlingo.errors import FlatlingoError
from flatlingo.notebooks import read_parameters, run_notebook


@pytest.fixture
def notebook(tmp_path):
    """A notebook that fails if `n` is 0, and prints noise to stderr."""
    cells = [
        new_markdown_cell("# Halves"),
        new_code_cell("n: int = 4  # what to halve", metadata={"tags": ["parameters"]}),
        new_code_cell("import os, sys\nprint(1 / n, os.getcwd().rsplit('/', 1)[1]); print('noise', file=sys.stderr)"),
    ]
    path = tmp_path / "halves" / "halves.ipynb"
    path.parent.mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def printed(path):
    return "".join(output.text for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", []))


def test_parameters_reach_the_notebook_and_its_folder_is_its_own(notebook, tmp_path):
    run_notebook(notebook, tmp_path / "out" / "result.ipynb", {"n": 8})
    assert printed(tmp_path / "out" / "result.ipynb") == "0.125 halves\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.ipynb"]


def test_executed_in_place_twice_it_is_the_same_file(notebook):
    run_notebook(notebook, notebook, {})
    first = notebook.read_bytes()
    run_notebook(notebook, notebook, {})
    assert notebook.read_bytes() == first
    assert printed(notebook) == "0.25 halves\n"


def test_an_unknown_parameter_is_refused_before_anything_runs(notebook, tmp_path):
    with pytest.raises(FlatlingoError, match=r"halves.ipynb: unknown parameter 'nn'; did you mean 'n'"):
        run_notebook(notebook, tmp_path / "out.ipynb", {"nn": 8})
    assert not list(tmp_path.glob("out*"))


def test_a_failed_notebook_is_kept_under_another_name_until_it_succeeds(notebook, tmp_path):
    output = tmp_path / "out.ipynb"
    with pytest.raises(FlatlingoError, match="ZeroDivisionError"):
        run_notebook(notebook, output, {"n": 0})
    assert not output.exists()
    assert (tmp_path / "out.failed.ipynb").exists()
    run_notebook(notebook, output, {"n": 1})
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.ipynb"]


def small(path, *code, **metadata):
    nbformat.write(new_notebook(cells=[new_code_cell(text) for text in code], metadata=metadata), path)
    return path


def test_the_kernel_is_this_interpreters_where_another_of_its_name_comes_first(tmp_path, monkeypatch):
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/no/such/python", "{connection_file}"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    source = small(tmp_path / "which.ipynb", "import sys; print(sys.executable)")
    assert printed(run_notebook(source, tmp_path / "out.ipynb", {})) == f"{sys.executable}\n"


@pytest.mark.parametrize(
    "metadata",
    [{}, {"kernelspec": {"name": "nowhere", "display_name": "x"}}],
    ids=["no kernel named", "unknown kernel"],
)
def test_a_notebook_runs_whatever_kernel_it_names(tmp_path, metadata):
    source = small(tmp_path / "bare.ipynb", "print(6 * 7)", **metadata)
    assert printed(run_notebook(source, tmp_path / "out.ipynb", {})) == "42\n"


def test_a_dead_kernel_is_told(tmp_path):
    source = small(tmp_path / "dead.ipynb", "print('alive')", "import os; os._exit(1)")
    with pytest.raises(FlatlingoError, match="dead.ipynb lost its kernel.*memory"):
        run_notebook(source, tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()
    assert printed(tmp_path / "out.failed.ipynb") == "alive\n"


@pytest.mark.parametrize(
    "text",
    ["<<<<<<< HEAD\n{}", "", "{}", "[]", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}', "\xff"],
    ids=["merge conflict", "empty", "an object", "a list", "a cell that is none", "Latin-1"],
)
def test_a_broken_notebook_is_told_and_nothing_written(tmp_path, text):
    (tmp_path / "broken.ipynb").write_text(text, encoding="latin-1")
    with pytest.raises(FlatlingoError, match="broken.ipynb is not a notebook"):
        run_notebook(tmp_path / "broken.ipynb", tmp_path / "out.ipynb", {})
    assert not list(tmp_path.glob("out*"))


def test_another_language_is_refused(tmp_path):
    kernel = {"name": "ir", "display_name": "R", "language": "R"}
    with pytest.raises(FlatlingoError, match="written in R"):
        run_notebook(small(tmp_path / "r.ipynb", "x <- 1", kernelspec=kernel), tmp_path / "out.ipynb", {})


@pytest.mark.parametrize(("output", "says"), [("file/out.ipynb", "cannot be written"), ("folder", "is a folder")])
def test_an_output_that_cannot_be_written_is_told_before_anything_runs(tmp_path, output, says):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    source = small(tmp_path / "touches.ipynb", "open('ran', 'w')")
    with pytest.raises(FlatlingoError, match=says):
        run_notebook(source, tmp_path / output, {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("day=2024-01-01", r"day: YAML reads 2024-01-01 as a date.*-p 'day=\"2024-01-01\"'"),
        ("names=[a", r"names: \[a is not YAML"),
        ("preset", "'preset' has no value"),
    ],
    ids=["a date", "broken YAML", "no value"],
)
def test_a_parameter_that_a_notebook_cannot_be_given_is_told_with_the_remedy(text, says):
    with pytest.raises(FlatlingoError, match=says):
        read_parameters([text])


def test_the_remedy_for_a_date_is_one(tmp_path):
    assert read_parameters(['day="2024-01-01"']) == {"day": "2024-01-01"}


def test_the_command_ends_in_one_message(tmp_path):
    (tmp_path / "broken.ipynb").write_text("<<<<<<< HEAD")
    command = [sys.executable, "-m", "flatlingo", "notebook", "broken.ipynb", "out.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "flatlingo: broken.ipynb is not a notebook" in done.stderr
