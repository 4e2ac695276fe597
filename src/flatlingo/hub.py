"""Load a model, a tokenizer or rows from a folder, the Hugging Face cache or the Hub, with plain errors.

Models are safetensors only, and code that comes with a checkpoint is never run.
"""

import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from datasets import Dataset
from huggingface_hub import HfApi, constants, get_session, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, validate_repo_id
from pyarrow import parquet
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from flatlingo.errors import FlatlingoError, first_line
from flatlingo.files import MINI_MBERT, sha256
from flatlingo.labels import class_names, label_order

SHIPPED = {"mini-mbert": MINI_MBERT}
PROBE_SECONDS = 3.0
CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model")
PART = re.compile(r"-\d{5}-of-(\d{5})\.")  # of a file in parts
# What a model leaves out as it becomes a classifier: heads for masked words and sentence order, unused pooler, buffers.
PRETRAINING_ONLY = re.compile(
    r"(cls|lm_head|decoder|pred_layer|sop_classifier|vocab_\w+|\w*predictions|(\w+\.)?pooler)\.|.*\bposition_ids$"
)
# Padding a vocabulary to a round size adds less than this share; bert-base-cased has 95 % of bert-base-uncased's size.
VOCABULARY_SHARE = 0.96
HEAD_WEIGHT = re.compile(
    r"\b(classifier|score|logits_proj|classification_head|sequence_summary)\.((?!lora_|original_module)\w+\.)*weight$"
)
COMMIT = re.compile("[0-9a-f]{40}")
LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError),
    *(SafetensorError, StrictDataclassError),  # the last: a setting of another type than its field
)


