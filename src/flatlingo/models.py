"""Load a model and its tokenizer, with plain errors.

Models are safetensors only, and code that comes with a checkpoint is never run.
"""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
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

from flatlingo import hub
from flatlingo.errors import FlatlingoError, first_line, listed
from flatlingo.labels import class_names, label_order

# What a model leaves out as it becomes a classifier: heads for masked words and sentence order, unused pooler, buffers.
PRETRAINING_ONLY = re.compile(
    r"(cls|lm_head|decoder|pred_layer|sop_classifier|vocab_\w+|\w*predictions|(\w+\.)?pooler)\.|.*\bposition_ids$"
)
# Padding a vocabulary to a round size adds less than this share; bert-base-cased has 95 % of bert-base-uncased's size.
VOCABULARY_SHARE = 0.96
HEAD_WEIGHT = re.compile(
    r"\b(classifier|score|logits_proj|classification_head|sequence_summary)\.((?!lora_|original_module)\w+\.)*weight$"
)
LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ArithmeticError, ImportError),
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
    folder = hub.checkpoint(source, revision)
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
    folder = hub.checkpoint(source, revision)
    if _is_adapter(folder):
        return _load_adapter(folder, source), load_tokenizer(source, revision=revision)
    model, fresh = _load(folder, source, _config(folder, source))
    if fresh:
        raise FlatlingoError(
            f"{source}: the checkpoint has no classification head ({listed(fresh)}); fine-tune it first, or give the "
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
    folder = model_folder = hub.checkpoint(source, revision)
    if _is_adapter(folder):
        base = _adapter_settings(folder, source)
        model_folder = hub.checkpoint(base["base_model_name_or_path"], base.get("revision"))
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
    folder = hub.without_weights(source, revision)
    config = _config(folder, source)
    config.num_labels = labels
    try:
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    except LOADING_ERRORS as error:
        raise FlatlingoError(f"{source}: no classifier can be made of config.json: {first_line(error)}") from error
    return model, _tokenizer(folder, config, source)


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
            f"{source}: the checkpoint has weights that config.json knows nothing of ({listed(unexpected)}); it "
            "belongs to another architecture or number of layers"
        )
    encoder = re.compile(rf"{model.base_model_prefix}\.(?!pooler\.)")
    if lacking := sorted(key for key in info["missing_keys"] if encoder.match(key)):
        raise FlatlingoError(
            f"{source}: the checkpoint lacks weights that config.json announces ({listed(lacking)}); they would be "
            "noise"
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
        base_folder = hub.checkpoint(base, settings.get("revision"))
    except FlatlingoError as error:
        raise FlatlingoError(f"{source}: the base model of this adapter: {error}") from error
    config = _config(base_folder, base)
    shapes = _shapes(folder / "adapter_model.safetensors", source)
    if heads := [shape[0] for name, shape in shapes.items() if HEAD_WEIGHT.search(name) and len(shape) == 2]:
        config.num_labels = min(heads)  # of several layers the last
    model, fresh = _load(base_folder, base, config)
    if lacking := [name for name in fresh if not any(saved.endswith(f".{name}") for saved in shapes)]:
        raise FlatlingoError(
            f"{source}: neither this adapter nor its base model {base} has the weights {listed(lacking)}; they would "
            "be noise. Save them with the adapter (modules_to_save in its configuration)"
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
