"""A forward pass that is measured, what it was seen to do, and why parameters may not be covered."""

from collections import Counter
from functools import reduce

import torch
from torch import Tensor

from flatlingo.fisher.recorder import Call
from flatlingo.fisher.reference import coarser
from flatlingo.fisher.roles import Role

USED = "used in a way that the fast route does not cover"
HOOKED = "changed by a gradient hook"
ROWS = "in a module that does not see one row per example"
DIFFERS = "not what plain autograd gives"


class Uncovered(Exception):
    """Parameters that the fast route does not cover, with the reasons."""

    def __init__(self, reasons: dict[str, str]):
        super().__init__(reasons)
        self.reasons = reasons


class Pass:
    """A forward pass of some examples, and the backward passes that follow."""

    def __init__(self, size: int, ragged: bool):
        self.size, self.ragged = size, ragged
        self.open = True  # the forward pass is running
        self.logits: Tensor | None = None
        self.dtypes = {torch.float64}  # of outputs
        self.counts: Counter[str] = Counter()  # calls by parameter
        self.roles: dict[str, Role] = {}
        self.spread: set[str] = set()  # modules whose one row for all examples was repeated for each
        self.reasons: dict[str, str] = {}  # why parameters are not covered
        self.norms: dict[str, Tensor] = {}
        self.waiting: dict[tuple[str, Role], list] = {}

    def note(self, call: Call, fitting: set[str]) -> None:
        """Count a call, and find parameters that it uses in a way that is not covered.

        Modules in `fitting` have been found to be what their roles assume.
        """
        self.dtypes.add(call.output.dtype)
        by_row = call.is_by_row(self.size)
        for name, role in call.roles.items():
            self.counts[name] += 1
            fits = call.name in fitting or role.fits(call.module, call.inputs, call.output)
            if self.roles.setdefault(name, role) is not role or not fits:
                self.reasons.setdefault(name, USED)
            elif not by_row:
                self.reasons.setdefault(name, ROWS)
        if not self.reasons:
            fitting.add(call.name)

    @property
    def precision(self) -> torch.dtype:
        """The least precise type of any output in the pass."""
        return reduce(coarser, self.dtypes)

    def facts(self) -> set:
        """What plain autograd must have confirmed once: calls of each parameter, rows together, of other lengths."""
        return {*self.counts.items(), ("together", self.size > 1), ("ragged", self.ragged)}
