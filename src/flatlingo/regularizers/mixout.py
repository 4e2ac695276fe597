"""Mixout: weights that fall back to where training began, at random."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers.base import Regularizer, encoder_of
from flatlingo.regularizers.hooks import changed_weight


class Mixout(Regularizer):
    """Mix the weights with those training began with (Lee, Cho & Kang, ICLR 2020).

    In every pass in train mode each entry w of a weight matrix becomes

        w⁰ + m (w - w⁰)/(1 - p),    m ~ Bernoulli(1 - p),

    with w⁰ its value when training began: the expectation is w, and p is the probability of the old weight. Over the
    weight matrices, not the biases, of all linear layers of the encoder; the fresh head has no old weights and is left
    alone. The term itself is 0. Draws from a generator of its own. Evaluation sees the weights as they are.

    Not confirmed from the paper: which layers are mixed. p = 0.1 is from a published reimplementation
    (revisit-bert-finetuning); the paper itself, from memory, uses up to 0.9. To have mixout instead of dropout, load
    the model with `dropout=0`.

    Args:
        p: probability in [0, 1); 0 is plain training.

    Raises:
        FlatlingoError: if p is not as above; on `start`, if the model has no encoder with linear layers; in training,
            if a pass uses none of them.
    """

    name = "mixout"
    recomputable = False  # in the backward pass other weights would be drawn

    def __init__(self, p: float = 0.1):
        super().__init__(p)
        if p >= 1:
            raise FlatlingoError(f"the mixout probability must lie in [0, 1), got {p}")

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Remember the present weights; seed the generator."""
        encoder = encoder_of(model)
        layers = [] if encoder is None else [m for m in encoder.modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise FlatlingoError(f"{type(model).__name__} has no encoder with linear layers for mixout to mix")
        self._anchors = {layer: layer.weight.detach().clone() for layer in layers}
        self._generator = torch.Generator(layers[0].weight.device).manual_seed(seed)
        self._mixes = 0

    @contextmanager
    def training_context(self, model: nn.Module) -> Iterator[None]:
        """Have every pass in train mode use weights mixed anew with the initial ones."""
        with changed_weight(self._anchors, self._mixed):
            yield

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """Return 0: the clean pass was mixed already."""
        if not self._mixes:
            raise FlatlingoError(
                "mixout mixed no weight in the forward pass; run it inside training_context(model), with the "
                "model that was given to start"
            )
        self._mixes = 0
        return outputs.logits.new_zeros(()), {}

    def _mixed(self, layer: nn.Module, weight: Tensor) -> Tensor:
        if not layer.training:
            return weight
        self._mixes += 1
        kept = torch.empty_like(weight, requires_grad=False).bernoulli_(1 - self.weight, generator=self._generator)
        return self._anchors[layer] + kept * (weight - self._anchors[layer]) / (1 - self.weight)
