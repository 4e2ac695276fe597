"""Run a notebook through papermill and keep only what should be kept of it."""

import base64
import io
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
import yaml
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient.exceptions import DeadKernelError
from PIL import Image

from flatlingo.errors import FlatlingoError, first_line, unknown
from flatlingo.files import refuse_unwritable, replacing

# What changes on every execution without the notebook's content changing.
VOLATILE = ("papermill", "widgets", "execution")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
COLOURS = 256  # of a figure in a notebook: lines and text need no more
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
START_SECONDS = 600  # a kernel that does not answer by then never will


def read_parameters(texts: Iterable[str]) -> dict[str, object]:
    """Parameters as the command line takes them, each `NAME=VALUE` with the value in YAML.

    >>> read_parameters(["seeds=3", "preset=mini", "weights=[0.1, 1]"])
    {'seeds': 3, 'preset': 'mini', 'weights': [0.1, 1]}

    Raises:
        FlatlingoError: for one without a value, or whose value is not YAML or nothing that JSON has, such as a date.
    """
    return dict(map(_parameter, texts))


def _parameter(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise FlatlingoError(f"parameter {name!r} has no value; write -p {name}=VALUE")
    quoted = f"if it is text, quote it twice: -p '{name}=\"{value}\"'"
    try:
        read = yaml.safe_load(value)
        json.dumps(read)
    except yaml.YAMLError as error:
        raise FlatlingoError(f"parameter {name}: {value} is not YAML; {quoted}") from error
    except TypeError as error:
        raise FlatlingoError(
            f"parameter {name}: YAML reads {value} as a {type(read).__name__}, which a notebook is not given; {quoted}"
        ) from error
    return name, read


def run_notebook(source: Path, output: Path, parameters: dict[str, object], *, log: bool = False) -> Path:
    """Execute a notebook with parameters and write the clean result, without traces of time or machine.

    The kernel is this interpreter's, whatever kernel the notebook names or Jupyter finds first; its folder is the
    notebook's. Output appears only on success; a failed execution is kept as `<output>.failed.ipynb` for reading.

    Args:
        source: the notebook.
        output: where the executed one goes; may be the source itself.
        parameters: values for names in the cell tagged `parameters`.
        log: stream what the cells print.

    Raises:
        FlatlingoError: for a notebook that is missing, cannot be read or is not in Python, a parameter that it does not
            have, an output that cannot be written, a cell that fails, or a kernel that does not start or dies.
    """
    notebook = _read(source)
    known = tuple(papermill.inspect_notebook(notebook))
    for name in parameters:
        if name not in known:
            raise FlatlingoError(f"{source.name}: {unknown('parameter', name, known)}")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    for path in (output, failed):
        if path.is_dir():
            raise FlatlingoError(f"{path} is a folder; give the name of a file")
    refuse_unwritable(output.parent, output)
    try:
        executed = _execute(notebook, failed, parameters, folder=source.parent, log=log)
        with replacing(output) as temporary:
            nbformat.write(clean(executed), temporary)
    except (papermill.PapermillExecutionError, OSError, RuntimeError, LookupError) as error:
        raise FlatlingoError(f"{source.name} {_reason(error)}\n(executed so far: {failed})") from error
    failed.unlink()
    return output


def _reason(error: Exception) -> str:
    """What became of an execution, in words."""
    if isinstance(error, papermill.PapermillExecutionError):
        return f"failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
    if isinstance(error, DeadKernelError):
        return "lost its kernel: a cell ended it, or the system did, as it does when memory runs out"
    if isinstance(error, NoSuchKernel):
        return f'finds no kernel for {sys.executable}: pip install "flatlingo[notebooks]"'
    return f"cannot be executed by {sys.executable}: {first_line(error)}"


def _read(source: Path) -> nbformat.NotebookNode:
    """A notebook in Python, of nbformat 4."""
    if not source.is_file():
        raise FlatlingoError(f"no notebook {source}; they are in notebooks/ ({_listing(source.parent)})")
    try:
        notebook = nbformat.read(source, as_version=4)
        nbformat.validate(notebook)
        language = notebook.metadata.get("kernelspec", {}).get("language", "python")
    except Exception as error:  # nbformat raises whatever a broken file leads it to
        raise FlatlingoError(
            f"{source} is not a notebook (a merge conflict, or cut short?): {first_line(error)}"
        ) from error
    if language != KERNEL["language"]:
        raise FlatlingoError(f"{source} is written in {language}; only notebooks in Python are executed")
    notebook.metadata.kernelspec = KERNEL
    return notebook


class _OwnKernel(AsyncKernelManager):
    """Starts this interpreter's kernel, also where Jupyter would find another of its name first."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def _execute(
    notebook: nbformat.NotebookNode, output: Path, parameters: dict[str, object], *, folder: Path, log: bool
) -> nbformat.NotebookNode:
    with warnings.catch_warnings(), _progress("lines" if log else "none"):  # a bar would fill the log
        warnings.simplefilter("ignore")
        return papermill.execute_notebook(
            notebook,
            str(output),
            parameters=parameters,
            kernel_name=KERNEL["name"],
            kernel_manager_class=_OwnKernel,
            cwd=str(folder),
            progress_bar=False,
            log_output=log,
            start_timeout=START_SECONDS,
        )


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

    A widget is nothing without its kernel, so each has a static figure beside it. Figures keep 256 colours, which makes
    them three times smaller.

    Without injected parameters, a notebook that computes the same thing twice is then the same file twice.
    """
    for holder in (notebook, *notebook.cells):
        for name in VOLATILE:
            holder.metadata.pop(name, None)
    notebook.metadata.kernelspec = KERNEL
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and WIDGET_VIEW not in output.get("data", {})
            ]
            for output in cell.outputs:
                if picture := output.get("data", {}).get("image/png"):
                    output.data["image/png"] = _with_few_colours(picture)
    return notebook


def _with_few_colours(picture: str) -> str:
    """A PNG in base64 with a palette; one that has a palette stays as it is."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        if image.mode == "P":
            return picture
        packed = io.BytesIO()
        image.convert("RGB").quantize(COLOURS).save(packed, "png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.ipynb"))) or "none here"
