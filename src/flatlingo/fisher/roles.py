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
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flatlingo.fisher.lastlayer import PerHead

# The gradient itself (d × p numbers per example) replaces the Gram matrices where these cost this many times more
# multiplications, from 256 tokens in a layer of 128 or 1024 in one of 384. Below, the Gram matrices win although they
# multiply more: nearly half is saved, those of the inputs serve several layers and directions, none is read twice.
GRAM_LIMIT = 2
BLOCK = 32  # tokens: larger ones fold less of a Gram matrix, smaller ones multiply slower (benchmarks/gram.py)


class Kept(NamedTuple):
    """What a role remembers of a module's call.

    module: which was called.
    inputs: activations (B, T, d) or ids (B, T), where the norm is made from them.
    gram: folded Gram matrix of the inputs (B, n), where the norm is made from it.
    """

    module: nn.Module | None = None
    inputs: Tensor | None = None
    gram: Tensor | None = None


Pairs = list[tuple[Kept, Tensor]]


class Role:
    """How a parameter enters a module, hence the form of its gradient. Roles hold no state.

    Shapes: B examples, T tokens (1 where the module sees one vector per example), d inputs, p outputs.
    """

    takes_ids = False

    def keep(self, module: nn.Module, inputs: Tensor, output: Tensor, grams: "LastGram", shared: bool) -> Kept:
        """What the norm will need of a call.

        Args:
            module: which was called.
            inputs: (B, T, d), or ids (B, T).
            output: (B, ..., p), of which only shape, dtype and device are read.
            grams: makes Gram matrices.
            shared: whether other calls use the parameter too, so that their inputs must be joined.
        """
        return Kept()

    def norm(self, pairs: Pairs, grams: "LastGram") -> Tensor:
        """Squared norms of the gradient, (B,).

        Args:
            pairs: of each call what was kept, and the cotangent of its output (B, T, p).
            grams: makes Gram matrices.
        """
        raise NotImplementedError

    def fits(self, module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
        """Whether a call computes what the role assumes: by default, nothing is checked."""
        return True


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
        """The Gram matrix X Xᵀ if it is the one remembered, else None."""
        return self._gram if _key(x) == self._key else None

    def forget(self) -> None:
        """Forget the Gram matrix remembered, and free its memory."""
        self._x = self._key = self._gram = None


def _key(x: Tensor) -> tuple:
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x._version


def _gram(x: Tensor) -> Tensor:
    """X Xᵀ over the tokens of each example, folded, from (B, T, d); products of float16 numbers would become 0."""
    x = x.float() if x.dtype == torch.float16 else x
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
    """Tokens per block: all in one where several would cost more than they save."""
    folds = x.device.type == "cpu" and x.dtype.itemsize > 2 and not torch.is_grad_enabled()
    return BLOCK if folds else x.shape[1]


@lru_cache(maxsize=4)  # a batch asks for few lengths, and for each again and again
def _every_pair(tokens: int, block: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What sums a folded matrix: the Gram matrix of ones, (n,)."""
    return _gram(torch.ones(1, tokens, 1, dtype=dtype, device=device))[0]


class LinearWeight(Role):
    """W (p, d), or (d, p) of a Conv1D, of outputs W a + b: ‖∑ₜ gₜ aₜᵀ‖²."""

    def keep(self, module, inputs, output, grams, shared):
        """The Gram matrix, or the inputs where the gradient will be formed or uses must be joined."""
        inputs = inputs.to(output.dtype)  # as autocast does inside the module
        if shared or _gradient_is_cheaper(inputs.shape[1], inputs.shape[2], output.shape[-1]):
            return Kept(inputs=inputs)
        return Kept(gram=grams(inputs))

    def norm(self, pairs, grams):
        """From two Gram matrices or from the gradient, whichever is cheaper."""
        if len(pairs) == 1 and pairs[0][0].gram is not None:
            return _dot(pairs[0][0].gram, grams(pairs[0][1]))
        inputs, cotangents = _joined(pairs)
        if _gradient_is_cheaper(inputs.shape[1], inputs.shape[2], cotangents.shape[2]):
            return _at_least_float32(cotangents.mT @ inputs).square().sum((1, 2))
        return _dot(_gram(inputs), _gram(cotangents))


class Bias(Role):
    """b (p,), added to outputs: ‖∑ₜ gₜ‖² = ∑ₜₛ gₜ·gₛ."""

    def norm(self, pairs, grams):
        """The sum of a Gram matrix that the weight has just asked for, unless in half precision."""
        cotangents = pairs[0][1]
        gram = grams.of(cotangents) if len(pairs) == 1 else None
        if gram is not None and gram.dtype == cotangents.dtype:
            every = _every_pair(cotangents.shape[1], _block(cotangents), gram.dtype, gram.device)
            return (gram @ every).clamp_min(0)
        gradient = sum(_sum_tokens(cotangents) for _, cotangents in pairs)
        return gradient.square().sum(1)


class NormScale(Role):
    """w (d,) of outputs w ⊙ x̂ + b, x̂ the normalised inputs of a LayerNorm or RMSNorm: ‖∑ₜ gₜ ⊙ x̂ₜ‖²."""

    def keep(self, module, inputs, output, grams, shared):
        """The inputs, which autograd keeps anyway; normalised again when needed, cheaper than the memory would be."""
        return Kept(module=module, inputs=inputs.to(output.dtype))

    def norm(self, pairs, grams):
        """The squared norm from the gradient itself, (B, d), which is small."""
        gradient = sum(_sum_tokens(_at_least_float32(g) * _normalised(kept.module, kept.inputs)) for kept, g in pairs)
        return gradient.square().sum(1)

    def fits(self, module, inputs, output):
        """RMSNorm has many authors: check that the output is w ⊙ x̂ or, as in Gemma, (1 + w) ⊙ x̂."""
        if isinstance(module, nn.LayerNorm):
            return True
        normalised = _normalised(module, inputs)
        return any(agree(normalised * scale, output) for scale in (module.weight, 1 + module.weight))


class EmbeddingTable(Role):
    """Rows (V, d), looked up: ∑ₜₛ [idₜ = idₛ] gₜ·gₛ, for repeated tokens share a row."""

    takes_ids = True

    def keep(self, module, inputs, output, grams, shared):
        """Which ids agree, or the ids where uses must be joined; those of padding_idx become -1."""
        ids = inputs if module.padding_idx is None else inputs.masked_fill(inputs == module.padding_idx, -1)
        return Kept(inputs=ids) if shared else Kept(gram=_same(ids, output.reshape(*ids.shape, -1)))

    def norm(self, pairs, grams):
        """The squared norm from two Gram matrices, one of which holds 0 and 1: which ids agree."""
        if len(pairs) == 1 and pairs[0][0].gram is not None:
            return _dot(grams(pairs[0][1]), pairs[0][0].gram)
        ids, cotangents = _joined(pairs)
        return _dot(grams(cotangents), _same(ids, cotangents))


class HeadWeight(Role):
    """W of a `PerHead`, a single input a (d,) for each head, and rows of its own: ∑ₕ ‖gₕ aₕᵀ‖²."""

    def keep(self, module, inputs, output, grams, shared):
        """Keep ‖aₕ‖², (B, heads), in the place of a Gram matrix."""
        return Kept(gram=_at_least_float32(inputs).square().sum(2))

    def norm(self, pairs, grams):
        """∑ₕ ‖gₕ‖² ‖aₕ‖²."""
        ((kept, cotangents),) = pairs
        return (kept.gram * _at_least_float32(cotangents).square().sum(2)).sum(1)


class HeadBias(Role):
    """b of a `PerHead`: ∑ₕ ‖gₕ‖²."""

    def norm(self, pairs, grams):
        """The squared norm, from the cotangents alone."""
        ((_, cotangents),) = pairs
        return _at_least_float32(cotangents).square().sum((1, 2))


_WEIGHT, _TRANSPOSED, _BIAS, _SCALE, _TABLE = LinearWeight(), LinearWeight(), Bias(), NormScale(), EmbeddingTable()
_HEAD_WEIGHT, _HEAD_BIAS = HeadWeight(), HeadBias()


def roles_of(module: nn.Module) -> dict[str, Role]:
    """The parameters of a module whose gradients have a known form.

    A module whose `forward` is its own, by subclass or by replacement, has none.
    """
    forward = type(module).forward
    if "forward" in vars(module):
        return {}
    if forward is nn.Linear.forward:
        return {"weight": _WEIGHT, "bias": _BIAS}
    if forward is Conv1D.forward:
        return {"weight": _TRANSPOSED, "bias": _BIAS}  # of a weight tied to a Linear's the uses cannot be joined
    if isinstance(module, PerHead):
        return {"weight": _HEAD_WEIGHT, "bias": _HEAD_BIAS}
    if forward is nn.LayerNorm.forward and len(module.normalized_shape) == 1:
        return {"weight": _SCALE, "bias": _BIAS}
    if forward is nn.Embedding.forward and module.max_norm is None and not module.scale_grad_by_freq:
        return {"weight": _TABLE}
    scaled = isinstance(getattr(module, "weight", None), nn.Parameter)
    named = type(module).__name__.endswith("RMSNorm") and (
        hasattr(module, "eps") or hasattr(module, "variance_epsilon")
    )
    if named and scaled:
        return {"weight": _SCALE}
    return {}


def _joined(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Inputs and cotangents of all calls, one after another along the token axis."""
    if len(pairs) == 1:
        return pairs[0][0].inputs, pairs[0][1]
    return torch.cat([kept.inputs for kept, _ in pairs], dim=1), torch.cat([g for _, g in pairs], dim=1)


def _gradient_is_cheaper(tokens: int, d: int, p: int) -> bool:
    return tokens * (d + p) > GRAM_LIMIT * d * p


def _normalised(module: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs of the scale, with mean 0 (LayerNorm) and mean square 1 over the features."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(inputs, inputs.shape[-1:], eps=module.eps)
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return F.rms_norm(inputs, inputs.shape[-1:], eps=eps)


def _same(ids: Tensor, x: Tensor) -> Tensor:
    """1 where two tokens of an example have one id, folded as the Gram matrix of x (B, T, d) is.

    Padding has no id, as autograd leaves its row at zero.
    """
    other = ids.masked_fill(ids < 0, -2)  # unlike -1
    dtype = torch.promote_types(x.dtype, torch.float32)
    return _folded(x, lambda rows, columns: (ids[:, rows, None] == other[:, None, columns]).to(dtype))


def agree(x: Tensor, y: Tensor, precision: torch.dtype | None = None) -> bool:
    """Whether two results are the same up to rounding, to half the digits of y or of `precision` (float64: five)."""
    tolerance = max(torch.finfo(precision or y.dtype).eps ** 0.5, 1e-5)
    return bool((x - y).abs().max() <= tolerance * y.abs().max().clamp_min(1e-30))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """∑ x y for each example, from (B, n)."""
    return (x * y).sum(1)


def _sum_tokens(x: Tensor) -> Tensor:
    return _at_least_float32(x).sum(1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
