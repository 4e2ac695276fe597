"""Find the files of a model or of rows: in a folder, in the Hugging Face cache or on the Hub, with plain errors."""

import hashlib
import os
import re
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, validate_repo_id
from pyarrow import parquet

from flatlingo.errors import FlatlingoError, first_line
from flatlingo.files import MINI_MBERT, sha256

SHIPPED = {"mini-mbert": MINI_MBERT}
PROBE_SECONDS = 3.0
CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model")
PART = re.compile(r"-\d{5}-of-(\d{5})\.")  # of a file in parts
COMMIT = re.compile("[0-9a-f]{40}")


def checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint; what the Hugging Face cache lacks of it is downloaded.

    Args:
        source: "mini-mbert" (the shipped encoder), a folder, or a Hub id.
        revision: of a Hub id: a commit, a tag or a branch; None for the newest, or the one in the cache.

    Raises:
        FlatlingoError: if there is no such folder, and neither the cache nor the Hub has it (within 5 s).
    """
    if folder := _folder(source):
        return folder
    options = {"besides": TOKENIZER_FILES, "ignore_patterns": "*/*", "revision": revision}
    return _snapshot(str(source), "model", CHECKPOINT_FILES, "*.safetensors", "", **options)


def without_weights(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint with its configuration and tokenizer, whatever else it has; nothing is downloaded.

    Args:
        source: as for `checkpoint`.
        revision: likewise.

    Raises:
        FlatlingoError: as `checkpoint`, and for what is not in the Hugging Face cache.
    """
    if folder := _folder(source):
        return folder
    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(str(source), revision=revision, local_files_only=True))
        has_tokenizer = any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
        if has_tokenizer and (folder / "config.json").is_file():
            return folder
    raise FlatlingoError(
        f"{source}: neither a folder nor in the Hugging Face cache with its configuration and tokenizer; run `hf "
        f'download {source} --include "*.json" "*.txt" "*.model"`, or give a folder as the model'
    )


def load_rows(hub_id: str, config: str, split: str, *, revision: str | None = None) -> Dataset:
    """Load one split of a data set on the Hub, in memory, with the names of its labels if it tells them.

    Only the Parquet files of that configuration and split are downloaded, into the Hugging Face cache.

    Args:
        hub_id: such as "facebook/xnli"; its files lie at `CONFIG/SPLIT-*.parquet`.
        config: such as "en".
        split: such as "validation".
        revision: a commit, a tag or a branch; None for the newest, or the one in the cache.

    Raises:
        FlatlingoError: if the data set is not in the cache and the Hub cannot be reached (within 5 s) or lacks it.
    """
    files = f"{config}/{split}-*.parquet"
    options = f'--repo-type dataset --include "{config}/*"'
    folder = _snapshot(hub_id, "dataset", (files,), files, options, revision=revision)
    try:
        return Dataset(pa.concat_tables([parquet.read_table(path) for path in sorted(folder.glob(files))]))
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise FlatlingoError(f"{hub_id}: cannot read {files}: {first_line(error)}") from error


def provenance(source: str | Path, revision: str | None = None) -> dict[str, str | None]:
    """What tells the weights, configuration and tokenizer of a checkpoint from others.

    Args:
        source: as for `checkpoint`.
        revision: likewise.

    Returns:
        `source`: "files" for a folder, else the Hub id; `revision`: for a Hub id its `commit`; `sha256`: for a folder,
        over its files.

    Raises:
        FlatlingoError: if the source is a path and there is no such folder.
    """
    folder = _folder(source)
    if folder is None:
        return {"source": str(source), "revision": commit(str(source), revision, "model"), "sha256": None}
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0".encode() + bytes.fromhex(sha256(path)))
    return {"source": "files", "revision": None, "sha256": digest.hexdigest()}


