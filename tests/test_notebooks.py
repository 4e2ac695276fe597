"""What every committed notebook keeps to, so that people can read, rerun and compare it."""

import ast
import json
import re
from itertools import pairwise

import nbformat
import papermill
import pytest

from flatlingo.files import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = {"parameters", "nbval-check-output", "nbval-ignore-output"}
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'(=])(?:/(?:[\w.-]+/)+[\w.-]|[A-Z]:\\\w)""", re.MULTILINE)
LARGEST = 600_000  # six figures


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def visible_text(notebook):
    """Sources and textual outputs, one string per piece."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (text for kind, text in output.get("data", {}).items() if not kind.startswith("image/"))


def test_the_notebooks_of_the_study_are_there():
    assert [path.stem for path in PATHS] == [
        "0_start_here", "1_theory", "2_figure1", "3_figure2", "4_fisher_estimators", "5_beyond_the_paper",
        "6_using_the_trace", "explore",
    ]  # fmt: skip


def test_valid_small_and_without_traces_of_a_run(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size <= LARGEST
    assert len(notebook.cells) <= 25
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.display_name == "Python 3 (ipykernel)"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        assert set(cell.metadata.get("tags", [])) <= TAGS
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_tells_its_story_in_the_same_order(notebook):
    first, *_, last = notebook.cells
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "2021" in first.source  # the paper it follows
    assert notebook.cells[1] in tagged(notebook, "parameters")
    assert "import flatlingo as fl" in notebook.cells[2].source
    assert "nbval-ignore-output" in last.metadata.tags
    assert "versions()" in last.source
    assert any("does not show" in cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert any("assert " in cell.source for cell in code(notebook))
    assert tagged(notebook, "nbval-check-output")


def test_one_parameters_cell_of_documented_literals(path, notebook):
    (cell,) = tagged(notebook, "parameters")
    assert not tagged(notebook, "injected-parameters")
    statements = ast.parse(cell.source).body
    for statement in statements:
        assert isinstance(statement, ast.AnnAssign)
        assert isinstance(statement.value, ast.Constant)
    inspected = papermill.inspect_notebook(str(path))
    assert list(inspected) == [statement.target.id for statement in statements]
    for parameter in inspected.values():
        assert parameter["help"], parameter["name"]


def test_imports_stand_in_one_cell_and_code_calls_the_package(notebook):
    holding = [
        cell
        for cell in code(notebook)
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(ast.parse(cell.source)))
    ]
    assert len(holding) == 1
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 35
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 10, node.name


def test_executed_in_order_without_errors_or_noise(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
    for cell in tagged(notebook, "nbval-check-output"):
        assert cell.outputs, cell.id


def test_figures_have_captions(notebook):
    drawing = [cell for cell in code(notebook) if "plt.show()" in cell.source]
    for cell in drawing:
        assert "save_figure(" in cell.source
        assert cell.source.splitlines()[-1].removeprefix("    display(").startswith('Markdown(f"**Figure')


def test_no_absolute_paths(notebook):
    for text in visible_text(notebook):
        assert not ABSOLUTE_PATH.search(text), ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize("text", ["see /home/me/x.py", "'/tmp/a/b'", "C:\\Users\\x", "cwd=/opt/x/y"])
def test_absolute_paths_would_be_seen(text):
    assert ABSOLUTE_PATH.search(text)


def test_links_lead_somewhere(path, notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)]+)\)", cell.source):
                assert target.startswith("https://") or (path.parent / target).is_file(), target


def test_headings_do_not_skip_levels(notebook):
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    levels = [len(mark) for mark in re.findall(r"^(#+) ", source, flags=re.MULTILINE)]
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))


def test_file_is_written_as_nbformat_writes_it(path, notebook):
    """So that executing it again changes what changed and nothing else."""
    assert json.loads(nbformat.writes(notebook)) == json.loads(path.read_text(encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"
