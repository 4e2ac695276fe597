"""The last encoder layer at the first token only: exact, and nearly free, where the head reads nothing else.

A classifier of the BERT family reads one token of the last layer. That token's query q meets the key W xₜ + b of every
token, but q · W xₜ = (Wᵀq) · xₜ, and b drops out of the softmax; the values' mean ∑ₜ αₜ (W xₜ + b) is W (∑ₜ αₜ xₜ) + b.
So no key or value is needed at any token, only one product with each matrix for each head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

LAYERS = {"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer", "TransformerBlock"}


@contextmanager
def first_token_only(model: nn.Module) -> Iterator[bool]:
    """Within the context the last layer gives its output at the first token, and NaN at all others.

    For BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA and DistilBERT with eager or fused attention. A head that reads more
    than the first token gives logits that are NaN, in whichever batch it does.

    Yields:
        Whether the model is of a kind that can be shortened; if not, nothing changes.
    """
    layer = _last_layer(model)
    if layer is None:
        yield False
        return
    attention, names = _attention(layer)
    query, key, value = (getattr(attention, name) for name in names)
    heads = query.out_features // attention.attention_head_size
    layer.first_token_key = PerHead(key.weight, None, heads, transposed=True)
    layer.first_token_value = PerHead(value.weight, value.bias, heads, transposed=False)
    layer.forward = partial(_first_token, layer, query, attention.scaling)
    try:
        yield True
    finally:
        del layer.forward, layer.first_token_key, layer.first_token_value


class PerHead(nn.Module):
    """The rows of a Linear's weight, split into one matrix W for each attention head.

    Transposed, as keys are used, it maps q (B, heads, H/heads) to Wᵀq (B, heads, H) and has no bias; otherwise, as
    values are, x (B, heads, H) to W x + b (B, heads, H/heads).
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, heads: int, *, transposed: bool):
        super().__init__()
        self.weight, self.bias, self.heads, self.transposed = weight, bias, heads, transposed

    def forward(self, x: Tensor) -> Tensor:
        """(B, heads, inputs) to (B, heads, outputs)."""
        weight = self.weight.unflatten(0, (self.heads, -1))
        x = torch.einsum("bho,hoi->bhi" if self.transposed else "bhi,hoi->bho", x, weight)
        return x if self.bias is None else x + self.bias.unflatten(0, (self.heads, -1))


def _last_layer(model: nn.Module) -> nn.Module | None:
    """The last layer, if it is one that `_first_token` imitates and nobody has replaced parts of it."""
    config = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager") or getattr(config, "is_decoder", False):
        return None
    base = getattr(model, getattr(model, "base_model_prefix", ""), None)
    stack = getattr(base, "encoder", None) or getattr(base, "transformer", None)
    layer = getattr(stack, "layer", [None])[-1]
    if type(layer).__name__ not in LAYERS:
        return None
    attention, names = _attention(layer)
    linear = [getattr(attention, name) for name in names]
    plain = all(type(module).forward is nn.Linear.forward for module in linear)
    return layer if plain and not any(map(_is_changed, [layer, layer.attention, attention, *linear])) else None


def _is_changed(module: nn.Module) -> bool:
    """Whether somebody looks at what goes through a module, and may change it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" in vars(module) or any(hooks)


def _attention(layer: nn.Module) -> tuple[nn.Module, tuple[str, str, str]]:
    """The attention of a layer, and what it calls query, key and value; DistilBERT has its own names."""
    if hasattr(layer, "sa_layer_norm"):
        return layer.attention, ("q_lin", "k_lin", "v_lin")
    return layer.attention.self, ("query", "key", "value")


def _first_token(layer, query, scaling: float, hidden: Tensor, attention_mask: Tensor | None = None, *args, **kwargs):
    """What `layer.forward` does, at the first token; (B, T, H) with NaN at the others."""
    cached = any(value is not None and not isinstance(value, bool) for value in (*args, *kwargs.values()))
    if cached or _hides_all(attention_mask):  # prefix tuning's keys; what attention makes of a row of padding
        return type(layer).forward(layer, hidden, attention_mask, *args, **kwargs)
    first = hidden[:, :1]
    heads = query(first).squeeze(1).unflatten(-1, (layer.first_token_key.heads, -1))
    scores = layer.first_token_key(heads) @ hidden.mT * scaling  # (B, heads, T)
    context = layer.first_token_value(_masked(scores, attention_mask).softmax(-1) @ hidden).flatten(1).unsqueeze(1)
    if hasattr(layer, "feed_forward_chunk"):
        output = layer.feed_forward_chunk(layer.attention.output(context, first))
    else:
        attended = layer.sa_layer_norm(layer.attention.out_lin(context) + first)
        output = layer.output_layer_norm(layer.ffn(attended) + attended)
    return torch.cat([output, output.new_full((), torch.nan).expand_as(hidden[:, 1:])], dim=1)


def _hides_all(mask: Tensor | None) -> bool:
    """Whether the first token of some row attends to none, under a boolean mask (B, 1, T, T)."""
    return mask is not None and mask.dtype == torch.bool and not bool(mask[:, 0, 0].any(1).all())


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores (B, heads, T) under the first row of a mask (B, 1, T, T) that is boolean or added."""
    if mask is None:
        return scores
    mask = mask[:, :, 0]
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
