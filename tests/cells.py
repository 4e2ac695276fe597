"""A notebook's cells run in the test's own process: quicker than a kernel, which `test_run_notebook` has."""

from collections.abc import Mapping
from pathlib import Path

import nbformat


def execute(path: Path, parameters: Mapping[str, object]) -> None:
    """Run the cells of a notebook."""
    names: dict = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{path.stem}: {cell.id}", "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters
