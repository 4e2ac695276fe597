"""Tr(F), the trace of the Fisher information matrix of a classifier, with its standard error."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch import Tensor, distributed, nn
from tqdm import tqdm

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.checks import (
    LABEL_KEYS,
    check_batch,
    check_gold,
    check_model,
    check_padding,
    check_signature,
    checked_logits,
    most_padded,
)
from flatlingo.fisher.gradnorms import GradientNorms, batch_size, logits_of, uncached_casts
from flatlingo.fisher.reference import example_of, unpadded
from flatlingo.fisher.selection import Selection, module_group, selected

CHECKED = 2  # examples seen first, to find out what is random, how rows go together and whether shortcuts hold
FEWEST_EXAMPLES = 100  # before `tolerance` may stop: the traces of examples are heavy-tailed


@dataclass(frozen=True, eq=False, repr=False)
class FisherTrace:
    """Tr(F), or the empirical Fisher, of the examples seen: a mean over examples, in nats².

    Attributes:
        contributions: what each example (row) gives to the trace of each group of parameters (column), in float64.
    """

    contributions: pd.DataFrame

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.contributions)

    @property
    def per_example(self) -> np.ndarray:
        """The trace of each example, (n,) in float64; its mean is the value."""
        return self.contributions.to_numpy().sum(axis=1)

    @property
    def value(self) -> float:
        """The mean over examples."""
        return float(self.per_example.mean())

    @property
    def standard_error(self) -> float:
        """Standard deviation over examples (n - 1 in the denominator) divided by √n; NaN for a single example."""
        return _standard_error(self.per_example)

    @property
    def log_mean(self) -> float:
        """The mean over examples of the logarithm of each one's trace: the logarithm of their geometric mean.

        Traces of examples have a heavy tail, so that their mean rests on a few of them; their logarithms have none. Of
        five fine-tuned encoders on the same 500 XNLI rows, the relative standard error of the mean was 7 to 15 %, that
        of the geometric mean 5 to 8 %; the paired difference of two, in units of its standard error, was 1.4 to 2.3
        times as large for logarithms in nine of ten pairs: as sure with a fifth to a half of the rows. But it is
        another quantity, which may order two models otherwise. -inf if an example has a trace of 0.
        """
        with np.errstate(divide="ignore"):
            return float(np.log(self.per_example).mean())

    @property
    def log_standard_error(self) -> float:
        """Standard error of `log_mean`: about a relative error of the geometric mean."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return _standard_error(np.log(self.per_example))

    @property
    def groups(self) -> dict[str, float]:
        """The part of each group; the parts sum to the value."""
        return self.contributions.mean().to_dict()

    @property
    def group_standard_errors(self) -> dict[str, float]:
        """Standard error of each group's part."""
        return {group: _standard_error(column.to_numpy()) for group, column in self.contributions.items()}

    def difference(self, other: "FisherTrace") -> tuple[float, float]:
        """This value minus another's over the same examples, and its standard error from the paired differences.

        The traces of two models on the same examples go together, so the paired error is the smaller one. That the
        examples are the same, in the same order, is for the caller to know.

        Raises:
            FlatlingoError: the two were not measured on the same number of examples.
        """
        if self.n != other.n:
            raise FlatlingoError(f"a paired difference needs the same examples: {self.n} here, {other.n} there")
        difference = self.per_example - other.per_example
        return float(difference.mean()), _standard_error(difference)

    def to_frame(self) -> pd.DataFrame:
        """A table with one row per group and a last row `all`: value, standard error, share of the value."""
        table = pd.DataFrame({"value": self.groups, "standard_error": self.group_standard_errors})
        table.loc["all"] = [self.value, self.standard_error]
        return table.assign(share=table["value"] / self.value).rename_axis("group")

    def __repr__(self) -> str:
        parts = ", ".join(f"{group} {value:.4g}" for group, value in self.groups.items())
        return f"FisherTrace({self.value:.4g} ± {self.standard_error:.2g}, n={self.n}: {parts})"


