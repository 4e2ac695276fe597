"""The recorder of module calls: who used which parameters, with what inputs, and where the cotangents will arrive.

Within `recording` each module of a known kind (`flatlingo.fisher.roles`) has its `forward` replaced by one that hands
over every call made with gradients on. Hooks of the model lie outside of it, so what they change, they change after
the layer; a call that brings no gradient (under no_grad, or unused) brings no cotangent either; and `Tap` keeps the
layer's own output apart from operations in place. A use of a parameter that is no such call stays visible in the
autograd graph. So what is handed over and what is seen in the graph are together all of a parameter's uses.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatlingo.errors import FlatlingoError
from flatlingo.fisher.roles import Role, roles_of


class Call(NamedTuple):
    """A call of a module that holds parameters.

    name: of the module.
    module: which was called.
    roles: of its parameters, by their names.
    inputs: first argument, (B, ..., d) or ids (B, T).
    output: (B, ..., p), before anything else has seen it.
    of_ids: whether the inputs are ids.
    """

    name: str
    module: nn.Module
    roles: dict[str, Role]
    inputs: Tensor
    output: Tensor
    of_ids: bool

    def is_by_row(self, size: int) -> bool:
        """Whether the inputs have one row for each of `size` examples."""
        return size == 1 or (self.inputs.ndim >= (1 if self.of_ids else 2) and len(self.inputs) == size)

    def is_for_all(self, size: int) -> bool:
        """Whether it looks up one row of ids (1, T), as of positions, for all of several examples."""
        return self.of_ids and self.inputs.ndim == 2 and len(self.inputs) == 1 < size

    def spread(self, size: int) -> "Call":
        """The call `is_for_all` with its row repeated for each example: a single one receives the sum of cotangents."""
        inputs, output = (x.expand(size, *x.shape[1:]).contiguous() for x in (self.inputs, self.output))
        return self._replace(inputs=inputs, output=output)


Take = Callable[[Call], Tensor]


class Tap(torch.autograd.Function):
    """The output of a module, and a place where backward passes hand over its cotangent, and may end.

    `Tap.apply(output, anchor, receive)`: the same numbers in the same memory, but no view to autograd, so that an
    operation in place comes after it. A backward pass towards the anchor, a scalar that requires a gradient and gets
    none, visits every tap, whether or not anything before it requires a gradient. `receive` is called with the
    cotangent.
    """

    @staticmethod
    def forward(ctx, output: Tensor, anchor: Tensor | None, receive: Callable[[Tensor], None] | None) -> Tensor:
        """Pass the output on, and remember who receives its cotangent."""
        ctx.receive = receive
        return output.detach()

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None, None]:
        """Hand the cotangent to `receive` and pass it on; it can be differentiated."""
        if ctx.receive is not None:
            ctx.receive(cotangent)
        return cotangent, None, None


@contextmanager
def recording(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], take: Take, *, freeze: bool = False
) -> Iterator[None]:
    """Within the context, each call of a module of a known kind that holds some of the parameters goes to `take`.

    Args:
        model: whose modules.
        parameters: which to look for, by name.
        take: is given a call; what it returns (a `Tap` of the output) takes the place of the output.
        freeze: whether the parameters require no gradient inside these calls; outside of them they still do.
    """
    with ExitStack() as stack:
        for name, module, roles in modules_using(model, parameters):
            frozen = [parameters[parameter] for parameter in roles] if freeze else []
            of_ids = any(role.takes_ids for role in roles.values())
            module.forward = partial(_call, Call(name, module, roles, None, None, of_ids), take, frozen, module.forward)
            stack.callback(delattr, module, "forward")
        yield


def _call(call: Call, take: Take, frozen: list[nn.Parameter], forward: Callable, *args, **kwargs) -> Tensor:
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        output = forward(*args, **kwargs)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    if not torch.is_grad_enabled():
        return output
    inputs = args[0] if args else next(iter(kwargs.values()))
    return take(Call(call.name, call.module, call.roles, inputs, output, call.of_ids))


def modules_using(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> Iterator[tuple[str, nn.Module, dict[str, Role]]]:
    """Name of each module that holds some of the parameters in a known role, the module, and their roles by name."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    for module_name, module in model.named_modules():
        roles = {getattr(module, attribute): role for attribute, role in roles_of(module).items()}
        uses = {names[id(parameter)]: role for parameter, role in roles.items() if id(parameter) in names}
        if uses:
            yield module_name, module, uses


def uses_in_graph(logits: Tensor) -> tuple[Counter, set]:
    """How often the logits' autograd graph uses each leaf, by id, and its nodes.

    Looks through casts, which autocast shares.
    """
    parents, leaves = Counter(), []
    stack = [logits.grad_fn] if logits.grad_fn else []
    seen = set(stack)
    while stack:
        node = stack.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            parents[child] += 1
            if hasattr(child, "variable"):
                leaves.append((child, node))
            if child not in seen:
                seen.add(child)
                stack.append(child)
    uses = Counter()
    for leaf, node in leaves:
        uses[id(leaf.variable)] += parents[node] if node.name() == "ToCopyBackward0" else 1
    return uses, seen


def check_unchanged(name: str, inputs: Tensor, version: int) -> None:
    """Refuse inputs that the model overwrites after a module has used them, where autograd would refuse too.

    Raises:
        FlatlingoError: naming the module.
    """
    if inputs._version != version:
        raise FlatlingoError(
            f"the model changes the input of {name} in place after using it, so its gradient is lost (autograd says so "
            "too); write the operation without its underscore or inplace=True"
        )


def by_row(x: Tensor, size: int) -> Tensor:
    """Ids as (B, T), activations as (B, T, d), of a batch of B rows."""
    return x.reshape(size, -1, x.shape[-1]) if x.is_floating_point() else x.reshape(size, -1)
