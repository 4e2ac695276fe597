"""Measures that look at the weights: Tr(F) relative to their size, and how far they have moved."""

from collections.abc import Mapping

from torch import Tensor, nn

from flatlingo.errors import FlatlingoError, listed
from flatlingo.fisher.result import FisherTrace


def scale_aware(trace: FisherTrace, model: nn.Module) -> FisherTrace:
    r"""Tr(F) with each tensor's part times the squared norm of that tensor.

    .. math:: \sum_t \lVert\theta_t\rVert^2 \operatorname{Tr} F_t

    in nats², over tensors t; a mean over examples, as Tr(F). Rescaling layers (one by a, the next by 1/a, as ReLU
    allows) leaves what the network computes as it was and changes Tr(F) at will; this sum does not change.

    Args:
        trace: measured tensor by tensor, `fisher_trace(model, batches, by="parameter")`.
        model: whose trace it is.

    Returns:
        The sum with its standard error, by tensor and by example.

    Raises:
        FlatlingoError: if the trace is not by tensor.

    References:
        Dinh et al., ICML 2017 (what rescaling does to flatness); Andriushchenko et al., ICML 2023 (adaptive sharpness).

    Example:
        >>> import torch
        >>> from flatlingo.fisher import fisher_trace
        >>> model = torch.nn.Linear(2, 3, bias=False).double().eval()
        >>> with torch.no_grad(): _ = model.weight.fill_(2)
        >>> trace = fisher_trace(model, [{"input": torch.tensor([[1.0, 2.0]]).double()}], by="parameter")
        >>> round(trace.value, 6), round(scale_aware(trace, model).value, 6)  # times 6 · 2²
        (3.333333, 80.0)
    """
    squares = {name: _squared(parameter) for name, parameter in model.named_parameters()}
    if missing := set(trace.contributions) - set(squares):
        raise FlatlingoError(
            f'{listed(sorted(missing))}: no parameter of the model; measure the trace with by="parameter"'
        )
    return FisherTrace(trace.contributions * {name: squares[name] for name in trace.contributions})


def distance(model: nn.Module, start: Mapping[str, Tensor]) -> float:
    r"""How far training has moved the weights, the Frobenius norm of the difference from where they started.

    .. math:: \lVert\theta - \theta_0\rVert_2

    over all parameters that require a gradient, as one vector; computed in float64.

    Args:
        model: the trained model.
        start: the weights before training by name, such as a copy of `model.state_dict()`; names that are no
            parameters are ignored.

    Raises:
        FlatlingoError: if a parameter has no start, or one of another shape.

    References:
        A rival of flatness in Bassi, Ataman & Cho, MRL 2024.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> start = {name: value.clone() for name, value in model.state_dict().items()}
        >>> with torch.no_grad(): _ = model.weight.add_(torch.tensor([[3.0, 4.0]]))
        >>> round(distance(model, start), 5)
        5.0
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    differing = [n for n, parameter in trained.items() if n not in start or start[n].shape != parameter.shape]
    if differing:
        raise FlatlingoError(f"{listed(differing)}: not among the start's weights in this shape; give the same model's")
    return sum(_squared(parameter, start[name]) for name, parameter in trained.items()) ** 0.5


def _squared(parameter: Tensor, origin: Tensor | None = None) -> float:
    value = parameter.detach().double().cpu()
    return float((value if origin is None else value - origin.detach().double().cpu()).square().sum())
