"""Attention masks given to an encoder whole, so that nobody need look into them while a GPU computes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from flatlingo import devices
from flatlingo.regularizers.base import encoder_of

# What takes a whole mask as it is, and does nothing else with it; read in transformers 5.23.
ENCODERS = {"BertModel", "CamembertModel", "DistilBertModel", "ElectraModel", "RobertaModel", "XLMRobertaModel"}


@contextmanager
def whole_masks(model: nn.Module) -> Iterator[None]:
    """Within the context an encoder on a GPU is called with masks (B, 1, T, T) made of those (B, T) of its caller.

    transformers leaves out a mask (B, T) that hides nothing. To find out, it reads `mask.all()`, and to read a number
    Python has to wait for the GPU: once in every pass. A whole mask it takes as it is. The numbers are the same up to
    rounding.

    For BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA and DistilBERT with eager or fused (sdpa) attention. Other models, and
    all on CPU, where reading costs nothing, are left as they are.
    """
    encoder = encoder_of(model)
    if encoder is None or not (_takes_whole_masks(encoder) and devices.runs_ahead(encoder.device)):
        yield
        return
    handle = encoder.register_forward_pre_hook(_widen, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _takes_whole_masks(encoder: nn.Module) -> bool:
    config = getattr(encoder, "config", None)
    fitting = getattr(config, "_attn_implementation", None) in ("eager", "sdpa")
    return fitting and type(encoder).__name__ in ENCODERS and not getattr(config, "is_decoder", False)


def _widen(encoder: nn.Module, positional: tuple, named: dict) -> tuple[tuple, dict]:
    mask = named.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or named.get("past_key_values") is not None:
        return positional, named
    like = mask.new_empty((*mask.shape, 0), dtype=encoder.dtype)  # only its shape, type and device are looked at
    whole = create_bidirectional_mask(encoder.config, like, mask, allow_is_bidirectional_skip=False)
    return positional, named | {"attention_mask": whole}
