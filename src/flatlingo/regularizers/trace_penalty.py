"""The trace penalty: Tr(F) of the batch, exact over labels and without cross terms between examples."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.batches import is_ragged
from flatlingo.fisher.differentiable import RecordedCall, batch_trace, check_norms, connected, recorded
from flatlingo.fisher.gradnorms import CHECK_EVERY
from flatlingo.fisher.selection import Selection
from flatlingo.regularizers.base import logits_of
from flatlingo.regularizers.periodic import PeriodicPenalty, check_finite


class TracePenalty(PeriodicPenalty):
    """Add λ Tr(F_batch), the trace itself where `FisherPenalty` draws a noisy estimate of it.

        Tr(F_batch) = (1/B) Σ_i Σ_c p_c(x_i) ‖∇_θ log p_c(x_i)‖²

    of the clean pass with its dropout masks, over all trainable parameters, from per-layer Gram matrices
    (`flatlingo.fisher.differentiable`). No label is drawn, so the only spread left is that over batches; and the mean
    over micro-batches of equal size is the trace of their union, so accumulating 4 batches of 8 is one batch of 32.

    The value is the expectation of `FisherPenalty`'s over label draws. The gradients differ, even in expectation: the
    Fisher penalty holds the drawn labels fixed, while here the probabilities p_c are differentiated too,

        ∇ Tr(F) = E_ŷ ∇‖g(ŷ)‖² + Σ_c ‖g_c‖² ∇p_c.

    Which to choose: this one where a step may cost more (C - 1 backward passes that are differentiated, instead of one)
    and labels' noise hurts, as with small batches and few steps; `FisherPenalty` for many classes, for models with
    parameters outside the known kinds of modules, and to follow the paper. `benchmarks/penalties.py` measures both.

    In every step each use of a parameter penalised that the autograd graph shows must be a recorded call of a module of
    a known kind, with one row per example; and of one example in 512, the first among them and the first in a
    batch of rows of several lengths, the norms are held against plain autograd. What differs is refused.

    Args:
        weight: λ, at least 0.
        every: compute the term in every k-th step only, times k.
        parameters: over which the trace is taken: "head" (pooler and head), "last_layer" (the encoder's last layer
            too), names, or a function of the name; all trainable ones by default. Lower layers then cost only the
            backward pass of the task loss, with which the term's own is one, and for "head" attention may be fused.
            Every parameter below still has a gradient of the term.

    Raises:
        FlatlingoError: if an argument is not as above; on `start`, if `parameters` selects none, or the model's
            attention or checkpointing has no double backward; in training, if one of the parameters is used in a way
            that is not covered, or the logits are not finite.
    """

    name = "trace_penalty"
    logged = "trace"
    needs_pass_alone = True  # every row that is recorded counts as an example
    recomputable = False  # what the first pass recorded would not be what the backward pass uses

    def __init__(self, weight: float = 0.0003, every: int = 1, parameters: Selection = None):
        super().__init__(weight, every, parameters)
        self._calls: list[RecordedCall] | None = None
        self._seen = self._checked = 0
        self._ragged = False  # whether a batch of rows of several lengths was checked

    def start(self, model: nn.Module, *, seed: int) -> None:
        """Check that the model can be differentiated twice, and remember it and the parameters penalised."""
        super().start(model, seed=seed)
        self.choose_parameters(model)
        self._seen = self._checked = 0
        self._ragged = False  # whether a batch of rows of several lengths was checked

    def recording_context(self) -> AbstractContextManager:
        """Composite (not fused) attention where it is needed, and hooks that record the pass."""
        if self._model is None:
            raise FlatlingoError(f"{self.name} knows no model yet; call start(model, seed=0) before training")
        return self._recording()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        with self.attention_context(), recorded(self._model, self.penalised()) as self._calls:
            yield

    def penalty(self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any) -> tuple[Tensor, Tensor]:
        """Tr(F_batch): it is both what is penalised and what is logged."""
        calls, self._calls = self._calls, None
        if not calls:
            raise FlatlingoError(f"{self.name} saw no forward pass; run it inside forward_context(), after start()")
        parameters = self.penalised()
        calls = connected(parameters, outputs.logits, calls)
        ragged = not self._ragged and is_ragged(batch)
        if ragged or self._seen >= CHECK_EVERY * self._checked:
            check_finite(outputs.logits, self.name)
            check_norms(parameters, outputs.logits, calls, self._checked % len(outputs.logits))
            self._checked += 1
            self._ragged |= ragged
        self._seen += len(outputs.logits)
        trace = batch_trace(outputs.logits, calls).to(logits_of(outputs).dtype)
        return trace, trace
