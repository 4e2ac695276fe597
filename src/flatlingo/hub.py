"""Load a model, a tokenizer or rows from a folder, the Hugging Face cache or the Hub, with plain errors.

Models are safetensors only, and code that comes with a checkpoint is never run.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from flatlingo.errors import FlatlingoError
from flatlingo.paths import MINI_MBERT

SHIPPED = {"mini-mbert": MINI_MBERT}
PROBE_SECONDS = 3.0
CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
# What a model leaves out as it becomes a classifier: heads for masked words and sentence order, unused pooler, buffers.
PRETRAINING_ONLY = re.compile(
    r"(cls|lm_head|decoder|pred_layer|sop_classifier|vocab_\w+|\w*predictions|(\w+\.)?pooler)\.|.*\bposition_ids$"
)
# Padding a vocabulary to a round size adds less than this share; bert-base-cased has 95 % of bert-base-uncased's size.
VOCABULARY_SHARE = 0.96
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError)


def load_model(
    source: str | Path,
    num_labels: int,
    *,
    dropout: float | None = None,
    seed: int | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """Load a pre-trained encoder with a classification head, to be fine-tuned.

    A head (and pooler) that the checkpoint lacks is initialised as the architecture prescribes; one that it has with
    this number of labels is kept. The model is in float32, on CPU and in eval mode.

    Args:
        source: "mini-mbert" (the shipped encoder), a folder, or a Hub id such as
            "google-bert/bert-base-multilingual-cased".
        num_labels: number of classes.
        dropout: probability in [0, 1) for every dropout of the model that its configuration sets to a number; None
            keeps the configuration's.
        seed: of the fresh head. torch's global generators are left alone; None draws from them.
        attention: "eager", "sdpa", …; None for the library's choice.

    Raises:
        FlatlingoError: if the source cannot be found (within 5 s) or loaded, brings code to run, has no safetensors,
            or its weights are not those of the configured encoder.
    """
    folder = _checkpoint(source)
    config = _config(folder, source)
    config.num_labels = num_labels
    config.problem_type = "single_label_classification"  # as the first loss would set it
    if dropout is not None:
        _set_dropout(config, dropout)
    return _load(folder, source, config, seed=seed, attention=attention)[0]


def load_classifier(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a fine-tuned classifier, in float32 on CPU and in eval mode, and its tokenizer.

    Args:
        source: a folder as `save_pretrained` writes it, or a Hub id.

    Raises:
        FlatlingoError: as `load_model` and `load_tokenizer`, and if the checkpoint has no classification head.
    """
    folder = _checkpoint(source)
    model, fresh = _load(folder, source, _config(folder, source))
    if fresh:
        raise FlatlingoError(
            f"{source}: the checkpoint has no classification head ({_some(fresh)}); fine-tune it first, or give the "
            "folder of a fine-tuned classifier"
        )
    return model, load_tokenizer(source)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Args:
        source: as for `load_model`.

    Raises:
        FlatlingoError: if the source cannot be found or loaded, or the tokenizer's vocabulary is not the model's: some
            of its ids have no embedding, or (tokenizer files missing, or of another model) many embeddings no id.
    """
    folder = _checkpoint(source)
    config = _config(folder, source)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: the tokenizer cannot be loaded: {_first_line(error)}") from error
    rows, ids = getattr(config.get_text_config(), "vocab_size", None), len(tokenizer)
    if rows is not None and not VOCABULARY_SHARE * rows <= ids <= rows:
        raise FlatlingoError(
            f"{source}: the tokenizer has {ids:,} tokens, the model embeds {rows:,}; they do not belong together. Put "
            "the tokenizer that the model was trained with (tokenizer.json or vocab.txt) beside its weights"
        )
    return tokenizer


def load_rows(hub_id: str, config: str, split: str) -> Dataset:
    """Load one split of a data set on the Hub, in memory.

    Only the Parquet files of that configuration and split are downloaded, into the Hugging Face cache.

    Args:
        hub_id: such as "facebook/xnli"; its files lie at `CONFIG/SPLIT-*.parquet`.
        config: such as "en".
        split: such as "validation".

    Raises:
        FlatlingoError: if the data set is not in the cache and the Hub cannot be reached (within 5 s) or lacks it.
    """
    files = f"{config}/*{split}*.parquet"
    folder = _snapshot(hub_id, "dataset", (files,), files, f'--repo-type dataset --include "{config}/*"')
    try:
        tables = [pd.read_parquet(path) for path in sorted(folder.glob(files))]
        return Dataset.from_pandas(pd.concat(tables), preserve_index=False)
    except (OSError, ValueError) as error:
        raise FlatlingoError(f"{hub_id}: cannot read {files}: {_first_line(error)}") from error


def fingerprint(source: str | Path) -> str | None:
    """SHA-256 over the weights, configuration and tokenizer of a checkpoint folder; None for a Hub id.

    Raises:
        FlatlingoError: if the source is a path and there is no such folder.
    """
    folder = _folder(source)
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _checkpoint(source: str | Path) -> Path:
    folder = _folder(source)
    return folder or _snapshot(str(source), "model", CHECKPOINT_FILES, "*.safetensors", "", ignore_patterns="*/*")


def _folder(source: str | Path) -> Path | None:
    """The folder that a source names; None if it can only be a Hub id."""
    folder = SHIPPED.get(str(source), Path(source).expanduser())
    if folder.is_dir():
        return folder
    if str(source) in SHIPPED:
        raise FlatlingoError(f"{source}: the shipped encoder is missing; `make pretrain` builds it")
    try:
        validate_repo_id(str(source))
        if isinstance(source, str):
            return None
    except HFValidationError:
        pass
    reason = "is a file" if folder.is_file() else "no such folder"
    raise FlatlingoError(f"{source}: {reason}; give a folder that holds config.json and model.safetensors, or a Hub id")


def _snapshot(hub_id: str, kind: str, files: tuple[str, ...], needed: str, options: str, **filters) -> Path:
    """The folder of a repository's files: from the cache if those needed are there, else downloaded."""
    download = partial(
        snapshot_download, hub_id, repo_type=kind, allow_patterns=list(files), endpoint=_endpoint(), **filters
    )
    with suppress(LocalEntryNotFoundError):
        folder = Path(download(local_files_only=True))
        if any(folder.glob(needed)):
            return folder
    if not _hub_answers():
        command = " ".join(f"hf download {hub_id} {options}".split())
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
        raise FlatlingoError(f"{hub_id}: the download failed: {_first_line(error)}") from error
    if not any(folder.glob(needed)):
        raise FlatlingoError(f"{hub_id}: the {kind} on the Hub has no file {needed}")
    return folder


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


