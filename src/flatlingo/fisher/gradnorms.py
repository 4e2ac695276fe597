"""Squared norms of per-example gradients, without forming a single weight gradient, and held against autograd.

A forward pass keeps what each parameter's role asks for (`flatlingo.fisher.roles`), a backward pass through the
activations alone brings the cotangents, and the two are contracted as soon as they meet.
"""

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError, listed
from flatlingo.fisher.batches import batch_size, example_of, is_ragged, logits_of
from flatlingo.fisher.checks import check_alone
from flatlingo.fisher.lastlayer import first_token_only
from flatlingo.fisher.modes import plain, uncached_casts, unfused_attention
from flatlingo.fisher.passes import DIFFERS, HOOKED, ROWS, USED, Pass, Uncovered
from flatlingo.fisher.recorder import (
    Call,
    Tap,
    by_row,
    check_unchanged,
    modules_using,
    recording,
    uses_in_graph,
)
from flatlingo.fisher.reference import autograd_explained, differing, plain_norms, squared_norm
from flatlingo.fisher.roles import LastGram, LinearWeight, agree

CHECK_EVERY = 512  # examples, of which one is measured by plain autograd too
CHECKED_ROWS = 4  # examples beside it, measured in another order

Terms = Callable[[Tensor, int], list[tuple[Tensor, Tensor]]]


