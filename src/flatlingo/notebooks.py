"""Run a notebook through papermill and keep only what should be kept of it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill

from flatlingo.errors import FlatlingoError, unknown

# What changes on every execution without the notebook's content changing.
VOLATILE = ("papermill", "widgets", "execution")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def run_notebook(source: Path, output: Path, parameters: dict[str, object], *, log: bool = False) -> Path:
    """Execute a notebook with parameters and write the clean result, without traces of time or machine.

    The kernel is this interpreter's, its folder the notebook's. Output appears only on success; a failed execution is
    kept as `<output>.failed.ipynb` for reading.

    Args:
        source: the notebook.
        output: where the executed one goes; may be the source itself.
        parameters: values for names in the cell tagged `parameters`.
        log: stream what the cells print.

    Raises:
        FlatlingoError: for a missing notebook, a parameter it does not have, or a cell that fails.
    """
    if not source.is_file():
        raise FlatlingoError(f"no notebook {source}; they are in notebooks/ ({_listing(source.parent)})")
    known = tuple(papermill.inspect_notebook(str(source)))
    for name in parameters:
        if name not in known:
            raise FlatlingoError(f"{source.name}: {unknown('parameter', name, known)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    try:
        with warnings.catch_warnings(), _progress("lines" if log else "none"):  # a bar would fill the log
            warnings.simplefilter("ignore")
            executed = papermill.execute_notebook(
                str(source),
                str(failed),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(source.parent),
                progress_bar=False,
                log_output=log,
            )
    except papermill.PapermillExecutionError as error:
        raise FlatlingoError(
            f"{source.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"(executed so far: {failed})"
        ) from error
    temporary = output.with_name(f".{output.name}.part")
    nbformat.write(clean(executed), temporary)
    os.replace(temporary, output)
    failed.unlink()
    return output


@contextmanager
def _progress(kind: str) -> Iterator[None]:
    """How sweeps in kernels started meanwhile show their progress, unless the environment says already."""
    if "FLATLINGO_PROGRESS" in os.environ:
        yield
        return
    os.environ["FLATLINGO_PROGRESS"] = kind
    try:
        yield
    finally:
        del os.environ["FLATLINGO_PROGRESS"]


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove, in place, what papermill and the kernel leave in the metadata and in stderr outputs, and widgets.

    A widget is nothing without its kernel, so each has a static figure beside it.

    Without injected parameters, a notebook that computes the same thing twice is then the same file twice.
    """
    for holder in (notebook, *notebook.cells):
        for name in VOLATILE:
            holder.metadata.pop(name, None)
    notebook.metadata.kernelspec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and WIDGET_VIEW not in output.get("data", {})
            ]
    return notebook


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.ipynb"))) or "none here"
