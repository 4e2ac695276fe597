"""The comparison of committed outputs: what passes, and that a changed number fails."""

import importlib.util
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from flatlingo.files import ROOT

CONFTEST = ROOT / "notebooks" / "conftest.py"
spec = importlib.util.spec_from_file_location("notebooks_conftest", CONFTEST)
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)


@pytest.mark.parametrize(
    ("reference", "found", "same"),
    [
        ("trace 12.345", "trace 12.345", True),
        ("trace 12.345", "trace 12.346", True),
        ("trace 1234.5", "trace 1235.4", True),
        ("trace 12.345", "trace 12.445", False),
        ("trace 12.345", "Trace 12.345", False),
        ("runs 48", "runs 49", False),
        ("0.5 agrees", "0.5 contradicts", False),
        ("a  9.99\nb 10.00", "a 10.00\nb 10.00", True),
        ("a 0.5", "a -0.5", False),
        ("a 0.5 0.6", "a 0.5", False),
        ("p 1e-05", "p 2e-05", True),
        ("p 1e-05", "p 1e-04", False),
        ("change -5", "change -4", False),
    ],
)
def test_decimals_have_a_tolerance_and_nothing_else_has(reference, found, same):
    assert conftest.same(reference, found) is same


@pytest.mark.parametrize(("printed", "passes"), [("0.5000", True), ("0.5001", True), ("0.5500", False)])
def test_a_changed_number_makes_nbval_fail(tmp_path, printed, passes):
    cell = new_code_cell("print('trace 0.5000')", execution_count=1, metadata={"tags": ["nbval-check-output"]})
    cell.outputs = [new_output("stream", name="stdout", text=f"trace {printed}\n")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "checked.ipynb")
    shutil.copy(CONFTEST, tmp_path)
    command = ["-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "checked.ipynb"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) is passes, done.stdout
