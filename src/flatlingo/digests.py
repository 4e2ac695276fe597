"""Digests of the files of a folder, in a file `SHA256SUMS` as `sha256sum -c` reads it."""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> None:
    """Write the digests of all files of a folder into it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(lines, encoding="utf-8")


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


def changed(folder: Path) -> str | None:
    """Why the files of a folder are not those whose digests were written into it; None if they are."""
    try:
        for name, digest in read_sums(folder).items():
            if sha256(folder / name) != digest:
                return f"{name} is not as it was written"
    except OSError as error:
        return f"{Path(error.filename).name if error.filename else folder.name}: {error.strerror}"
    except ValueError as error:
        return str(error).partition("\n")[0]
    return None
