"""Squared norms of per-example gradients, without forming a single weight gradient.

A forward pass keeps what each parameter's role asks for (`flatlingo.fisher.roles`), a backward pass through the
activations alone brings the cotangents, and the two are contracted as soon as they meet.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatlingo.fisher.lastlayer import first_token_only
from flatlingo.fisher.roles import EMBEDDING, WEIGHT, LastGram, Role, agree, roles_of


class GradientNorms:
    """Squared norms, per example and per parameter, of the gradient of a direction in logit space.

    A context manager: inside, the model's parameters are frozen and its modules hooked, so that a backward pass visits
    activations only, and under autocast the weights of linear layers are in its precision; all is undone on leaving,
    whatever happened.

    A parameter is *covered* if every use of it is a call of a module of a known kind: Linear, Conv1D, LayerNorm,
    RMSNorm or Embedding. The uses are counted in the autograd graph, so none goes unseen. If a parameter is not
    covered, examples are taken one at a time and its gradient is formed; a warning says so.

    Args:
        model: a module in eval mode; `model(**batch)` gives the logits or an output that has `.logits`.
        parameters: the parameters to measure, by name; each requires a gradient.
        batch: some batch, to see how the model uses its parameters.
        logits: the model's logits for that batch, to check that the shortened last layer gives the same.

    Attributes:
        single: whether a batch must hold one example only.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: Mapping[str, Tensor], logits: Tensor
    ):
        self.model = model
        self.parameters = dict(parameters)
        self._calls, self._formed = self._survey(batch)
        self.single = bool(self._formed)
        if self.single:
            warnings.warn(
                f"{listed(self._formed)}: used in a way that the fast route does not cover; "
                "examples are taken one at a time, which is exact but slower",
                stacklevel=4,
            )
        self._shorten = False
        if max(self._calls.values(), default=0) == 1 and not self.single:
            with first_token_only(model) as shortened, torch.no_grad():
                self._shorten = shortened and agree(logits_of(model, batch), logits)
        self._grams = LastGram()
        device = next(iter(self.parameters.values())).device
        self._anchor = torch.zeros((), device=device, requires_grad=True)  # where backward passes end
        self._forget()

    def __enter__(self) -> "GradientNorms":
        formed = {id(self.parameters[name]) for name in self._formed}
        frozen = [p for p in self.model.parameters() if p.requires_grad and id(p) not in formed]
        with ExitStack() as stack:
            for parameter in frozen:
                stack.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
            for weight in self._cast_by_autocast():
                stack.callback(setattr, weight, "data", weight.data)
                weight.data = weight.data.to(torch.get_autocast_dtype(weight.device.type))
            if self._shorten:
                stack.enter_context(first_token_only(self.model))
            for handle in self._hook(self._record):
                stack.callback(handle.remove)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()
        self._forget()

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of a batch, remembered for `backward`."""
        self._forget()
        self._size = batch_size(batch)
        with torch.enable_grad(), self._attention():
            self._logits = logits_of(self.model, batch)
        self._grams.forget()
        return self._logits.detach()

    def backward(self, direction: Tensor, *, last: bool = False) -> Tensor:
        """Squared norms of the gradients of direction · logits, one an example.

        Args:
            direction: (B, C), a direction in logit space for each example.
            last: whether to free the forward pass.

        Returns:
            (B, number of parameters) in float64, in the order of `parameters`.
        """
        self._norms, self._waiting = {}, defaultdict(list)
        with _plain(self._logits.device):
            gradients = self._backpropagate(direction.to(self._logits), retain_graph=not last)
            for name, gradient in zip(self._formed, gradients, strict=True):
                if gradient is not None:
                    self._norms[name] = gradient.double().square().sum().reshape(1)
            for (name, role), pairs in self._waiting.items():
                self._norms[name] = role.norm(pairs, self._grams)
        nothing = torch.zeros(self._size, device=self._logits.device)
        norms = torch.stack([self._norms.get(name, nothing) for name in self.parameters], dim=1).double()
        self._grams.forget()
        if last:
            self._forget()
        return norms

    def _backpropagate(self, direction: Tensor, retain_graph: bool) -> list[Tensor | None]:
        """Run the backward pass (hooks take the cotangents); gradients of the parameters that are not covered."""
        if not self._logits.requires_grad:
            return [None] * len(self._formed)
        sources = [self._anchor, *(self.parameters[name] for name in self._formed)]
        gradients = torch.autograd.grad(self._logits, sources, direction, retain_graph=retain_graph, allow_unused=True)
        return gradients[1:]

    def _cast_by_autocast(self) -> list[nn.Parameter]:
        """Weights of linear layers: autocast keeps no copy of frozen ones and would cast them in every pass."""
        if not torch.is_autocast_enabled(self._anchor.device.type):
            return []
        roles = {name: role for _, uses in modules_using(self.model, self.parameters) for name, role in uses.items()}
        covered = {name: p for name, p in self.parameters.items() if name not in self._formed}  # each has one role
        return [p for name, p in covered.items() if roles.get(name) is WEIGHT and p.dtype == torch.float32]

    def _attention(self) -> AbstractContextManager:
        """Unfused attention in half precision on CPUs, where the way back through the fused one is ten times slower."""
        device, dtype = self._anchor.device.type, next(iter(self.parameters.values())).dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return _unfused_attention() if device == "cpu" and dtype.itemsize == 2 else nullcontext()

    def _forget(self) -> None:
        self._logits, self._norms, self._waiting = None, {}, {}
        self._grams.forget()

    def _hook(self, hook: Callable) -> list:
        """Register a forward hook on each module that holds a measured parameter in a known role."""
        return [
            module.register_forward_hook(partial(hook, uses), with_kwargs=True)
            for module, uses in modules_using(self.model, self.parameters)
        ]

    def _survey(self, batch: Mapping[str, Tensor]) -> tuple[Counter, list[str]]:
        """How often modules of known kinds use each parameter, and the parameters that are used otherwise too."""
        calls, roles, uncovered = Counter(), defaultdict(set), set()
        twice = {key: torch.cat([value[:1], value[:1]]) for key, value in batch.items()}

        def count(uses, module, args, kwargs, output):
            inputs = first_argument(args, kwargs)
            for name, role in uses.items():
                calls[name] += 1
                roles[name].add(role)
                one_row_an_example = len(inputs) == 2 or (role is EMBEDDING and len(inputs) == 1)
                if not one_row_an_example or not role.fits(module, inputs, output):
                    uncovered.add(name)

        with ExitStack() as stack, torch.enable_grad():
            for handle in self._hook(count):
                stack.callback(handle.remove)
            in_graph = uses_in_graph(logits_of(self.model, twice))
        for name, parameter in self.parameters.items():
            if in_graph[id(parameter)] != calls[name] or len(roles[name]) > 1:
                uncovered.add(name)
            if not in_graph[id(parameter)]:  # the logits do not depend on it: its norm is 0
                uncovered.discard(name)
        return calls, [name for name in self.parameters if name in uncovered]

    def _record(self, uses: dict, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        """Forward hook: keep what the norms need and wait for the output's cotangent."""
        inputs = first_argument(args, kwargs)
        if len(inputs) == 1 < self._size:  # position ids (1, T), whose gradient would come summed over the batch
            inputs, output = (x.expand(self._size, *x.shape[1:]).contiguous() for x in (inputs, output))
        with _plain(output.device):
            rows = by_row(inputs.detach(), self._size)
            kept = [
                (name, role, role.keep(module, rows, output, self._grams, self._calls[name] > 1))
                for name, role in uses.items()
                if name not in self._formed
            ]
        if not output.requires_grad:
            output = _Start.apply(output, self._anchor)
        output.register_hook(partial(self._receive, kept))
        return output

    def _receive(self, kept: list, cotangent: Tensor) -> None:
        """Tensor hook: the cotangent of a module's output has arrived."""
        cotangent = by_row(cotangent, self._size)
        for name, role, value in kept:
            if self._calls[name] == 1:
                self._norms[name] = role.norm([(value, cotangent)], self._grams)
            else:
                self._waiting[name, role].append((value, cotangent))


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Attention from matrix products in half precision; PyTorch would copy their inputs to float32."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # not of CUDA alone, whatever it is called
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


