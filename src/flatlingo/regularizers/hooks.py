"""Change what a module computes, for as long as a context lasts; the model itself stays as it is."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from flatlingo.errors import FlatlingoError


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
def changed_lookup(
    modules: Iterable[nn.Module], change: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Within the context, of one pass, the first of the modules to be called gives `change(module, ids, found)`.

    Later calls, as of a decoder that shares its encoder's embeddings, are left alone.

    Raises:
        FlatlingoError: if the pass calls none of the modules.
    """
    first: list[nn.Module] = []
    changed = False

    def enter(module, _inputs):
        if not first:
            first.append(module)

    def leave(module, inputs, named, output):
        nonlocal changed
        if changed or module is not first[0]:  # another one inside the first, as in LoRA's embeddings
            return output
        changed = True
        ids = inputs[0] if inputs else next(iter(named.values()))
        if isinstance(output, tuple):
            return (change(module, ids, output[0]), *output[1:])
        return change(module, ids, output)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield
    if not changed:
        raise FlatlingoError(
            "the model looks its tokens up elsewhere than in get_input_embeddings(), so noise on these would change "
            "nothing; use a perturbation of the texts, of hidden states or of the weights"
        )


@contextmanager
def changed_arguments(module: nn.Module, **arguments: Any) -> Iterator[None]:
    """Within the context the module is called with these keyword arguments, whatever its caller says of them."""
    handle = module.register_forward_pre_hook(
        lambda _module, inputs, named: (inputs, named | arguments), with_kwargs=True
    )
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