def commit(hub_id: str, revision: str | None, kind: str) -> str | None:
    """The commit of a repository on the Hub.

    Args:
        hub_id: such as "facebook/xnli".
        revision: a commit, which is the answer itself; a tag or a branch; None for the newest, or the one in the cache.
        kind: "model" or "dataset".

    Returns:
        40 hexadecimal digits, from the cache if it knows the revision, else from the Hub; None if neither tells it.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    reference = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type=kind), "refs")
    with suppress(OSError):
        return (reference / (revision or "main")).read_text().strip()
    if not _hub_answers():
        return None
    with suppress(Exception):  # a mistyped name is told when the repository is loaded
        return HfApi(endpoint=_endpoint()).repo_info(hub_id, repo_type=kind, revision=revision or "main").sha
    return None


def _folder(source: str | Path) -> Path | None:
    """The folder that a source names; None if it can only be a Hub id."""
    folder = SHIPPED.get(str(source), Path(source).expanduser())
    if folder.is_dir():
        return folder
    if str(source) in SHIPPED:
        raise FlatlingoError(
            f"{source}: the shipped encoder is not at {folder}; install flatlingo again, or build it in a checkout of "
            "the repository (`make pretrain`)"
        )
    try:
        validate_repo_id(str(source))
        if isinstance(source, str):
            return None
    except HFValidationError:
        pass
    reason = "is a file" if folder.is_file() else "no such folder"
    raise FlatlingoError(f"{source}: {reason}; give a folder that holds config.json and model.safetensors, or a Hub id")


def _snapshot(
    hub_id: str,
    kind: str,
    files: tuple[str, ...],
    needed: str,
    options: str,
    *,
    besides: tuple[str, ...] = ("*",),
    **filters: str | None,
) -> Path:
    """The folder of a repository's files: from the cache if all are there, else downloaded.

    The cache may hold some of them only, because another program asked for no more. Of those `needed` it must have
    every part; where it has nothing of what belongs `besides`, the Hub is asked if it can be reached.
    """
    download = partial(
        snapshot_download, hub_id, repo_type=kind, allow_patterns=list(files), endpoint=_endpoint(), **filters
    )
    cached = None
    with suppress(LocalEntryNotFoundError):
        folder = Path(download(local_files_only=True))
        cached = folder if _has_all_parts(folder, needed) else None
    if cached and any(path for pattern in besides for path in cached.glob(pattern)):
        return cached
    if not _hub_answers():
        if cached:
            return cached
        pinned = f"--revision {filters['revision']}" if filters.get("revision") else ""
        command = " ".join(f"hf download {hub_id} {options} {pinned}".split())
        raise FlatlingoError(
            f"{hub_id}: not a folder, not in the Hugging Face cache, and the Hub at {_endpoint()} cannot be reached"
            f"{' (HF_HUB_OFFLINE is set)' if _offline() else ''}. Check the name; or run `{command}` with a connection "
            "and copy the cache (HF_HOME) here; or give a local folder"
        )
    try:
        folder = Path(download())
    except RepositoryNotFoundError as error:
        raise FlatlingoError(
            f"{hub_id}: no such folder, and the Hub has no {kind} of this name, or asks for a login (`hf auth login`)"
        ) from error
    except Exception as error:  # whatever else stops a download, the user needs its reason and not its traceback
        raise FlatlingoError(f"{hub_id}: the download failed: {first_line(error)}") from error
    if not any(folder.glob(needed)):
        raise FlatlingoError(f"{hub_id}: the {kind} on the Hub has no file {needed}")
    return folder


def _has_all_parts(folder: Path, pattern: str) -> bool:
    """Whether there are files of this pattern; where they are parts, as `train-00000-of-00002.parquet`, all of them."""
    paths = list(folder.glob(pattern))
    announced = {int(part[1]) for path in paths if (part := PART.search(path.name))}
    return len(paths) >= max(announced, default=1)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT)


def _offline() -> bool:
    return constants.is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES


def _hub_answers() -> bool:
    """Whether the Hub gives any answer within PROBE_SECONDS; huggingface_hub alone would try for half a minute."""
    if _offline():
        return False
    answers = []

    def probe() -> None:
        with suppress(Exception):  # refused, unknown host, broken proxy, …: all mean no answer
            answers.append(get_session().head(_endpoint(), timeout=PROBE_SECONDS))

    # A thread, because looking up a host name heeds no time-out.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answers)