class GradientNorms:
    """Squared norms, per example and per parameter, of the gradient of directions in logit space.

    A context manager: inside, the model's modules are recorded and its parameters frozen where they are used, so that
    a backward pass visits activations only, and under autocast the weights of linear layers are in its precision; all
    is undone on leaving, whatever happened.

    What is measured is held against plain autograd. A parameter is *covered* if every use of it is a call of a module
    of a known kind: Linear, Conv1D, LayerNorm, RMSNorm or Embedding; each other use is seen in the autograd graph of
    the very pass, and the parameter's gradient is then formed. Examples are taken one at a time from
    there on, and also where a module does not see one row per example; a warning says so. Besides, one example in 512,
    the first, the first whose batch has rows of several lengths, and the first that uses a parameter another number of
    times, are measured by plain autograd too, alone, and a few beside it in another order: examples that depend on each
    other, or change places, are found out where they do so in such a batch.

    Args:
        model: a module in eval mode; `model(**batch)` gives the logits or an output that has `.logits`.
        parameters: the parameters to measure, by name; each requires a gradient.
        batch: the first examples, to see how the model uses its parameters.
        logits: the logits of these examples, each alone, to check that examples do not depend on each other and that
            the shortened last layer gives the same.

    Attributes:
        single: whether examples are taken one at a time.

    Raises:
        FlatlingoError: logits differ from one pass to the next, or autograd cannot differentiate the model.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Mapping[str, Tensor], logits: Tensor
    ):
        self.model = model
        self.parameters = dict(parameters)
        self.single = False
        self._formed: set[str] = set()  # parameters whose gradients are formed
        self._shared: set[str] = set()  # parameters used several times, whose inputs are kept to be joined
        self._narrow: set[str] = set()  # modules whose one row for all examples the model itself repeats
        self._shorten = False
        self._fitting: set[str] = set()  # modules that are what their roles assume
        self._verified: set = set()  # what has been held against plain autograd
        self._measured, self._checked, self._random = 0, 0, random.Random(0)
        self._grams = LastGram()
        device = next(iter(self.parameters.values())).device
        self._anchor = torch.zeros((), device=device, requires_grad=True)  # where backward passes end
        self._undo: ExitStack | None = None
        self._pass: Pass | None = None
        self._survey(batch, logits)

    def __enter__(self) -> "GradientNorms":
        with ExitStack() as stack:
            measured = {id(parameter) for parameter in self.parameters.values()}
            for parameter in self.model.parameters():
                if parameter.requires_grad and id(parameter) not in measured:
                    stack.callback(parameter.requires_grad_, True)
                    parameter.requires_grad_(False)
            for weight in self._cast_by_autocast():
                stack.callback(setattr, weight, "data", weight.data)
                weight.data = weight.data.to(torch.get_autocast_dtype(weight.device.type))
            if self._shorten:
                stack.enter_context(first_token_only(self.model))
            stack.enter_context(recording(self.model, self._covered(), self._take, freeze=True))
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()
        self._undo = None
        self._forget()

    def __call__(self, batch: Mapping[str, Tensor], terms: Terms, start: int = 0) -> Tensor:
        """∑ₖ weightₖ ‖∇(directionₖ · logits)‖² of each example and parameter, (B, P) in float64.

        Args:
            batch: the examples.
            terms: gives weights (n,) and directions (n, C) from the logits of the examples from the i-th of the batch
                on, (n, C), and i.
            start: number of examples before, for messages.
        """
        size = batch_size(batch)
        while size == 1 or not self.single:
            try:
                return self._sum(batch, terms, start)
            except Uncovered as found:
                self._cover(found.reasons, size)
        return self._one_at_a_time(batch, terms, start)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of a batch, remembered for `backward`."""
        while not self._run(batch):
            pass
        if reasons := self._pass.reasons:
            raise Uncovered(reasons | self._used_in_graph())
        return self._pass.logits.detach()

    def backward(self, direction: Tensor, *, last: bool = False) -> Tensor:
        """Squared norms of the gradients of direction · logits, one per example.

        Args:
            direction: (B, C), a direction in logit space for each example.
            last: whether to free the forward pass.

        Returns:
            (B, P) in float64, in the order of `parameters`.
        """
        now = self._pass
        now.norms, now.waiting = {}, defaultdict(list)
        with plain(now.logits.device):
            self._backpropagate(direction.to(now.logits), retain_graph=not last)
            for (name, role), pairs in now.waiting.items():
                now.norms[name] = role.norm(pairs, self._grams)
            nothing = torch.zeros(now.size, device=now.logits.device)
            norms = torch.stack([now.norms.get(name, nothing) for name in self.parameters], dim=1).double()
        self._grams.forget()
        if last:
            self._forget()
        return norms

    def _sum(self, batch: Mapping[str, Tensor], terms: Terms, start: int) -> Tensor:
        logits = self.forward(batch)
        now, pairs = self._pass, terms(logits, 0)
        total = first = None
        for k, (weight, direction) in enumerate(pairs, start=1):
            norms = self.backward(direction, last=k == len(pairs))
            first = norms if first is None else first
            total = weight[:, None] * norms if total is None else total + weight[:, None] * norms
        if self._is_due(now.facts()):
            self._check_rows(batch, pairs[0][1], first)
            self._check_example(batch, logits, pairs[0][1], first, now, start)
        self._measured += now.size
        return total

    def _one_at_a_time(self, batch: Mapping[str, Tensor], terms: Terms, start: int) -> Tensor:
        """The same, for one example after the other; of some batches, whether examples depend on each other."""
        alone = []

        def terms_of(logits: Tensor, i: int) -> list[tuple[Tensor, Tensor]]:
            alone[i:] = [logits]
            return terms(logits, i)

        due, size = self._is_due(), batch_size(batch)
        norms = [self(example_of(batch, i), lambda z, _, i=i: terms_of(z, i), start + i) for i in range(size)]
        if due:
            with torch.no_grad(), self._attention(), uncached_casts(), self._left():
                check_alone(logits_of(self.model, batch), torch.cat(alone), self._precision, start)
        return torch.cat(norms)

    def _run(self, batch: Mapping[str, Tensor]) -> bool:
        """A recorded forward pass; whether it went as expected, or must be run again."""
        self._forget()
        self._pass = now = Pass(batch_size(batch), is_ragged(batch))
        try:
            with torch.enable_grad(), self._attention(), uncached_casts():
                now.logits = logits_of(self.model, batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if not now.spread:
                raise
        now.open = False
        self._grams.forget()
        if self._shorten and not now.logits.isfinite().all():  # the head reads other tokens than the first
            self._change(shorten=False)
            return False
        if now.spread and (now.logits is None or len(now.logits) != now.size):
            self._narrow |= now.spread
            return False
        shared = {name for name, count in now.counts.items() if count > 1} - self._shared
        if shared and self._shorten:
            self._change(shorten=False)
        self._shared |= shared
        return not shared

    def _take(self, call: Call) -> Tensor:
        """Keep what the norms need of a call, and wait for the output's cotangent."""
        now = self._pass
        if now is None or not now.open:  # run again by activation checkpointing, on the way back
            return Tap.apply(call.output, self._anchor, None)
        if not call.output.numel():  # routed no rows
            return call.output
        if call.name not in self._narrow and call.is_for_all(now.size):
            now.spread.add(call.name)
            call = call.spread(now.size)
        kept = []
        with plain(call.output.device):
            now.note(call, self._fitting)
            if not now.reasons:
                rows = by_row(call.inputs.detach(), now.size)
                for name, role in call.roles.items():
                    value = role.keep(call.module, rows, call.output, self._grams, name in self._shared)
                    version = None if value.inputs is None else value.inputs._version
                    kept.append((name, role, value, version))
        return Tap.apply(call.output, self._anchor, partial(self._receive, call.name, kept))

    def _receive(self, module: str, kept: list, cotangent: Tensor) -> None:
        """Add to the norms what one call of a module gives, now that the cotangent of its output is known."""
        now = self._pass
        if now.open:  # a gradient that the model takes in its forward pass
            return
        cotangent = by_row(cotangent, now.size)
        for name, role, value, version in kept:
            if version is not None:
                check_unchanged(module, value.inputs, version)
            if now.counts[name] == 1:
                now.norms[name] = role.norm([(value, cotangent)], self._grams)
            else:
                now.waiting[name, role].append((value, cotangent))

    def _backpropagate(self, direction: Tensor, retain_graph: bool) -> None:
        """Run the backward pass, in which taps take the cotangents and other uses of parameters show a gradient."""
        now = self._pass
        if not now.logits.requires_grad:
            return
        sources = [self._anchor, *self.parameters.values()]
        with autograd_explained():
            gradients = torch.autograd.grad(
                now.logits, sources, direction, retain_graph=retain_graph, allow_unused=True
            )[1:]
        formed = {n: g for n, g in zip(self.parameters, gradients, strict=True) if g is not None}
        if unexpected := formed.keys() - self._formed:
            raise Uncovered(dict.fromkeys(unexpected, USED))
        for name, gradient in formed.items():
            now.norms[name] = squared_norm(gradient).reshape(1)

    def _is_due(self, facts: set = frozenset()) -> bool:
        """Whether to hold something against plain autograd: after so many examples, or where there are new facts."""
        return self._measured >= CHECK_EVERY * self._checked or not facts <= self._verified

    def _check_rows(self, batch: Mapping[str, Tensor], direction: Tensor, found: Tensor) -> None:
        """Measure a few examples of a batch anew, in another order and each with a factor of its own.

        Where a module sees examples in another order than the batch's, or together, the factors meet others.
        """
        if len(found) == 1:
            return
        rows = self._random.sample(range(len(found)), min(CHECKED_ROWS, len(found)))
        factors = 2.0 ** torch.arange(len(rows), dtype=torch.float64, device=found.device)
        self.forward({key: value[rows] for key, value in batch.items()})
        precision = self._pass.precision
        again = self.backward(direction[rows] * factors[:, None].to(direction), last=True) / factors[:, None].square()
        wrong = {n for i, row in enumerate(rows) for n in differing(self.parameters, again[i], found[row], precision)}
        if wrong:
            raise Uncovered({name: DIFFERS for name in self.parameters if name in wrong})

    def _check_example(self, batch, logits: Tensor, direction: Tensor, norms: Tensor, now: Pass, start: int) -> None:
        """Hold an example's norms against plain autograd, on the model as it is and with the example alone."""
        i = self._random.randrange(now.size)
        with self._left(), torch.enable_grad(), self._attention(), uncached_casts():
            alone = logits_of(self.model, example_of(batch, i))
            check_alone(logits[i : i + 1], alone.detach(), now.precision, start + i)
            expected = plain_norms(alone, self.parameters.values(), direction[i : i + 1])
        if wrong := differing(self.parameters, norms[i], expected, now.precision):
            if not expected.isfinite().all():
                raise FlatlingoError(
                    f"the gradient of {listed(wrong)} at example {start + i} is not finite: the weights have grown too "
                    "large, as in a training that has diverged"
                )
            if now.size == 1 and self._formed.issuperset(wrong):
                raise FlatlingoError(
                    f"the gradient of {listed(wrong)} at example {start + i} differs from one pass to the next: "
                    "something is random even in eval mode; switch it off"
                )
            raise Uncovered(dict.fromkeys(wrong, DIFFERS))
        self._checked += 1
        self._verified |= now.facts()

    def _survey(self, batch: Mapping[str, Tensor], logits: Tensor) -> None:
        """See on the first examples how the model uses its parameters, and whether its last layer can be shortened."""
        hooked = [name for name, parameter in self.parameters.items() if parameter._backward_hooks]
        with self:
            while not self._run(batch):
                pass
            if self._pass.spread and not agree(self._pass.logits, logits, self._pass.precision):
                self._narrow |= self._pass.spread
                self._run(batch)
            now = self._pass
            self._precision = now.precision
            check_alone(now.logits.detach(), logits, now.precision, 0)
            reasons = self._used_in_graph() | now.reasons | dict.fromkeys(hooked, HOOKED)
        if reasons:
            self._cover({name: reasons[name] for name in self.parameters if name in reasons}, now.size)
        if not (self._shared or self.single):
            with first_token_only(self.model) as shortened, torch.no_grad(), uncached_casts():
                self._shorten = shortened and agree(logits_of(self.model, batch), logits)

    def _used_in_graph(self) -> dict[str, str]:
        """Parameters that the pass uses otherwise than in recorded calls."""
        uses, _ = uses_in_graph(self._pass.logits)
        return {n: USED for n, p in self.parameters.items() if uses[id(p)] and n not in self._formed}

    def _cover(self, reasons: dict[str, str], size: int) -> None:
        """Take examples one at a time from now on, and form the gradients that have no known form."""
        by_reason = defaultdict(list)
        for name, reason in reasons.items():
            by_reason[reason].append(name)
        sentence = "; ".join(f"{listed(names)}: {reason}" for reason, names in by_reason.items())
        warnings.warn(f"{sentence}; examples are taken one at a time, which is exact but slower", stacklevel=5)
        alignment = {ROWS, DIFFERS} if size > 1 else set()  # of rows may be all that is wrong
        self._change(formed={name for name, reason in reasons.items() if reason not in alignment}, shorten=False)
        self.single = True
        self._checked = min(self._checked, self._measured // CHECK_EVERY)  # the next example is checked

    def _change(self, *, formed: set[str] = frozenset(), shorten: bool) -> None:
        with self._left() if self._undo else nullcontext():
            self._formed |= formed
            self._shorten = shorten

    @contextmanager
    def _left(self) -> Iterator[None]:
        """Within the context the model is without the recorder's hooks, as it was before measuring."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def _covered(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.parameters.items() if name not in self._formed}

    def _cast_by_autocast(self) -> list[nn.Parameter]:
        """Weights of linear layers: autocast keeps no copy of frozen ones and would cast them in every pass."""
        if not torch.is_autocast_enabled(self._anchor.device.type):
            return []
        kinds = defaultdict(set)
        for _, _, roles in modules_using(self.model, self._covered()):
            for name, role in roles.items():
                kinds[name].add(type(role))
        return [p for name, p in self._covered().items() if kinds[name] == {LinearWeight} and p.dtype == torch.float32]

    def _attention(self) -> AbstractContextManager:
        """Unfused attention in half precision on CPUs, where the way back through the fused one is ten times slower."""
        device, dtype = self._anchor.device.type, next(iter(self.parameters.values())).dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return unfused_attention() if device == "cpu" and dtype.itemsize == 2 else nullcontext()

    def _forget(self) -> None:
        if self._pass:
            self._pass.logits = None  # the graph, and what calls have kept
        self._pass = None
        self._grams.forget()
