"""The losses of a training, noted on the device and read now and then."""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from flatlingo.errors import DivergedError

READ_EVERY = 50


class LossRecord:
    """Losses of every step for the log, and the check that they are finite.

    Nothing is read where it is noted: to read a number, a GPU has to be waited for. Reading takes one copy for all that
    has been noted since, after every 50 notes and whenever `read` is called: before logs, evaluations and checkpoints.
    So a loss that is not finite is told up to 50 steps late, with the step and the term it came from.

    >>> record = LossRecord()
    >>> for step, loss in enumerate([1.0, 2.0], start=1):
    ...     record.note(step, {"task": torch.tensor(loss)}, {"r3f/kl": 0.5})
    >>> record.means()
    {'loss/task': 1.5, 'r3f/kl': 0.5}
    """

    def __init__(self):
        self._notes: list[tuple[int, Tensor, list[str], dict[str, float], bool]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def note(
        self,
        step: int,
        terms: Mapping[str, Tensor],
        details: Mapping[str, Tensor | float],
        *,
        logged: bool = True,
    ) -> None:
        """Note the terms of a loss, and what else is to be logged.

        Args:
            step: the number of the update, from 1.
            terms: scalars by name; logged as `loss/<name>`.
            details: numbers or tensors, of which the mean is logged, by name.
            logged: whether they count in the means, besides being checked.

        Raises:
            DivergedError: as for `read`.
        """
        values = {f"loss/{name}": term for name, term in terms.items()} | dict(details)
        tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        plain = {name: float(value) for name, value in values.items() if name not in tensors}
        loss = next(iter(terms.values()))
        dtype = torch.promote_types(loss.dtype, torch.float32)
        stacked = torch.stack([(t.mean() if t.ndim else t).to(loss.device, dtype) for t in tensors.values()])
        self._notes.append((step, stacked, list(tensors), plain, logged))
        if len(self._notes) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Read what has been noted.

        Raises:
            DivergedError: at the first loss that is not finite, naming its step and term.
        """
        notes, self._notes = self._notes, []
        if not notes:
            return
        numbers = iter(torch.cat([stacked for _, stacked, *_ in notes]).tolist())
        for step, stacked, names, plain, logged in notes:
            values = {name: next(numbers) for name in names} | plain
            _check(step, {n: v for n, v in values.items() if n.startswith("loss/")}, torch.finfo(stacked.dtype).max)
            if logged:
                for name, value in values.items():
                    self._sums[name] += value
                    self._counts[name] += 1

    def means(self) -> dict[str, float]:
        """The means since this was last asked, by name, each over the notes that have it; none if nothing was noted.

        Raises:
            DivergedError: as for `read`.
        """
        self.read()
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means


def _check(step: int, terms: Mapping[str, float], largest: float) -> None:
    for name, value in [*terms.items(), ("sum", sum(terms.values()))]:
        if not (math.isfinite(value) and abs(value) <= largest):
            raise DivergedError(
                f"training step {step}: the loss is not finite ({name.removeprefix('loss/')} = {value:g}); "
                "use a smaller learning rate or a smaller weight"
            )
