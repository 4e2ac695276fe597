"""Notebooks through papermill: parameters checked, results clean, failures kept for reading."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from flatlingo.errors import FlatlingoError
from flatlingo.notebooks import run_notebook


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