def _config(folder: Path, source: str | Path) -> PreTrainedConfig:
    """The configuration, once it is certain that the checkpoint brings no code."""
    if not (folder / "config.json").is_file():
        raise FlatlingoError(f"{source}: no config.json in this folder; give the folder of a saved model")
    if (folder / "result.json").is_file() and (folder / "model" / "config.json").is_file():
        raise FlatlingoError(f"{source}: the folder of a run; its checkpoint is {Path(source) / 'model'}")
    try:
        for path in (folder / "config.json", folder / "tokenizer_config.json"):
            if path.is_file() and "auto_map" in json.loads(path.read_text(encoding="utf-8")):
                raise FlatlingoError(
                    f"{source}: {path.name} asks to run code that comes with the checkpoint (auto_map), which "
                    "flatlingo never does; use a model that transformers knows"
                )
        with _quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except FlatlingoError:
        raise
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: the configuration cannot be read: {_first_line(error)}") from error


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise FlatlingoError(f"dropout must be at least 0 and less than 1; got {dropout}")
    names = [name for name, value in config.to_dict().items() if "dropout" in name and isinstance(value, int | float)]
    if not names:
        raise FlatlingoError(f"a model of type {config.model_type} has no dropout to set; leave it out")
    for name in names:
        setattr(config, name, dropout)


def _load(
    folder: Path, source: str | Path, config: PreTrainedConfig, *, seed: int | None = None, attention: str | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """The model in eval mode, and which weights of its head and pooler the checkpoint does not have."""
    _refuse_pickle(folder, source)
    try:
        with _quiet(), _seeded(seed):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that they are reported, and refused below
                output_loading_info=True,
            )
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: cannot be loaded as a classifier: {_first_line(error)}") from error
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise FlatlingoError(
            f"{source}: {name} has shape {tuple(found)} in the checkpoint but {tuple(wanted)} was asked for; the "
            "weights are of another vocabulary, size or number of labels"
        )
    if unexpected := sorted(key for key in info["unexpected_keys"] if not PRETRAINING_ONLY.match(key)):
        raise FlatlingoError(
            f"{source}: the checkpoint has weights that config.json knows nothing of ({_some(unexpected)}); it belongs "
            "to another architecture or number of layers"
        )
    encoder = re.compile(rf"{model.base_model_prefix}\.(?!pooler\.)")
    if lacking := sorted(key for key in info["missing_keys"] if encoder.match(key)):
        raise FlatlingoError(
            f"{source}: the checkpoint lacks weights that config.json announces ({_some(lacking)}); they would be noise"
        )
    return model, sorted(info["missing_keys"])


def _refuse_pickle(folder: Path, source: str | Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    if not (pickle := next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)):
        raise FlatlingoError(f"{source}: no model.safetensors in this folder")
    raise FlatlingoError(
        f"{source}: {pickle.name} is a pickle, which flatlingo does not open. Convert it, if you trust it, in its "
        'folder: python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{pickle.name}', weights_only=True); "
        "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors', {'format': 'pt'})\""
    )


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Draw from torch's CPU generator as if seeded with `seed`, and leave it as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' bars and loading report: what matters in the report becomes an error here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