def fisher_trace(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    labels: str = "exact",
    parameters: Selection = None,
    by: str | Callable[[str], str] = "module group",
    max_examples: int | None = None,
    tolerance: float | None = None,
    progress: bool = False,
    seed: int = 0,
) -> FisherTrace:
    r"""Trace of the Fisher information matrix of a classifier, one number per example.

    .. math:: \operatorname{Tr} F = \frac1N \sum_{i=1}^N \sum_{c=1}^C p_c(x_i) \|\nabla_\theta \log p_c(x_i)\|^2

    in nats², a sum over the parameters named and a mean over the N examples; the labels are the model's own. With
    Σ = diag(p) - ppᵀ = ∑ₖ wₖ uₖuₖᵀ (k < C, `softmax_factor`) the inner sum is ∑ₖ wₖ ‖∇(uₖ · logits)‖²: C - 1 backward
    passes, exact, and none forms a weight gradient (`flatlingo.fisher.gradnorms`). Computed in the model's precision
    (relative error of the mean in float32 about 1e-6, under bfloat16 autocast a few 1e-3), accumulated in float64.

    Args:
        model: a sequence classifier of two labels or more, in eval mode: any Hugging Face model, or a module whose call
            `model(**batch)` gives logits (B, C).
        batches: dicts of tensors as a Trainer's collator makes them, for example a DataLoader. Gold labels are ignored.
            Sorting examples by length saves time and changes nothing else. With several processes (accelerate) give
            each the same batches; they share the work and return the same result.
        labels: "exact" sums over all labels; "sampled" draws one per example from the model, unbiased but noisier.
        parameters: names, a function of the name, "head" (pooler and head) or "last_layer" (the encoder's last layer
            too); default all that require a gradient. Frozen ones never count.
        by: how parameters are grouped: "module group" (embeddings = the word embedding matrix, other embeddings,
            encoder, pooler, head), "parameter", or a function of the parameter's name.
        max_examples: stop after this many.
        tolerance: stop when the standard error falls below this share of the value, after 100 examples at least. Give
            the batches in random order then, not sorted by length: those that come first decide.
        progress: show a progress bar.
        seed: of the labels drawn for "sampled"; the i-th example has its own generator, so batching does not matter.

    Returns:
        The trace with its standard error, per group and per example.

    Raises:
        FlatlingoError: the model is in train mode, not deterministic, not a classifier, has no trainable parameter or
            gives logits that are not finite; there is no batch, or one is malformed.

    Example:
        >>> model = torch.nn.Linear(2, 3).double().eval()
        >>> with torch.no_grad(): _ = [parameter.zero_() for parameter in model.parameters()]
        >>> fisher_trace(model, [{"input": torch.tensor([[1.0, 2.0]]).double()}]).value  # (1 - 1/C) (‖x‖² + 1)
        4.0
    """
    if labels not in ("exact", "sampled"):
        raise FlatlingoError(f'labels={labels!r}: choose "exact" or "sampled" (for gold labels: empirical_fisher)')
    if not isinstance(seed, int) or seed < 0:
        raise FlatlingoError(f"seed={seed!r}: give a whole number, 0 or more")

    def directions(logits: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        if labels == "sampled":
            return [score_direction(logits, sampled_labels(logits, batch.start, seed))]
        weights, directions = softmax_factor(logits)
        return list(zip(weights.unbind(1), directions.unbind(1), strict=True))

    return measure(model, batches, directions, parameters, by, max_examples, tolerance, progress)


def empirical_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    parameters: Selection = None,
    by: str | Callable[[str], str] = "module group",
    max_examples: int | None = None,
    progress: bool = False,
) -> FisherTrace:
    r"""Mean squared norm of the gradient at the gold labels, which is *not* Tr(F).

    .. math:: \frac1N \sum_{i=1}^N \|\nabla_\theta \log p_{y_i}(x_i)\|^2

    Equal to Tr(F) in expectation only if the model's probabilities are right; a model that fits noisy labels badly
    exceeds it several times (Kunstner, Balles & Hennig 2019, arXiv:1905.12558). Arguments as in `fisher_trace`, but
    each batch holds "labels".

    Raises:
        FlatlingoError: as `fisher_trace`, or a batch without labels.
    """

    def directions(logits: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        if batch.gold is None:
            raise FlatlingoError('the empirical Fisher needs gold labels: give each batch a "labels" tensor')
        check_gold(batch.gold, logits, batch.start)
        return [score_direction(logits, batch.gold.to(logits.device).long())]

    return measure(model, batches, directions, parameters, by, max_examples, None, progress)


def softmax_factor(logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Factor of the covariance of a softmax label, Σ = diag(p) - ppᵀ = ∑ₖ wₖ uₖuₖᵀ with C - 1 terms.

    With the tails qₖ = ∑_{j>k} pⱼ: wₖ = pₖ qₖ / qₖ₋₁ and uₖ = eₖ - ∑_{j>k} (pⱼ / qₖ) eⱼ, the LDLᵀ factor in closed
    form. Tails are summed in log space, so probabilities near 0 or 1 lose no digits. Differentiable.

    Args:
        logits: (B, C).

    Returns:
        Weights (B, C - 1) and directions (B, C - 1, C) in float64; the directions have norms between 1 and √2.

    References:
        Tanabe & Sagae 1992, J. R. Statist. Soc. B 54(1).

    Example:
        >>> w, u = softmax_factor(torch.tensor([[2.0, 0.0, -1.0]]))
        >>> p = torch.tensor([2.0, 0.0, -1.0]).double().softmax(0)
        >>> bool(torch.allclose(torch.einsum("bk,bkc,bkd->cd", w, u, u), p.diag() - p.outer(p)))
        True
    """
    log_p = logits.double().log_softmax(1)
    log_tail = log_p.flip(1).logcumsumexp(1).flip(1)  # column k: log(pₖ + qₖ) = log qₖ₋₁
    log_q = log_tail[:, 1:]
    weights = (log_p[:, :-1] + log_q - log_tail[:, :-1]).exp()
    unit = torch.eye(logits.shape[1], dtype=weights.dtype, device=weights.device)[:-1]
    later = torch.ones_like(unit).triu(1) > 0
    shares = (log_p[:, None, :] - log_q[:, :, None]).masked_fill(~later, -torch.inf).exp()
    directions = unit - shares
    return weights, directions


def sampled_labels(logits: Tensor, start: int, seed: int) -> Tensor:
    """One label per example, (B,), from the model's probabilities."""
    uniform = [np.random.default_rng((seed, start + i)).random() for i in range(len(logits))]
    below = logits.double().softmax(1).cpu().cumsum(1)[:, :-1] < torch.tensor(uniform)[:, None]  # on a GPU not the same
    return below.sum(1).to(logits.device)


def score_direction(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The direction of ∇log p_label, (e_label - p) scaled to norm 1, and its squared norm."""
    log_p = logits.double().log_softmax(1)
    score = -log_p.exp()
    of_label = -torch.expm1(log_p.gather(1, labels[:, None]))  # 1 - p without cancellation
    score = score.scatter(1, labels[:, None], of_label)
    norm = score.norm(dim=1)
    return norm.square(), score / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None]


Directions = Callable[[Tensor, "Batch"], list[tuple[Tensor, Tensor]]]


def measure(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    directions: Directions,
    parameters: Selection = None,
    by: str | Callable[[str], str] = "module group",
    max_examples: int | None = None,
    tolerance: float | None = None,
    progress: bool = False,
) -> FisherTrace:
    """The trace over all batches; `directions` gives the terms (weight, direction) of a batch from its logits.

    Weights are (B,), directions (B, C); the other arguments are those of `fisher_trace`.
    """
    check_model(model)
    if max_examples is not None and (not isinstance(max_examples, int) or max_examples < 1):
        raise FlatlingoError(f"max_examples={max_examples!r}: give a whole number, 1 or more")
    measured = selected(model, parameters)
    groups = _Groups(list(measured), _grouping(model, by))
    check_whole(batches)
    rank, processes = _process()
    bar = tqdm(batches, desc="Tr(F)", unit="batch", disable=not progress or rank > 0)
    stream = _prepared(bar, model, max_examples)
    first = next(stream, None)
    if first is None:
        raise FlatlingoError("no batches: Tr(F) needs at least one example (a generator that is used up gives none)")

    table, seen_padding = np.empty((0, len(groups.names))), False
    with full_float32(), _as_written(), _engine(model, measured, first) as norms:
        stream = chain([first], stream)
        while round_ := list(islice(stream, processes)):  # each process takes one batch of the round
            for batch in [] if seen_padding else round_:
                seen_padding |= padding_is_checked(model, batch.inputs)
            mine = [groups.sums(_norms(norms, batch, directions)) for batch in round_[rank:][:1]]
            table = np.concatenate([table, *_gathered(np.concatenate([table[:0], *mine]), processes)])
            if tolerance is not None and _precise(table.sum(1), tolerance):
                break
    return FisherTrace(pd.DataFrame(table, columns=groups.names))


def _engine(model: nn.Module, parameters: dict[str, nn.Parameter], first: "Batch") -> GradientNorms:
    """What measures, having seen the first examples."""
    few = _on_device(model, {key: value[:CHECKED] for key, value in first.inputs.items()})
    check_signature(model, few)
    with torch.no_grad(), uncached_casts():
        alone = [checked_logits(model, logits_of(model, example_of(few, i)), i) for i in range(batch_size(few))]
    return GradientNorms(model, parameters, few, torch.cat(alone))


def padding_is_checked(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a batch has a padded row; its logits must be those that it has without padding (`check_padding`).

    Of BigBird this is not asked, which takes other attention for good once it sees a short row.
    """
    if any(hasattr(module, "set_attention_type") for module in model.modules()):
        return True
    if (row := most_padded(inputs)) is None:
        return False
    one = _on_device(model, example_of(inputs, row))
    with torch.no_grad(), uncached_casts():
        padded, alone = (logits_of(model, example)[0] for example in (one, unpadded(one)))
    if not padded.isfinite().all():  # what is wrong with it, or that it reads more than the first token, is found below
        return False
    check_padding(model, inputs, row, padded, alone)
    return True


def _norms(norms: GradientNorms, batch: "Batch", directions: Directions) -> Tensor:
    """∑ₖ weightₖ ‖∇(directionₖ · logits)‖² of each example and parameter, (B, P)."""

    def terms(logits: Tensor, first: int) -> list[tuple[Tensor, Tensor]]:
        part = batch.part(first, len(logits))
        return directions(checked_logits(norms.model, logits, part.start), part)

    return norms(_on_device(norms.model, batch.inputs), terms, batch.start)


class _Groups:
    """Groups of parameters, in the order of their first ones."""

    def __init__(self, parameters: list[str], group_of: Callable[[str], str]):
        groups = [group_of(name) for name in parameters]
        self.names = list(dict.fromkeys(groups))
        self._index = torch.tensor([self.names.index(group) for group in groups])

    def sums(self, norms: Tensor) -> np.ndarray:
        """Sums over the parameters of each group: (B, groups) from (B, P)."""
        norms = norms.cpu()
        return norms.new_zeros(len(norms), len(self.names)).index_add_(1, self._index, norms).numpy()


@contextmanager
def _as_written() -> Iterator[None]:
    """Modules computed as they are written: not compiled (`torch.compile`), not by a transformer's fast path."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products in all 24 bits of float32: no TF32 or bf16 inside, whatever the settings; restored afterwards."""
    backends = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    kinds += (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set in the newer way, kind by kind, which this older one cannot tell
        before = None
    settings = [kind.fp32_precision for kind in kinds]
    torch.set_float32_matmul_precision("highest")
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        for kind, setting in zip(kinds, settings, strict=True):
            kind.fp32_precision = setting


def _precise(per_example: np.ndarray, tolerance: float) -> bool:
    return len(per_example) >= FEWEST_EXAMPLES and _standard_error(per_example) <= tolerance * per_example.mean()


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _grouping(model: nn.Module, by: str | Callable[[str], str]) -> Callable[[str], str]:
    if callable(by):
        return by
    if by == "parameter":
        return lambda name: name
    if by == "module group":
        return partial(module_group, model)
    raise FlatlingoError(f'by={by!r}: choose "module group", "parameter" or a function of the parameter\'s name')


class Batch(NamedTuple):
    """Inputs of the model, gold labels if there are any, and the number of examples before."""

    inputs: dict[str, Tensor]
    gold: Tensor | None
    start: int

    def part(self, first: int, size: int) -> "Batch":
        """The `size` examples from the one numbered `first` on."""
        rows = slice(first, first + size)
        gold = None if self.gold is None else self.gold[rows]
        return Batch({key: value[rows] for key, value in self.inputs.items()}, gold, self.start + first)


def _prepared(batches: Iterable, model: nn.Module, max_examples: int | None) -> Iterator[Batch]:
    """The batches, checked and cut off after `max_examples`."""
    start = 0
    for position, batch in enumerate(batches):
        if max_examples is not None and start >= max_examples:
            return
        check_batch(model, batch, position)
        room = None if max_examples is None else max_examples - start
        inputs = {key: value[:room] for key, value in batch.items() if key not in LABEL_KEYS}
        gold = next((batch[key][:room] for key in LABEL_KEYS if key in batch), None)
        yield Batch(inputs, gold, start)
        start += batch_size(inputs)


def _on_device(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs where the model is; copies of those made under inference_mode, which autograd cannot keep."""
    device = next(model.parameters()).device
    return {key: (value.clone() if value.is_inference() else value).to(device) for key, value in inputs.items()}


def check_whole(batches: Iterable) -> None:
    """Refuse a single batch, and a DataLoader of which each of several processes would have its own share.

    Raises:
        FlatlingoError: naming the fix.
    """
    if isinstance(batches, Mapping):
        raise FlatlingoError("batches is a single batch; give a list of batches: [batch]")
    if _process()[1] > 1 and isinstance(batches, (DataLoaderShard, DataLoaderDispatcher)):
        raise FlatlingoError("this DataLoader is already split over processes: give the one before accelerator.prepare")


def _process() -> tuple[int, int]:
    """(rank, number of processes), under `accelerate launch` or torchrun."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _gathered(rows: np.ndarray, processes: int) -> list[np.ndarray]:
    """The rows of all processes, in order."""
    if processes == 1:
        return [rows]
    gathered = [None] * processes
    distributed.all_gather_object(gathered, rows)
    return gathered