def load_model(
    source: str | Path,
    num_labels: int | Sequence[str],
    *,
    revision: str | None = None,
    dropout: float | None = None,
    seed: int | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """Load a pre-trained encoder with a classification head, to be fine-tuned.

    A head (and pooler) that the checkpoint lacks is initialised as the architecture prescribes. One that it has with
    this number of labels is kept; if its classes have names, these decide: where they are the labels' in another order,
    its rows are put into the labels' order, where they are others, the head is initialised anew, and a warning says
    which. The model is in float32, on CPU and in eval mode.

    Args:
        source: "mini-mbert" (the shipped encoder), a folder, or a Hub id such as
            "google-bert/bert-base-multilingual-cased".
        num_labels: number of classes, or their names in the order of the integers that stand for them.
        revision: of a Hub id: a commit, a tag or a branch; None for the newest, or the one in the cache.
        dropout: probability in [0, 1) for every dropout of the model that its configuration sets to a number; None
            keeps the configuration's.
        seed: of the fresh head. torch's global generators are left alone; None draws from them.
        attention: "eager", "sdpa", …; None for the library's choice.

    Raises:
        FlatlingoError: if the source cannot be found (within 5 s) or loaded, brings code to run, has no safetensors,
            or its weights are not those of the configured encoder.
    """
    folder = _checkpoint(source, revision)
    if _is_adapter(folder):
        raise FlatlingoError(
            f"{source}: the folder of an adapter, not of an encoder to be fine-tuned; load_classifier loads it, and "
            "merge_and_unload().save_pretrained(…) of that makes it a checkpoint"
        )
    config = _config(folder, source)
    names = class_names(config)
    _check_labels(num_labels)
    config.num_labels = num_labels if isinstance(num_labels, int) else len(num_labels)
    config.problem_type = "single_label_classification"  # as the first loss would set it
    if dropout is not None:
        _set_dropout(config, dropout)
    model, fresh = _load(folder, source, config, seed=seed, attention=attention)
    if names and not any(_is_head(model, name) for name in fresh):
        _settle_head(model, source, names, num_labels, seed)
    if not isinstance(num_labels, int):
        model.config.id2label = dict(enumerate(num_labels))
        model.config.label2id = {name: position for position, name in enumerate(num_labels)}
    return model


def _check_labels(num_labels: int | Sequence[str]) -> None:
    """Refuse what cannot be told apart."""
    names = range(num_labels) if isinstance(num_labels, int) and num_labels is not True else num_labels
    if names is True or len(names) < 2 or len(set(names)) < len(names):
        raise FlatlingoError(f"num_labels={num_labels!r}: give a number of classes, 2 or more, or their distinct names")


def load_classifier(
    source: str | Path, *, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a fine-tuned classifier, in float32 on CPU and in eval mode, and its tokenizer.

    The folder of an adapter, as peft's `save_pretrained` and transformers' `add_adapter` make it, is put on its base
    model by peft. What was trained, the adapter and the head saved with it, requires gradients, and the rest does not:
    Tr(F) is over these parameters. `merge_and_unload()` makes it a model of which Tr(F) is over all.

    Args:
        source: a folder as `save_pretrained` writes it, or a Hub id.
        revision: as for `load_model`.

    Raises:
        FlatlingoError: as `load_model` and `load_tokenizer`, and if the checkpoint has no classification head.
    """
    folder = _checkpoint(source, revision)
    if _is_adapter(folder):
        return _load_adapter(folder, source), load_tokenizer(source, revision=revision)
    model, fresh = _load(folder, source, _config(folder, source))
    if fresh:
        raise FlatlingoError(
            f"{source}: the checkpoint has no classification head ({_some(fresh)}); fine-tune it first, or give the "
            "folder of a fine-tuned classifier"
        )
    return model, load_tokenizer(source, revision=revision)


def load_tokenizer(source: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; that of its base model for an adapter without one.

    Args:
        source: as for `load_model`.
        revision: likewise.

    Raises:
        FlatlingoError: if the source cannot be found or loaded, or the tokenizer's vocabulary is not the model's: some
            of its ids have no embedding, or (tokenizer files missing, or of another model) many embeddings no id.
    """
    folder = model_folder = _checkpoint(source, revision)
    if _is_adapter(folder):
        base = _adapter_settings(folder, source)
        model_folder = _checkpoint(base["base_model_name_or_path"], base.get("revision"))
        folder = folder if any(folder.glob("tokenizer*")) or any(folder.glob("vocab.*")) else model_folder
    return _tokenizer(folder, _config(model_folder, source), source)


def _tokenizer(folder: Path, config: PreTrainedConfig, source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, if it is one of the configured model."""
    _refuse_code(folder, source)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False
            )
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: the tokenizer cannot be loaded: {first_line(error)}") from error
    rows, ids = getattr(config.get_text_config(), "vocab_size", None), len(tokenizer)
    if rows is not None and not VOCABULARY_SHARE * rows <= ids <= rows:
        raise FlatlingoError(
            f"{source}: the tokenizer has {ids:,} tokens, the model embeds {rows:,}; they do not belong together. Put "
            "the tokenizer that the model was trained with (tokenizer.json or vocab.txt) beside its weights"
        )
    return tokenizer


def load_shape(
    source: str | Path, labels: int, *, revision: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier of an encoder's shape, its weights random and its head fresh, in eval mode, and the tokenizer.

    The weights of the encoder need not be there, and nothing is downloaded.

    Args:
        source: as for `load_model`.
        labels: number of classes.
        revision: as for `load_model`.

    Raises:
        FlatlingoError: as `load_model` and `load_tokenizer`, and for what is not in the Hugging Face cache.
    """
    folder = _folder(source) or _cached(str(source), revision)
    config = _config(folder, source)
    config.num_labels = labels
    try:
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: no classifier can be made of config.json: {first_line(error)}") from error
    return model, _tokenizer(folder, config, source)


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
        source: as for `load_model`.
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


def _checkpoint(source: str | Path, revision: str | None = None) -> Path:
    if folder := _folder(source):
        return folder
    options = {"besides": TOKENIZER_FILES, "ignore_patterns": "*/*", "revision": revision}
    return _snapshot(str(source), "model", CHECKPOINT_FILES, "*.safetensors", "", **options)


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


def _cached(hub_id: str, revision: str | None) -> Path:
    """The folder of the Hugging Face cache with a model's configuration and tokenizer, whatever else it has."""
    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
        has_tokenizer = any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
        if has_tokenizer and (folder / "config.json").is_file():
            return folder
    raise FlatlingoError(
        f"{hub_id}: neither a folder nor in the Hugging Face cache with its configuration and tokenizer; run `hf "
        f'download {hub_id} --include "*.json" "*.txt" "*.model"`, or give a folder as the model'
    )


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


def _config(folder: Path, source: str | Path) -> PreTrainedConfig:
    """The configuration, once it is certain that the checkpoint brings no code."""
    if not (folder / "config.json").is_file():
        raise FlatlingoError(f"{source}: no config.json in this folder; give the folder of a saved model")
    if (folder / "result.json").is_file() and (folder / "model" / "config.json").is_file():
        raise FlatlingoError(f"{source}: the folder of a run; its checkpoint is {Path(source) / 'model'}")
    _refuse_code(folder, source)
    try:
        with _quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: the configuration cannot be read: {first_line(error)}") from error


def _refuse_code(folder: Path, source: str | Path) -> None:
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.is_file() and "auto_map" in _json(path, source):
            raise FlatlingoError(
                f"{source}: {path.name} asks to run code that comes with the checkpoint (auto_map), which flatlingo "
                "never does; use a model that transformers knows"
            )


def _json(path: Path, source: str | Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FlatlingoError(f"{source}: the configuration cannot be read, {path.name}: {first_line(error)}") from error


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
        raise FlatlingoError(f"{source}: cannot be loaded as a classifier: {first_line(error)}") from error
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, wanted = mismatched[0]
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
    if not (pickle := next(iter(sorted(folder.glob("*_model*.bin"))), None)):
        raise FlatlingoError(f"{source}: no model.safetensors in this folder")
    raise FlatlingoError(
        f"{source}: {pickle.name} is a pickle, which flatlingo does not open. Convert it, if you trust it, in its "
        'folder: python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{pickle.name}', weights_only=True); s.save_file({{k: v.clone().contiguous() for k, v in "
        f"w.items()}}, '{pickle.name.replace('pytorch_', '').replace('.bin', '.safetensors')}', {{'format': 'pt'}})\""
    )


def _is_head(model: PreTrainedModel, name: str) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def _settle_head(
    model: PreTrainedModel, source: str | Path, names: list[str], labels: int | Sequence[str], seed: int | None
) -> None:
    """Make a head whose classes have names one for the labels, and say what was done."""
    if isinstance(labels, int):
        told = (
            f"keeps the checkpoint's head, whose classes are {', '.join(names)}; give their names to have them matched"
        )
        warnings.warn(f"{source}: {told}", stacklevel=3)
        return
    try:
        order = label_order(names, labels)
    except FlatlingoError:
        order = None
    if order == sorted(range(len(names))):
        return
    last = [
        module
        for name, module in model.named_modules()
        if _is_head(model, f"{name}.") and isinstance(module, nn.Linear) and module.out_features == len(names)
    ]
    if order and len(last) == 1:
        told = f"its head's classes ({', '.join(names)}) are put into the labels' order ({', '.join(labels)})"
        with torch.no_grad():
            for parameter in last[0].parameters():
                parameter.copy_(parameter[order].clone())
    else:
        told = f"its head, whose classes are {', '.join(names)}, is initialised anew for {', '.join(labels)}"
        with _quiet(), _seeded(seed), torch.no_grad():
            fresh = dict(type(model)(model.config).named_parameters())
            for name, parameter in model.named_parameters():
                if _is_head(model, name):
                    parameter.copy_(fresh[name])
    warnings.warn(f"{source}: {told}", stacklevel=3)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _adapter_settings(folder: Path, source: str | Path) -> dict:
    settings = _json(folder / "adapter_config.json", source)
    if not settings.get("base_model_name_or_path"):
        raise FlatlingoError(
            f"{source}: adapter_config.json names no base model; write its folder or Hub id there "
            "(base_model_name_or_path)"
        )
    return settings


def _load_adapter(folder: Path, source: str | Path) -> PreTrainedModel:
    """The base model of an adapter with the adapter on it."""
    from peft import PeftModel  # slow to import, and seldom needed

    settings = _adapter_settings(folder, source)
    base = settings["base_model_name_or_path"]
    _refuse_pickle(folder, source)
    try:
        base_folder = _checkpoint(base, settings.get("revision"))
    except FlatlingoError as error:
        raise FlatlingoError(f"{source}: the base model of this adapter: {error}") from error
    config = _config(base_folder, base)
    shapes = _shapes(folder / "adapter_model.safetensors", source)
    if heads := [shape[0] for name, shape in shapes.items() if HEAD_WEIGHT.search(name) and len(shape) == 2]:
        config.num_labels = min(heads)  # of several layers the last
    model, fresh = _load(base_folder, base, config)
    if lacking := [name for name in fresh if not any(saved.endswith(f".{name}") for saved in shapes)]:
        raise FlatlingoError(
            f"{source}: neither this adapter nor its base model {base} has the weights {_some(lacking)}; they would be "
            "noise. Save them with the adapter (modules_to_save in its configuration)"
        )
    try:
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=True, local_files_only=True)
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: the adapter does not fit {base}: {first_line(error)}") from error
    return adapted.eval()


def _shapes(path: Path, source: str | Path) -> dict[str, list[int]]:
    """The shape of every tensor in a file, by name."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: {path.name} cannot be read: {first_line(error)}") from error


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
