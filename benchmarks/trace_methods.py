"""Ways to Tr(F) that benchmarks/trace.py times: flatlingo's, the obvious ones, those of other packages, and two floors.

Each takes (model, batch) and returns a function that computes the mean trace once, or nothing for the floors. Those of
`CHANGING` change the model that they are given.
"""

import math
import statistics
from contextlib import nullcontext
from functools import partial

import torch
from common import LABELS
from torch import nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatlingo.devices import cpu_has_bf16
from flatlingo.fisher import fisher_trace, softmax_factor
from flatlingo.fisher.gradnorms import GradientNorms
from flatlingo.fisher.measuring import CHECKED

CALL = 64  # rows, at least: what a call sets up serves all of them
BUDGET = 2**31  # bytes of gradients that a peer may hold at a time


def batches_of_a_call(batch) -> int:
    return -(-CALL // len(batch["input_ids"]))


def directions_of(logits):
    """Weights and directions of the C - 1 backward passes."""
    weights, directions = softmax_factor(logits.detach())
    return list(zip(weights.unbind(1), directions.to(logits).unbind(1), strict=True))


def floor_full(model, batch):
    parameters = list(model.parameters())

    def run():
        logits = model(**batch).logits
        for _, direction in directions_of(logits):
            torch.autograd.grad(logits, parameters, direction, retain_graph=True, allow_unused=True)

    return run


def floor_act(model, batch):
    def run():
        outputs = []
        handle = model.bert.embeddings.word_embeddings.register_forward_hook(lambda m, a, o: outputs.append(o))
        logits = model(**batch).logits
        handle.remove()
        for _, direction in directions_of(logits):
            torch.autograd.grad(logits, outputs, direction, retain_graph=True)

    return run


def training_step(model, batch):
    def run():
        model.zero_grad()
        model(**batch, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()

    return run


def flatlingo(model, batch):
    times = batches_of_a_call(batch)

    def run():
        return fisher_trace(model, [batch] * times).value

    run.times = times
    return run


def flatlingo_passes(model, batch):
    few = {name: values[:CHECKED] for name, values in batch.items()}  # as `fisher_trace` looks at the model first
    with torch.no_grad():
        engine = GradientNorms(model, dict(model.named_parameters()), few, model(**few).logits)

    def once():
        weights, directions = softmax_factor(engine.forward(batch))
        total = torch.zeros_like(weights[:, 0])
        for k in range(weights.shape[1]):
            total += weights[:, k] * engine.backward(directions[:, k], last=k == LABELS - 2).sum(1)
        return float(total.mean())

    def run():
        with engine:  # entered once in a call, however many batches come
            return statistics.mean(once() for _ in range(run.times))

    run.times = batches_of_a_call(batch)
    return run


def in_bf16(method, attention=nullcontext):
    """A method under bf16 autocast, and with an attention of its own."""

    def prepare(model, batch):
        inner = method(model, batch)

        def run():
            with torch.autocast("cpu", torch.bfloat16), attention():
                return inner()

        run.times = getattr(inner, "times", 1)
        return run

    return prepare


def loop(model, batch):
    parameters = list(model.parameters())

    def run():
        total = 0.0
        for i in range(len(batch["input_ids"])):
            log_p = model(**{key: value[i : i + 1] for key, value in batch.items()}).logits[0].log_softmax(0)
            for log_p_c in log_p:
                found = torch.autograd.grad(log_p_c, parameters, retain_graph=True, allow_unused=True)
                squared = sum(g.square().sum() for g in found if g is not None)
                del found  # else it is held while the next is made
                total += float(log_p_c.detach().exp() * squared)
        return total / len(batch["input_ids"])

    return run


def rows_at_once(model, batch) -> int:
    """How many rows' gradients fit, once and once more for their squares; a power of two."""
    each = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    return min(len(batch["input_ids"]), 2 ** int(math.log2(max(1, BUDGET // each))))


def vmap_grad(model, batch):
    parameters = {name: p.detach() for name, p in model.named_parameters()}  # else autograd records all of it besides
    rows = {key: value for key, value in batch.items() if key != "attention_mask"}  # no padding; vmap refuses a 2-D one

    def log_p(parameters, row):
        inputs = {key: value[None] for key, value in row.items()}
        return functional_call(model, parameters, (), inputs).logits[0].log_softmax(0)

    def squared(row):
        found, pull = vjp(lambda parameters: log_p(parameters, row), parameters)
        total = 0.0
        for label in torch.eye(LABELS).to(found).unbind():
            (gradients,) = pull(label)
            total += (label * found.exp()).sum() * sum(g.square().sum() for g in gradients.values())
        return total

    return lambda: float(vmap(squared, chunk_size=rows_at_once(model, batch))(rows).mean())


def opacus_per_sample(model, batch):
    from opacus import GradSampleModule

    def squared(p):
        return p.grad_sample.flatten(1).square().sum(1)

    return _opacus(GradSampleModule, model, batch, squared, rows=rows_at_once(model, batch))


def opacus_ghost(model, batch):
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost

    wrap = partial(Ghost, max_grad_norm=1.0, use_ghost_clipping=True)
    return _opacus(wrap, model, batch, lambda p: p._norm_sample.square(), rows=len(batch["input_ids"]))


def _opacus(wrap, model, batch, squared, *, rows):
    """Opacus frees its activations in every backward pass, so each of the C - 1 has a forward pass of its own."""
    wrapped = wrap(model.train(), loss_reduction="sum")
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    size = len(batch["input_ids"])
    parts = [{key: value[i : i + rows] for key, value in batch.items()} for i in range(0, size, rows)]

    def run():
        total = 0.0
        for part in parts:
            for k in range(LABELS - 1):
                logits = wrapped(**part).logits
                weight, direction = directions_of(logits)[k]
                (logits * direction).sum().backward()
                norms = sum(squared(p) for p in wrapped.parameters() if p.requires_grad)
                total += float((weight * norms).sum())
                for p in wrapped.parameters():
                    p.grad = p.grad_sample = p._norm_sample = None
        return total / size

    return run


def nngeometry_exact(model, batch):
    from nngeometry.metrics import FIM
    from nngeometry.object import PMatDiag

    keys = list(batch)
    data = torch.utils.data.TensorDataset(*batch.values(), torch.zeros(len(batch["input_ids"]), dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, batch_size=4)

    def logits(*row):
        return model(**dict(zip(keys, row[: len(keys)], strict=True))).logits

    def run():
        return float(FIM(model, loader, PMatDiag, function=logits).trace())

    return run


def curvlinops_hutchinson(model, batch):
    from curvlinops import GGNLinearOperator, hutchinson_trace

    model.set_attn_implementation("eager")  # which can be differentiated in forward mode

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, rows):
            return self.inner(**rows).logits

    data = [(batch, torch.zeros(len(batch["input_ids"]), dtype=torch.long))]
    operator = GGNLinearOperator(
        Logits(),
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        data,
        check_deterministic=False,
        batch_size_fn=lambda rows: len(rows["input_ids"]),
    )
    return lambda: float(hutchinson_trace(operator, num_matvecs=1))


# The fused attention is slower under bf16 than products (results/encoder.md), which flatlingo computes: no floor.
floor_in_bf16 = partial(in_bf16, attention=partial(sdpa_kernel, SDPBackend.MATH))
METHODS = {
    "floor_full": floor_full,
    "floor_act": floor_act,
    "floor_full, bf16": floor_in_bf16(floor_full),
    "floor_act, bf16": floor_in_bf16(floor_act),
    "training step": training_step,
    "flatlingo": flatlingo,
    "flatlingo, passes alone": flatlingo_passes,
    "flatlingo, bf16": in_bf16(flatlingo),
    "loop over examples and labels": loop,
    "torch.func vmap(vjp)": vmap_grad,
    "opacus GradSampleModule": opacus_per_sample,
    "opacus ghost clipping": opacus_ghost,
    "nngeometry PMatDiag": nngeometry_exact,
    "curvlinops Hutchinson, 1 draw": curvlinops_hutchinson,
}
FLOORS = ("floor_full", "floor_act")
CHANGING = ("opacus GradSampleModule", "opacus ghost clipping", "curvlinops Hutchinson, 1 draw")
ONE_DRAW = ("curvlinops Hutchinson, 1 draw",)
DRAWS = 16  # whose spread is the error of one
SLOW = (
    "loop over examples and labels",
    "torch.func vmap(vjp)",
    "opacus GradSampleModule",
    "nngeometry PMatDiag",
    "curvlinops Hutchinson, 1 draw",
)


def floor_of(method: str, floor: str) -> str:
    """The floor in a method's precision."""
    return f"{floor}, bf16" if method.endswith("bf16") else floor


NO_RESULT = (*FLOORS, *(f"{floor}, bf16" for floor in FLOORS), "training step")


def available() -> list[str]:
    """The methods that this CPU can be asked for."""
    return [name for name in METHODS if cpu_has_bf16() or not name.endswith("bf16")]
