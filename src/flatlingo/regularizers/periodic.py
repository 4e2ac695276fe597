"""Penalties that need not be computed in every step."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatlingo.errors import DivergedError, FlatlingoError
from flatlingo.fisher.selection import Selection, is_above_encoder, selected
from flatlingo.regularizers.base import Regularizer, check_labels, check_softmax, is_seen, logits_of


class PeriodicPenalty(Regularizer):
    """A penalty on the gradient, computed in every k-th step and then multiplied by k.

    The mean of the term over steps stays the same, and so do the values logged; the compute falls to nearly 1/k of the
    penalty's, and single steps pull k times as hard. Where gradients are clipped in most steps, as with a bound of 1
    they are in fine-tuning, such a pull is cut, so that a larger k is also a weaker penalty. With gradient
    accumulation a micro-batch counts as a step; with SAM both its gradients have the penalty or neither.

    A subclass gives `penalty` and, where needed, `recording_context`; its `start` begins with this one and calls
    `choose_parameters`.

    Args:
        weight: λ, at least 0.
        every: k, at least 1; the first step has the penalty.
        parameters: those whose gradients are penalised, as for `flatlingo.fisher_trace`.

    Raises:
        FlatlingoError: if an argument is not as above or, in training, the logits are not finite.
    """

    takes_gradients = True

    logged: str
    """What the value that `penalty` logs is called."""

    def __init__(self, weight: float, every: int, parameters: Selection = None):
        super().__init__(weight)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise FlatlingoError(
                f"every={every!r}: give the number of steps from one {self.name} to the next, 1 or more"
            )
        self.every, self.parameters = every, parameters
        self._steps = 0
        self._model: nn.Module | None = None
        self._chosen: dict[str, nn.Parameter] = {}
        self._enters_encoder = True

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Count steps from the first one."""
        self._steps = 0

    def choose_parameters(self, model: nn.Module) -> None:
        """Remember the model and which parameters are penalised; check that their gradients can be differentiated.

        Raises:
            FlatlingoError: naming the penalty and the fix.
        """
        try:
            self._model, self._chosen = model, selected(model, self.parameters)
        except FlatlingoError as error:
            raise FlatlingoError(f"{self.name}: {error}") from error
        self._enters_encoder = not is_above_encoder(model, self._chosen)
        check_differentiable_twice(model, self.name, encoder=self._enters_encoder)

    def penalised(self) -> dict[str, nn.Parameter]:
        """The parameters penalised, by name; if all are, those that are trainable now."""
        return self._chosen if self.parameters is not None else selected(self._model)

    def attention_context(self) -> AbstractContextManager:
        """Composite (not fused) attention, if gradients that enter the encoder are differentiated."""
        return sdpa_kernel(SDPBackend.MATH) if self._enters_encoder else nullcontext()

    def recording_context(self) -> AbstractContextManager:
        """Context of the clean forward pass in the steps that have the penalty."""
        return nullcontext()

    def penalty(self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any) -> tuple[Tensor, Tensor]:
        """The term without its weight, and what to log; arguments as for `__call__`."""
        raise NotImplementedError

    def is_due(self) -> bool:
        """Whether this step has the penalty."""
        return self._steps % self.every == 0

    def has_begun(self) -> bool:
        """Whether this step counts in what is logged."""
        return True

    def repeat(self, passes: int) -> None:
        """Count the last so many passes once more."""
        self._steps -= passes

    def forward_context(self) -> AbstractContextManager:
        """`recording_context` in the steps that have the penalty."""
        return self.recording_context() if self.is_due() else nullcontext()

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The weighted term and one value to log, both times k; 0 in the steps between, no value before it begins."""
        logits = logits_of(outputs)
        check_labels(logits, batch.get("labels"), self.name)
        due, begun = self.is_due(), self.has_begun()
        self._steps += 1
        if not due:
            return logits.new_zeros(()), {self.logged: 0.0} if begun else {}
        if is_seen(~logits.isfinite().all()):
            check_finite(logits, self.name)
        value, logged = self.penalty(model, batch, outputs)
        return self.weight * self.every * value, {self.logged: self.every * logged.detach()}

    def state_dict(self) -> dict[str, Tensor]:
        """The states of the generators, and the number of steps."""
        return super().state_dict() | {"steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up the state that `state_dict` gave, after `start`."""
        super().load_state_dict({name: value for name, value in state.items() if name != "steps"})
        self._steps = int(state["steps"])


def check_finite(logits: Tensor, name: str) -> None:
    """Refuse logits (rows, classes) that are not finite; a GPU is waited for.

    Raises:
        DivergedError: naming the penalty and the first such row.
    """
    broken = ~logits.isfinite().all(1)
    if broken.any():
        raise DivergedError(
            f"{name}: the logits of example {int(broken.int().argmax())} of the batch are not finite; "
            "use a smaller learning rate or a smaller weight"
        )


def check_differentiable_twice(model: nn.Module, name: str, *, encoder: bool = True) -> None:
    """Refuse a model that is no classifier by softmax, or some part of which has no double backward.

    Args:
        model: the model.
        name: of the penalty.
        encoder: whether what lies below the head is differentiated twice: attention, embeddings.

    Raises:
        FlatlingoError: naming the penalty and the fix.
    """
    check_softmax(model, name)
    kind = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
    if encoder and kind not in ("eager", "sdpa"):
        raise FlatlingoError(
            f"{name} differentiates twice, which {kind} attention does not support; "
            'load the model with attn_implementation="sdpa" or "eager"'
        )
    bags = ((part, module) for part, module in model.named_modules() if isinstance(module, nn.EmbeddingBag))
    if encoder and (trained := [part for part, bag in bags if bag.weight.requires_grad]):
        raise FlatlingoError(
            f"{name} differentiates twice, which PyTorch's EmbeddingBag ({trained[0]}) does not support; use "
            f"nn.Embedding and a mean, or freeze it: {trained[0]}.requires_grad_(False)"
        )
    check_not_checkpointed(model, f"{name} differentiates twice")


def check_not_checkpointed(model: nn.Module, reason: str) -> None:
    """Refuse a model that computes its activations again in the backward pass.

    Raises:
        FlatlingoError: naming the reason and the fix.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise FlatlingoError(f"{reason}: call model.gradient_checkpointing_disable() first")
