"""How a parameter enters a module, and from it the squared norm of its gradient for each example.

For one example the gradient of a linear layer's weight is a sum of outer products over its tokens, ∑ₜ gₜ aₜᵀ, with
inputs a and output cotangents g, so its squared norm needs only two T × T Gram matrices:

    ‖∑ₜ gₜ aₜᵀ‖² = ∑ₜₛ (aₜ·aₛ)(gₜ·gₛ).

An embedding is the same with one-hot inputs: (aₜ·aₛ) = 1 where the two ids agree; a linear layer's bias is the same
with inputs 1. A bias gradient that cancels between tokens (a key's, by nature) comes out as the rounding of such a sum.
Biases and scales of normalisation layers have small gradients, summed outright. A parameter that is used several times
(a shared layer) has its uses laid one after another along the token axis, which brings the cross terms in. Every norm
can be differentiated.

Sources: Goodfellow 2015 (arXiv:1510.01799); Li, Tramèr, Liang & Hashimoto 2022 (arXiv:2110.05679), section 4;
Bu, Mao & Xu 2022 (arXiv:2205.10683).
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flatlingo.fisher.lastlayer import PerHead

# The gradient itself (d × p numbers an example) replaces the Gram matrices where these cost this many times more
# multiplications, from 256 tokens in a layer of 128 or 1024 in one of 384. Below, the Gram matrices win although they
# multiply more: nearly half is saved, those of the inputs serve several layers and directions, none is read twice.
GRAM_LIMIT = 2
BLOCK = 32  # tokens: larger blocks fold less of a Gram matrix, smaller ones are slower to multiply


class Role(NamedTuple):
    """How a parameter enters a module, hence the form of its gradient.

    keep: what to remember of a call, from (module, inputs, output, grams, shared).
    norm: squared norms (B,) from all pairs (what was kept, cotangent (B, T, p)) and the Gram matrices.
    fits: whether a call (module, inputs, output) is what the role assumes.
    """

    keep: Callable
    norm: Callable
    fits: Callable = lambda module, inputs, output: True


class LastGram:
    """Gram matrices over tokens, the last one remembered.

    Query, key and value have one input; embeddings that are added have one cotangent.
    """

    def __init__(self):
        self.forget()

    def __call__(self, x: Tensor) -> Tensor:
        """X Xᵀ over the tokens of each example, folded, from (B, T, d)."""
        if self.of(x) is None:
            self._x, self._key, self._gram = x, _key(x), _gram(x)  # holding x keeps its address from being used again
        return self._gram

    def of(self, x: Tensor) -> Tensor | None:
        """X Xᵀ if it is the one remembered."""
        return self._gram if _key(x) == self._key else None

    def forget(self) -> None:
        """Let go of the last one."""
        self._x = self._key = self._gram = None


def _key(x: Tensor) -> tuple:
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x._version


def _gram(x: Tensor) -> Tensor:
    """X Xᵀ over the tokens of each example, folded, from (B, T, d)."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _at_least_float32(_Gram.apply(x)).flatten(1)
    return _folded(x, lambda rows, columns: _at_least_float32(x[:, rows] @ x[:, columns].mT))


class _Gram(torch.autograd.Function):
    """X Xᵀ with one matrix product on the way back, where autograd, not knowing it symmetric, would take two."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (cotangent + cotangent.mT).to(x.dtype) @ x


def _folded(x: Tensor, pairs: Callable[[slice, slice], Tensor]) -> Tensor:
    """A symmetric function of two tokens of activations x (B, T, d), for each pair once: (B, n).

    `pairs` gives its values (B, rows, columns). Blocks below the diagonal stand for those above too and are multiplied
    by √2, so that the dot product of two folded matrices is that of the whole ones.
    """
    strips, block = [], _block(x)
    for start in range(0, x.shape[1], block):
        stop = min(start + block, x.shape[1])
        strip = pairs(slice(start, stop), slice(0, stop))
        if start:
            strip[:, :, :start] *= 2**0.5
        strips.append(strip.flatten(1))
    return torch.cat(strips, dim=1) if len(strips) > 1 else strips[0]


def _block(x: Tensor) -> int:
    """Tokens a block: all in one where several would cost more than they save."""
    folds = x.device.type == "cpu" and x.dtype.itemsize > 2 and not torch.is_grad_enabled()
    return BLOCK if folds else x.shape[1]


@lru_cache(maxsize=4)  # a batch asks for few lengths, and for each again and again
def _every_pair(tokens: int, block: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What sums a folded matrix: the Gram matrix of ones, (n,)."""
    return _gram(torch.ones(1, tokens, 1, dtype=dtype, device=device))[0]


def _keep_inputs(module, inputs, output, grams, shared):
    """(inputs, None) where the gradient will be formed or uses must be joined, else (None, Gram matrix)."""
    inputs = inputs.to(output.dtype)  # as autocast does inside the module
    if shared or _gradient_is_cheaper(inputs.shape[1], inputs.shape[2], output.shape[-1]):
        return inputs, None
    return None, grams(inputs)


def _gradient_is_cheaper(tokens: int, d: int, p: int) -> bool:
    return tokens * (d + p) > GRAM_LIMIT * d * p


def _weight_norm(pairs, grams):
    """‖∑ₜ gₜ aₜᵀ‖²."""
    if len(pairs) == 1:
        (inputs, gram), cotangents = pairs[0]
        if gram is not None:
            return _dot(gram, grams(cotangents))
    else:
        inputs = torch.cat([inputs for (inputs, _), _ in pairs], dim=1)
        cotangents = torch.cat([cotangents for _, cotangents in pairs], dim=1)
    if _gradient_is_cheaper(inputs.shape[1], inputs.shape[2], cotangents.shape[2]):
        return _at_least_float32(cotangents.mT @ inputs).square().sum((1, 2))
    return _dot(_gram(inputs), _gram(cotangents))


