"""What Tr(F) cannot be computed for, said early and plainly."""

import inspect
import warnings
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.roles import agree
from flatlingo.fisher.selection import word_embeddings

LABEL_KEYS = ("labels", "label")


def check_model(model: nn.Module) -> None:
    """Refuse train mode, other losses than that of one label, and weights without values or gradients."""
    config = getattr(model, "config", None)
    if torch.is_inference_mode_enabled():
        raise FlatlingoError("Tr(F) needs gradients: call it outside torch.inference_mode()")
    if any(module.training for module in model.modules()):
        raise FlatlingoError("the model is in train mode, where dropout makes Tr(F) random: call model.eval() first")
    if getattr(config, "problem_type", None) in ("regression", "multi_label_classification"):
        raise FlatlingoError(f"problem_type={config.problem_type!r}: Tr(F) is defined here for one label per example")
    if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
        raise FlatlingoError(
            "the model was made under torch.inference_mode(), so autograd cannot use its tensors: load it outside"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise FlatlingoError("the model's weights are on the meta device, without values: load it with its weights")
    for parameter in model.parameters():
        check_float64(parameter.device)
    if len(devices := {str(parameter.device) for parameter in model.parameters()}) > 1:
        raise FlatlingoError(
            f"the model is spread over {', '.join(sorted(devices))}: load it whole, without device_map"
        )
    by_torch = any(type(module).__module__.startswith("torch.ao.nn.quantized") for module in model.modules())
    if by_torch or getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in model.parameters()):
        raise FlatlingoError("the model's weights are quantised and have no gradient: load it without quantisation")


def check_float64(device: torch.device) -> None:
    """Refuse a device that does not compute in float64, in which Tr(F) is summed up."""
    if device.type == "mps":
        raise FlatlingoError("an Apple GPU (mps) has no float64, which Tr(F) needs: use the CPU, model.to('cpu')")


def check_batch(model: nn.Module, batch: object, position: int) -> None:
    """Refuse what is no dict of tensors with one row per example, and padding without a mask."""
    if not isinstance(batch, Mapping) or not all(isinstance(value, Tensor) for value in batch.values()):
        raise FlatlingoError(f"batch {position} is not a dict of tensors; make it with the tokenizer's collator")
    if scalars := [key for key, value in batch.items() if value.ndim == 0]:
        raise FlatlingoError(
            f"batch {position} needs one row per example in each tensor; leave out {scalars}, a number"
        )
    sizes = {key: len(value) for key, value in batch.items()}
    if not sizes or len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise FlatlingoError(f"batch {position} needs one row per example in each tensor; it has {sizes}")
    if "input_ids" in batch and batch["input_ids"].ndim == 2:
        _check_ids(model, batch["input_ids"], position)
        if "position_ids" not in batch:
            _check_positions(model, batch["input_ids"].shape[1], position)
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    if pad is not None and "attention_mask" not in batch and "input_ids" in batch and (batch["input_ids"] == pad).any():
        raise FlatlingoError(f"batch {position} has padding but no attention_mask, so padding would be read as text")


def _check_positions(model: nn.Module, tokens: int, position: int) -> None:
    """Refuse rows longer than the positions of a model of transformers' own; others may give it parts of a row."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not type(whole).__module__.startswith("transformers."):
        return
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            room = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
            if tokens > room:
                raise FlatlingoError(
                    f"batch {position} has rows of {tokens} tokens and the model {room} positions; cut "
                    f"the rows with max_length={room}"
                )


def _check_ids(model: nn.Module, ids: Tensor, position: int) -> None:
    """Refuse tokens (B, T) that a model does not know."""
    known = getattr(word_embeddings(model), "num_embeddings", None)
    if known and not ids.is_cuda and int(ids.max()) >= known:
        raise FlatlingoError(
            f"batch {position} has token {int(ids.max())} and the model knows {known}, from 0 on; its tokenizer is "
            "another model's, or has tokens that the model was not resized for"
        )


def check_gold(gold: Tensor, logits: Tensor, seen: int) -> None:
    """Refuse labels (B,) that are no classes of the model."""
    if gold.is_floating_point() or gold.ndim != 1:
        raise FlatlingoError(f"labels must be one class per example, got {tuple(gold.shape)} of {gold.dtype}")
    if not (inside := (gold >= 0) & (gold < logits.shape[1])).all():
        example = seen + int(inside.int().argmin())
        raise FlatlingoError(f"the label of example {example} is not one of the model's {logits.shape[1]}")


def checked_logits(model: nn.Module, logits: Tensor, seen: int) -> Tensor:
    """The logits, if they are those of a classifier."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise FlatlingoError(f"{type(model).__name__} gives no logits of shape (examples, labels): not a classifier")
    if logits.shape[1] < 2:
        raise FlatlingoError("the model has a single output, a regression; Tr(F) is computed for two labels or more")
    if not (finite := logits.isfinite().all(1)).all():
        raise FlatlingoError(f"the logits of example {seen + int(finite.int().argmin())} are not finite")
    return logits


def check_alone(logits: Tensor, alone: Tensor, precision: torch.dtype, example: int) -> None:
    """Refuse a model whose logits differ from one pass to the next, or between an example alone and in a batch.

    Args:
        logits: (n, C) of examples in a batch.
        alone: (n, C) of each alone.
        precision: in which the model computes.
        example: number of the first.
    """
    if not agree(logits, alone, precision):
        which = f"example {example}" if example else "the first examples"
        raise FlatlingoError(
            f"two passes over {which} give different logits, in a batch and alone: something is random even in eval "
            "mode (functional dropout, sampling), or an example's logits depend on the others in its batch; switch it "
            "off"
        )


def most_padded(batch: Mapping[str, Tensor]) -> int | None:
    """The row of a batch with the most padding; None if no row has any, or it cannot be told."""
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2 or "input_ids" not in batch:
        return None
    attended = (mask != 0).sum(1)
    row = int(attended.argmin())
    return row if 0 < int(attended[row]) < mask.shape[1] else None


def check_padding(model: nn.Module, batch: Mapping[str, Tensor], row: int, padded: Tensor, alone: Tensor) -> None:
    """Warn of a model whose logits for a padded row, (C,), are not those of the row without its padding.

    Some ignore the mask in a part of what they do (FNet, ConvBERT), or want their padding on the left (XLNet).

    Args:
        model: the model.
        batch: the batch, with `attention_mask`.
        row: which of its rows.
        padded: its logits with padding.
        alone: its logits without.

    Raises:
        FlatlingoError: if the row is padded with another token than the model's.
    """
    if agree(padded, alone, padded.dtype):
        return
    used = batch["input_ids"][row][batch["attention_mask"][row] == 0].unique().tolist()
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    pad = getattr(config, "pad_token_id", None)
    if pad is not None and used != [pad]:
        raise FlatlingoError(
            f"a row is padded with token {used[0]}, and the model takes {pad} (pad_token_id), so that its padding is "
            "read as text: make the batches with fl.batches(…, model=model)"
        )
    warnings.warn(
        f"the padding of a row changes its logits in {type(model).__name__}, so that what is measured depends on how "
        "rows are batched; give batches of equal length",
        stacklevel=2,
    )


def check_signature(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Refuse a batch with which the model's forward cannot be called."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # not in Python
        return
    try:
        signature.bind(**batch)
    except TypeError as error:
        asks = " (gold labels are not passed, for Tr(F) must not see them)" if "label" in str(error) else ""
        raise FlatlingoError(
            f"{type(model).__name__}.forward cannot be called with {sorted(batch)}: {error}{asks}"
        ) from None
