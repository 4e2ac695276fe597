"""What Tr(F) cannot be computed for, said early and plainly."""

import inspect
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.roles import agree


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
    by_torch = any(type(module).__module__.startswith("torch.ao.nn.quantized") for module in model.modules())
    if by_torch or getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in model.parameters()):
        raise FlatlingoError("the model's weights are quantised and have no gradient: load it without quantisation")


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
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    if pad is not None and "attention_mask" not in batch and "input_ids" in batch and (batch["input_ids"] == pad).any():
        raise FlatlingoError(f"batch {position} has padding but no attention_mask, so padding would be read as text")


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
