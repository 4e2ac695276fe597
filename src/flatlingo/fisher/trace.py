"""Tr(F), the trace of the Fisher information matrix of a classifier, and the empirical Fisher, which is another."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.batches import Batch
from flatlingo.fisher.checks import check_gold
from flatlingo.fisher.directions import sampled_labels, score_direction, softmax_factor
from flatlingo.fisher.measuring import measure
from flatlingo.fisher.result import FisherTrace
from flatlingo.fisher.selection import Selection


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
        >>> import torch
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