def _keep_nothing(module, inputs, output, grams, shared):
    return None


def _bias_norm(pairs, grams):
    """‖∑ₜ gₜ‖² = ∑ₜₛ gₜ·gₛ, the sum of a Gram matrix that the weight has just asked for, unless in half precision."""
    if len(pairs) == 1 and (gram := grams.of(cotangents := pairs[0][1])) is not None and gram.dtype == cotangents.dtype:
        return (gram @ _every_pair(cotangents.shape[1], _block(cotangents), gram.dtype, gram.device)).clamp_min(0)
    gradient = sum(_sum_tokens(cotangents) for _, cotangents in pairs)
    return gradient.square().sum(1)


def _keep_normalised(module, inputs, output, grams, shared):
    """The inputs, which autograd keeps anyway; normalised again when needed, which costs less than the memory would."""
    return partial(_normalise, module, inputs.to(output.dtype))


def _normalise(module: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs of the scale, with mean 0 (LayerNorm) and mean square 1 over the features."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, inputs.shape[-1:], eps=module.eps)
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return F.rms_norm(inputs, inputs.shape[-1:], eps=eps)


def _scale_norm(pairs, grams):
    """‖∑ₜ gₜ ⊙ x̂ₜ‖²."""
    gradient = sum(_sum_tokens(_at_least_float32(cotangents) * normalised()) for normalised, cotangents in pairs)
    return gradient.square().sum(1)


def _is_scaled(module, inputs, output):
    """RMSNorm has many authors: check that the output is w ⊙ x̂ or, as in Gemma, (1 + w) ⊙ x̂."""
    if isinstance(module, nn.LayerNorm):
        return True
    normalised = _normalise(module, inputs)
    return any(agree(normalised * scale, output) for scale in (module.weight, 1 + module.weight))


def _keep_ids(module, inputs, output, grams, shared):
    """(ids, None) where uses must be joined, else (None, which ids agree); the ids of padding_idx become -1."""
    ids = inputs if module.padding_idx is None else inputs.masked_fill(inputs == module.padding_idx, -1)
    return (ids, None) if shared else (None, _same(ids, output))


def _same(ids: Tensor, x: Tensor) -> Tensor:
    """1 where two tokens of an example have one id, folded as the Gram matrix of x (B, T, d) is.

    Padding has no id, as autograd leaves its row at zero.
    """
    other = ids.masked_fill(ids < 0, -2)  # unlike -1
    dtype = torch.promote_types(x.dtype, torch.float32)
    return _folded(x, lambda rows, columns: (ids[:, rows, None] == other[:, None, columns]).to(dtype))


def _embedding_norm(pairs, grams):
    """∑ₜₛ [idₜ = idₛ] gₜ·gₛ: repeated tokens share a row."""
    if len(pairs) == 1:
        (ids, same), cotangents = pairs[0]
    else:
        same, ids = None, torch.cat([ids for (ids, _), _ in pairs], dim=1)
        cotangents = torch.cat([cotangents for _, cotangents in pairs], dim=1)
    return _dot(grams(cotangents), _same(ids, cotangents) if same is None else same)


def _keep_head_norms(module, inputs, output, grams, shared):
    return _at_least_float32(inputs).square().sum(2)


def _head_weight_norm(pairs, grams):
    """∑ₕ ‖gₕ aₕᵀ‖²: each head has rows of its own and a single input."""
    ((inputs, cotangents),) = pairs
    return (inputs * _at_least_float32(cotangents).square().sum(2)).sum(1)


def _head_bias_norm(pairs, grams):
    ((_, cotangents),) = pairs
    return _at_least_float32(cotangents).square().sum((1, 2))


WEIGHT = Role(_keep_inputs, _weight_norm)
_BIAS = Role(_keep_nothing, _bias_norm)
_SCALE = Role(_keep_normalised, _scale_norm, _is_scaled)
_HEAD_WEIGHT = Role(_keep_head_norms, _head_weight_norm)
_HEAD_BIAS = Role(_keep_nothing, _head_bias_norm)
EMBEDDING = Role(_keep_ids, _embedding_norm)


def roles_of(module: nn.Module) -> dict[str, Role]:
    """The parameters of a module whose gradients have a known form; a subclass with its own forward has none."""
    forward = type(module).forward
    if forward in (nn.Linear.forward, Conv1D.forward):
        return {"weight": WEIGHT, "bias": _BIAS}
    if isinstance(module, PerHead):
        return {"weight": _HEAD_WEIGHT, "bias": _HEAD_BIAS}
    if forward is nn.LayerNorm.forward and len(module.normalized_shape) == 1:
        return {"weight": _SCALE, "bias": _BIAS}
    if forward is nn.Embedding.forward and module.max_norm is None and not module.scale_grad_by_freq:
        return {"weight": EMBEDDING}
    if type(module).__name__.endswith("RMSNorm") and (hasattr(module, "eps") or hasattr(module, "variance_epsilon")):
        return {"weight": _SCALE}
    return {}


def agree(x: Tensor, y: Tensor) -> bool:
    """Whether two results are the same up to rounding, to half the digits of y (float64: five)."""
    tolerance = max(torch.finfo(y.dtype).eps ** 0.5, 1e-5)
    return bool((x - y).abs().max() <= tolerance * y.abs().max().clamp_min(1e-30))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """∑ x y for each example, from (B, n)."""
    return (x * y).sum(1)


def _sum_tokens(x: Tensor) -> Tensor:
    return _at_least_float32(x).sum(1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
