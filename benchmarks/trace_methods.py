"""Ways to Tr(F) that benchmarks/trace.py times: flatlingo's, the obvious ones, those of other packages, and two floors.

Each takes (model, batch) and returns a function that computes the mean trace once, or nothing for the floors.
"""

import copy
import statistics
from functools import partial

import torch
from common import LABELS
from torch import nn
from torch.func import functional_call, grad, vmap

from flatlingo.fisher import fisher_trace, softmax_factor
from flatlingo.fisher.gradnorms import GradientNorms
from flatlingo.fisher.trace import CHECKED

CALL = 4  # batches


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
            return statistics.mean(once() for _ in range(CALL))

    run.times = CALL
    return run


def flatlingo_bf16(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        inner = flatlingo(model, batch)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return inner()

    run.times = CALL
    return run


def flatlingo_call(model, batch):
    def run():
        return fisher_trace(model, [batch] * CALL).value

    run.times = CALL
    return run


def loop(model, batch):
    parameters = list(model.parameters())

    def run():
        total = 0.0
        for i in range(len(batch["input_ids"])):
            log_p = model(**{key: value[i : i + 1] for key, value in batch.items()}).logits[0].log_softmax(0)
            for log_p_c in log_p:
                found = torch.autograd.grad(log_p_c, parameters, retain_graph=True, allow_unused=True)
                squared = sum(g.square().sum() for g in found if g is not None)
                total += float(log_p_c.detach().exp() * squared)
        return total / len(batch["input_ids"])

    return run


def vmap_grad(model, batch):
    parameters = dict(model.named_parameters())
    rows = {key: value for key, value in batch.items() if key != "attention_mask"}
    tokens = batch["input_ids"].shape[1]
    mask = torch.zeros(1, 1, tokens, tokens, dtype=next(model.parameters()).dtype)  # transformers refuses a vmapped 2-D

    def log_p(parameters, row, label):
        inputs = {key: value[None] for key, value in row.items()} | {"attention_mask": mask}
        return functional_call(model, parameters, (), inputs).logits[0].log_softmax(0)[label]

    def squared(row):
        total = 0.0
        for label in range(LABELS):
            value, gradients = log_p(parameters, row, label), grad(log_p)(parameters, row, label)
            total = total + value.exp() * sum(g.square().sum() for g in gradients.values())
        return total

    chunk = 1 if sum(p.numel() for p in model.parameters()) > 1e8 else 4
    return lambda: float(vmap(squared, chunk_size=chunk)(rows).mean())


def opacus_per_sample(model, batch):
    from opacus import GradSampleModule

    return _opacus(GradSampleModule, model, batch, lambda p: p.grad_sample.flatten(1).square().sum(1), chunk=2)


def opacus_ghost(model, batch):
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost

    wrap = partial(Ghost, max_grad_norm=1.0, use_ghost_clipping=True)
    return _opacus(wrap, model, batch, lambda p: p._norm_sample.square(), chunk=None)


def _opacus(wrap, model, batch, squared, *, chunk):
    """Opacus frees its activations in every backward pass, so each of the C - 1 has a forward pass of its own."""
    wrapped = wrap(copy.deepcopy(model).train(), loss_reduction="sum")
    for module in wrapped.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    size = len(batch["input_ids"])
    parts = [slice(i, i + (chunk or size)) for i in range(0, size, chunk or size)]

    def run():
        total = 0.0
        for part in parts:
            rows = {key: value[part] for key, value in batch.items()}
            for k in range(LABELS - 1):
                logits = wrapped(**rows).logits
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

    model = make_eager(model)

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


def make_eager(model):
    """A copy whose attention can be differentiated in forward mode."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


METHODS = {
    "floor_full": floor_full,
    "floor_act": floor_act,
    "training step": training_step,
    "flatlingo": flatlingo,
    "flatlingo, whole call": flatlingo_call,
    "flatlingo, bf16 autocast": flatlingo_bf16,
    "loop over examples and labels": loop,
    "torch.func vmap(grad)": vmap_grad,
    "opacus GradSampleModule": opacus_per_sample,
    "opacus ghost clipping": opacus_ghost,
    "nngeometry PMatDiag": nngeometry_exact,
    "curvlinops Hutchinson, 1 draw": curvlinops_hutchinson,
}
NO_RESULT = ("floor_full", "floor_act", "training step")
SLOW = (
    "loop over examples and labels",
    "torch.func vmap(grad)",
    "opacus GradSampleModule",
    "nngeometry PMatDiag",
    "curvlinops Hutchinson, 1 draw",
)