class _Start(torch.autograd.Function):
    """Lets gradients flow from a tensor on, in place; they end here, for the anchor gets none worth computing."""

    @staticmethod
    def forward(ctx, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        ctx.save_for_backward(anchor)
        return output

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros_like(*ctx.saved_tensors)


def modules_using(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> Iterator[tuple[nn.Module, dict[str, Role]]]:
    """Each module that holds some of the parameters in a known role, and their roles by name."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    for module in model.modules():
        roles = {getattr(module, attribute): role for attribute, role in roles_of(module).items()}
        uses = {names[id(parameter)]: role for parameter, role in roles.items() if id(parameter) in names}
        if uses:
            yield module, uses


def uses_in_graph(logits: Tensor) -> Counter:
    """How often the logits' autograd graph uses each leaf, by id; looks through casts, which autocast shares."""
    parents, leaves = Counter(), []
    seen, stack = set(), [logits.grad_fn] if logits.grad_fn else []
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
    return uses


@contextmanager
def _plain(device: torch.device) -> Iterator[None]:
    """No gradients and no autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def first_argument(args: tuple, kwargs: dict) -> Tensor:
    """What a module is called with."""
    return args[0] if args else next(iter(kwargs.values()))


def by_row(x: Tensor, size: int) -> Tensor:
    """Ids as (B, T), activations as (B, T, d), of a batch of B rows."""
    return x.reshape(size, -1, x.shape[-1]) if x.is_floating_point() else x.reshape(size, -1)


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """Number of examples in a batch."""
    return len(next(iter(batch.values())))


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The logits of a batch, (B, C)."""
    output = model(**batch)
    return getattr(output, "logits", output)


def listed(names: list[str], limit: int = 4) -> str:
    """The names in a sentence, or the first few of them."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
