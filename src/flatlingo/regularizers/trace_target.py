"""The trace target: hold Tr(F) at a value that one chooses, higher or lower than training would have it."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.regularizers.trace_penalty import TracePenalty


class TraceTarget(TracePenalty):
    """Add λ |log Tr(F_batch) - log t|, which sets the trace on purpose: an intervention, not a regulariser to gain by.

    Families of regularisers differ in more than the trace, so that accuracies that go with traces over families do not
    say what a trace does. Here one and the same term raises the trace (t above what plain training ends with) or
    lowers it; with t equal to it, it would be its own control.

    Why this term and no negative weight of `TracePenalty`: -λ Tr has no lower bound, and its pull λ ∇Tr grows with the
    trace, so that training runs away. Here the pull is λ ∇log Tr, of the same size at any trace, and turns round at
    the target; the term is at least 0, and 0 at the target only. Unlike a squared distance it reaches the target
    itself, not a compromise with the task loss, once λ outweighs the pull of that loss (an exact penalty).

    Where the term outweighs the task loss, half of the batches end above t and half below; where it does not, Tr(F)
    stops on the way, and a target further off does no more. So it is the median over batches that is held at t. Traces
    of rows are skewed: the fewer rows a (micro-)batch has, the further that median lies below Tr(F), and accumulating
    4 batches of 8 is not one batch of 32. Rows of another set differ too: measure what was reached with `fisher_trace`.
    Tr(F_batch), its cost and what is refused are those of `TracePenalty`; of the pass with its dropout masks.

    A model that has learnt nothing can raise its trace by saturating instead of learning. With `after` it learns
    first, and runs with several targets are the same up to there.

    Args:
        target: t, in nats², above 0.
        weight: λ, at least 0.
        every: compute the term in every k-th step only, times k.
        after: number of steps of plain training before it, whose Tr(F) is not logged; counted as for `every`.

    Raises:
        FlatlingoError: for a target that is not a finite number above 0, or a negative `after`; as for `TracePenalty`.

    >>> TraceTarget(target=0)
    Traceback (most recent call last):
    flatlingo.errors.FlatlingoError: the target of Tr(F) must be a finite number above 0, got 0
    """

    name = "trace_target"

    def __init__(self, target: float, weight: float = 0.1, every: int = 1, after: int = 0):
        super().__init__(weight, every)
        if after < 0:
            raise FlatlingoError(f"after={after}: give a number of steps, 0 or more")
        if not 0 < target < math.inf:
            raise FlatlingoError(f"the target of Tr(F) must be a finite number above 0, got {target}")
        self.target, self.after = target, after

    def is_due(self) -> bool:
        """Whether this step has the term."""
        return self.has_begun() and super().is_due()

    def has_begun(self) -> bool:
        """Whether the steps of plain training are over."""
        return self._steps >= self.after

    def penalty(self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any) -> tuple[Tensor, Tensor]:
        """|log Tr(F_batch) - log t|, and Tr(F_batch)."""
        trace, _ = super().penalty(model, batch, outputs)
        return (trace / self.target).log().abs(), trace
