"""Change what a module computes, for as long as a context lasts; the model itself stays as it is."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


@contextmanager
def changed_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context the module gives `change(output)`; of a tuple, the first member is changed."""

    def hook(_module, _inputs, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changed_weight(modules: Iterable[nn.Module], change: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """Within the context the modules compute with `change(module, weight)`.

    Outside a module's forward pass its `weight` is the parameter as ever, so optimisers, checkpoints and other
    regularisers see no difference; gradients reach the parameter through `change`.
    """
    weights: dict[nn.Module, Tensor] = {}

    def enter(module, _inputs):
        weights[module] = module._parameters["weight"]
        module._parameters["weight"] = change(module, weights[module])

    def leave(module, _inputs, _output):
        module._parameters["weight"] = weights.pop(module)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
