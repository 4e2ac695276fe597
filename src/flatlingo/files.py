"""Where files lie, their digests, and how one is written: complete or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from flatlingo.errors import FlatlingoError

PACKAGE = Path(__file__).parent
PRESETS = PACKAGE / "presets"
SUMS = "SHA256SUMS"


def _checkout() -> Path | None:
    """The repository's folder; None where the package was installed without it."""
    folder = PACKAGE.parents[1]
    return folder if PACKAGE.parent.name == "src" and (folder / "pyproject.toml").is_file() else None


def _installed(name: str) -> Path:
    """Where pip has put a folder of `[tool.setuptools.data-files]`; a path that does not exist if it has not."""
    try:
        found = [file for file in files("flatlingo") or () if f"share/flatlingo/{name}/" in file.as_posix()]
    except PackageNotFoundError:
        found = []
    return Path(found[0].locate()).resolve().parent if found else PACKAGE / "share" / name


CHECKOUT = _checkout()
# Relative paths of stores, rows and figures are meant from the checkout, for notebooks run in their own folder; without
# a checkout from the working directory.
ROOT = CHECKOUT or Path()
MINI_MBERT = CHECKOUT / "data" / "mini-mbert" if CHECKOUT else _installed("mini-mbert")
RECORDED = CHECKOUT / "data" / "recorded" if CHECKOUT else None  # they come with the repository only
FIGURES = Path(os.environ.get("FLATLINGO_FIGURES", ROOT / "figures"))


def refuse_unwritable(folder: Path, what: object) -> None:
    """Find out before hours of computing whether a folder takes files; makes it.

    The file that is tried has no name, so that a killed process leaves nothing.

    Raises:
        FlatlingoError: if the folder cannot be made or takes no files; the message begins with what was to be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"a line\n")
    except OSError as error:
        raise FlatlingoError(f"{what} cannot be written: {error.strerror}; make room or give another place") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder, that takes its place when the block ends without error.

    Whatever goes wrong, `path` is either as it was or complete; nothing temporary stays. A folder takes the place of
    none or of an empty one only.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "numbers.txt")) as temporary:
    ...         _ = temporary.write_text("1 2 3")
    ...     [path.name for path in Path(folder).iterdir()]
    ['numbers.txt']

    Raises:
        OSError: if it cannot be written or replaced.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        _remove(temporary)  # of a process that was killed
        yield temporary
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write the digests of all files of a folder into its file `SHA256SUMS`, as `sha256sum -c` reads it."""
    with replacing(folder / SUMS) as temporary:
        paths = [path for path in folder.rglob("*") if path.is_file() and path.name != SUMS]
        names = sorted(str(path.relative_to(folder)) for path in paths)
        lines = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
        temporary.write_text(lines, encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """The digests of the files of a folder, by name, as they were written.

    Raises:
        OSError: if there are none.
        ValueError: if they are not text, or name a file outside the folder.
    """
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if outside := [name for name in sums if not (folder / name).resolve().is_relative_to(folder.resolve())]:
        raise ValueError(f"{SUMS} names {outside[0]!r}, which lies outside")
    return sums


def changed(folder: Path, names: tuple[str, ...] | None = None) -> str | None:
    """Why the files of a folder are not those whose digests were written into it; None if they are.

    Args:
        folder: the folder.
        names: the files that matter, each of which must be there; default all that have a digest.
    """
    try:
        sums = read_sums(folder)
        if not sums:
            return f"{SUMS} is empty"
        for name in sums if names is None else names:
            if sha256(folder / name) != sums.get(name):
                return f"{name} is not as it was written (its SHA-256 is not the one in {SUMS})"
    except OSError as error:
        return f"{Path(error.filename).name if error.filename else folder.name}: {error.strerror}"
    except ValueError as error:
        return str(error).partition("\n")[0]
    return None
