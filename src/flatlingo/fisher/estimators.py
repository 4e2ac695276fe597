r"""Other ways to get at Tr(F), to compare with the exact one: estimates by sampling, and two look-alikes.

========================  =========================================  ==========================================
function                  expectation                                spread
========================  =========================================  ==========================================
`fisher_trace`            Tr(F_batch): no randomness                 none, given the examples
`fisher_trace`, sampled   Tr(F_batch)                                falls as 1/√examples
`penalty_estimate`        Tr(F_batch)                                relative, tends to √2 ‖F‖ / Tr(F) with more
                                                                     examples; falls on only with more draws
`hutchinson`              Tr(F_batch)                                at most √2 ‖F‖ / Tr(F), likewise
`argmax_trace`            not Tr(F)                                  none, given the examples
`argmax_penalty`          neither Tr(F) nor `argmax_trace`           none, given the examples
========================  =========================================  ==========================================

‖F‖ is the Frobenius norm. F of a classifier has few large eigenvalues, so ‖F‖ / Tr(F) is not small.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.batches import Batch, logits_of
from flatlingo.fisher.checks import LABEL_KEYS, check_batch, check_model, checked_logits
from flatlingo.fisher.directions import score_direction
from flatlingo.fisher.measuring import measure
from flatlingo.fisher.result import FisherTrace
from flatlingo.fisher.theory import Estimate, estimate, functional, quadratic_form


@torch.enable_grad()
def penalty_estimate(model: nn.Module, batch: Mapping[str, Tensor], *, draws: int, seed: int) -> Estimate:
    r"""B‖ḡ‖², the estimate of Tr(F_batch) that the Fisher penalty makes.

    .. math:: \bar g = \frac1B \sum_{i=1}^B \nabla_\theta \log p(\hat y_i|x_i), \qquad \hat y_i \sim p(y|x_i)

    Unbiased, because scores of different examples are independent and have mean zero: E‖ḡ‖² = (1/B²) ∑ᵢ E‖gᵢ‖². For
    many examples √B ḡ is nearly normal with covariance F, so the variance tends to 2‖F‖² (Frobenius), whatever B.
    One forward pass and, for each draw, one backward pass with parameter gradients.

    Args:
        model: as for `fisher_trace`; over the parameters that require a gradient.
        batch: the examples.
        draws: how many times labels are drawn.
        seed: of the labels; global generators are left alone.

    Returns:
        Mean over draws with its standard error (NaN for one draw).

    Raises:
        FlatlingoError: as `fisher_trace`, or fewer than one draw.
    """
    logits = _logits(model, batch, draws)
    generator = torch.Generator(logits.device).manual_seed(seed)
    p = logits.detach().double().softmax(1)
    labels = [torch.multinomial(p, 1, generator=generator).squeeze(1) for _ in range(draws)]
    return estimate([_scaled_squared_norm(model, logits, drawn) for drawn in labels])


def hutchinson(model: nn.Module, batch: Mapping[str, Tensor], *, draws: int, seed: int) -> Estimate:
    r"""vᵀFv with random signs v (Hutchinson 1989).

    Unbiased: E vᵀFv = Tr(F). The variance is 2(‖F‖² - ∑ Fⱼⱼ²), Frobenius norm, whatever the number of examples. Each
    draw is one forward-mode pass, about three forward passes; here in float64 on a copy of the model.

    Args:
        model: as for `fisher_trace`; over all parameters, frozen ones too.
        batch: the examples.
        draws: number of vectors v.
        seed: of the vectors; global generators are left alone.

    Returns:
        Mean over draws with its standard error (NaN for one draw).

    Raises:
        FlatlingoError: as `fisher_trace`, or fewer than one draw.
    """
    with torch.no_grad():
        _logits(model, batch, draws)
    logits, theta = functional(model, batch)
    generator = torch.Generator(theta.device).manual_seed(seed)

    def signs() -> Tensor:
        return 2.0 * torch.randint(2, theta.shape, generator=generator, device=theta.device, dtype=theta.dtype) - 1

    return estimate([2 * quadratic_form(logits, theta, signs()) for _ in range(draws)])


def argmax_trace(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> FisherTrace:
    r"""Mean squared norm of the gradient at the *most probable* label, which is not Tr(F).

    .. math:: \frac1N \sum_i \|\nabla_\theta \log p_{\hat c_i}(x_i)\|^2, \qquad \hat c_i = \arg\max_c p_c(x_i)

    Where the model is sure this is far too small: the gradient at the label that it predicts vanishes as 1 - p, and the
    rare labels that carry the trace are never looked at. With p the largest probability it is at most (1 - p)/p times
    the trace of the example, and exactly that for two labels: from ∑_c p_c g_c = 0 follows
    ‖g_ĉ‖² = ‖∑_{c≠ĉ} p_c g_c‖² / p² ≤ (1 - p) ∑_{c≠ĉ} p_c ‖g_c‖² / p².

    Arguments and errors as for `fisher_trace`.
    """

    def directions(logits: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        return [score_direction(logits, logits.argmax(1))]

    return measure(model, batches, directions)


@torch.enable_grad()
def argmax_penalty(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    r"""B‖ḡ‖² with the most probable labels: what published code computes for Tr(F) (up to the factor B).

    Labels that are not drawn have scores that do not average out: ‖ḡ‖² keeps the cross terms between examples, and
    B‖ḡ‖² grows with the batch. Without the factor B it is B times too small besides, as ‖ḡ‖² is for drawn labels too.
    The code of Liu et al. (2023, arXiv:2301.05487) takes the squared gradient of the batch's mean loss at the
    most probable labels, divided by B once more; its paper defines Tr(F) as here.

    Args:
        model: as for `fisher_trace`.
        batch: the examples.
    """
    logits = _logits(model, batch, 1)
    return float(_scaled_squared_norm(model, logits, logits.argmax(1)))


def _logits(model: nn.Module, batch: Mapping[str, Tensor], draws: int) -> Tensor:
    """The logits of a checked batch, with their graph."""
    if draws < 1:
        raise FlatlingoError(f"draws={draws}: an estimate needs at least one")
    check_model(model)
    check_batch(model, batch, 0)
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key not in LABEL_KEYS}
    return checked_logits(model, logits_of(model, inputs), 0)


def _scaled_squared_norm(model: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """B‖∇ (1/B) ∑ᵢ log p(yᵢ|xᵢ)‖², in float64."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = F.cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return len(logits) * sum(gradient.double().square().sum() for gradient in gradients if gradient is not None)
