"""One training step with each method against plain fine-tuning: time, memory, and the passes that a method needs.

    python benchmarks/steps.py [--size minilm] [--tokens 64] [--batch 16] [--rounds 4]

A step is the gradient of the whole loss in train mode with dropout, its norm clipped, and a step of AdamW, as the
Trainer has them. Methods run interleaved in one process of one thread, which keeps the memory that it has freed; times
are CPU seconds, ratios are medians over rounds. Memory is the peak of a process of its own over the loaded model.
Passes are counted: a forward pass 1, a backward pass 2 (1 towards the embeddings alone), differentiating a gradient
twice what computing it took; divided by the 3 of a plain step. That is no bound: parts of a step that are no pass count
for nothing. Views are as long as the rows.

"consistency, as published" and "Fisher penalty, as published" are the steps of run_mv_classify.py (Wang et al. 2021)
and hf-sharpness (Cooper Stickland 2022), written anew from their description: two passes with one loss; and a double
backward under eager attention over the labels that `Categorical` draws.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from common import (
    CPU,
    RESULTS,
    SIZES,
    gradient_of,
    heading,
    in_own_process,
    interleaved,
    make_batch,
    make_model,
    markdown,
    peak_memory,
    ratio,
    updated,
    write_report,
)
from transformers import BertTokenizer, TrainerState

from flatlingo import devices, regularizers
from flatlingo.averaging import WeightAverage
from flatlingo.regularizers import (
    SAM,
    BothViews,
    CodeSwitching,
    FisherPenalty,
    RDrop,
    SubwordConsistency,
    TracePenalty,
    TraceTarget,
    XTune,
)
from flatlingo.study.families import FAMILIES, family

TOKENIZER = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
PLAIN = family("none").title
STEPS = ("sam", "average")  # settings of `finetune` that change a step; of those left out, a step is a plain one
SAMPLED, EXACT = "fisher_penalty", "trace_penalty"
MEASURED = [row.name for row in FAMILIES.values() if row.changes in ("nothing", "term") or row.how in STEPS]
MADE = {  # of what cannot be made of nothing
    "none": lambda: None,
    "both_views": lambda: BothViews(TOKENIZER),
    "consistency": lambda: SubwordConsistency(TOKENIZER),
    "consistency_faithful": lambda: SubwordConsistency(TOKENIZER, mode="faithful"),
    "xtune": lambda: XTune(CodeSwitching(TOKENIZER, {"a": "b"})),
    "trace_target": lambda: TraceTarget(100.0),
    "l2": lambda: regularizers.L2(0.01),
    "l2_sp": lambda: regularizers.L2SP(0.01),
    "sam": SAM,
    "asam": lambda: SAM(0.5, adaptive=True),
    "weight_averaging": lambda: WeightAverage(1.0),
}
VARIANTS = {  # other ways to the same: of which family, what it is made of
    "one pass": {
        "consistency": lambda: SubwordConsistency(TOKENIZER, shared_pass=True),
        "r_drop": lambda: RDrop(shared_pass=True),
    },
    "head": {SAMPLED: lambda: FisherPenalty(parameters="head"), EXACT: lambda: TracePenalty(parameters="head")},
    "last layer": {
        SAMPLED: lambda: FisherPenalty(parameters="last_layer"),
        EXACT: lambda: TracePenalty(parameters="last_layer"),
    },
    "finite difference": {SAMPLED: lambda: FisherPenalty(method="finite-difference")},
    "as published": {"consistency": lambda: published_consistency, SAMPLED: lambda: published_fisher},
}


class Method(NamedTuple):
    """What a step is made of, what it takes in forward passes, and its family ("" for a variant)."""

    make: Callable[[], object]
    passes: float
    family: str


def methods(layers: int) -> dict[str, Method]:
    """Every family with its variants, by title; some need fewer passes, of an encoder of so many layers."""
    found = {}
    for name in MEASURED:
        row = family(name)
        found[row.title] = Method(MADE.get(name) or getattr(regularizers, row.how), row.passes, name)
        penalty = row.passes - family("none").passes
        saved = {"finite difference": 1, "head": penalty, "last layer": penalty * (1 - 1 / layers)}
        for variant, makers in VARIANTS.items():
            if name in makers:
                found[f"{row.title}, {variant}"] = Method(makers[name], row.passes - saved.get(variant, 0), "")
    return found


def published_consistency(model, clean, view):
    """Loss of the authors' training loop, with λ = 0.6 and τ = 1."""
    first, second = model(**clean), model(**view, labels=clean["labels"])
    p, log_q = first.logits.softmax(1), second.logits.log_softmax(1)
    divergence = torch.nn.KLDivLoss(reduction="batchmean")(log_q, p)
    return 0.5 * first.loss + 0.5 * second.loss + 0.6 * divergence


def published_fisher(model, clean, view):
    """Loss of hf-sharpness with its default weight."""
    outputs = model(**clean)
    labels = torch.distributions.Categorical(logits=outputs.logits).sample().detach()
    parameters = [w for w in model.parameters() if w.requires_grad]
    gradients = torch.autograd.grad(F.cross_entropy(outputs.logits, labels), parameters, create_graph=True)
    return outputs.loss + 0.001 * sum(g.square().sum() for g in gradients) / len(labels)


def gradient(model, clean, view, method):
    """A function that adds the gradient of the whole loss to the parameters'."""
    if method in (published_consistency, published_fisher):
        return lambda: method(model, clean, view).backward()
    return gradient_of(model, clean, None if isinstance(method, SAM | WeightAverage) else method, view)


@cache
def trained(size, attention):
    """A model in train mode and its optimiser, which the methods share."""
    model = make_model(size, dropout=0.1, attention=attention).train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


EVERY_STEP = TrainerState(max_steps=1, global_step=1)  # what says that a step's weights count


def step_of(model, optimiser, clean, view, method):
    """A function that trains one step."""
    add_gradient = gradient(model, clean, view, method)

    def step():
        optimiser.zero_grad()
        add_gradient()
        if isinstance(method, SAM):
            with method.ascended(model.parameters()):
                optimiser.zero_grad()
                add_gradient()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if isinstance(method, WeightAverage):
            method.on_step_end(None, EVERY_STEP, None, model=model)

    return step


def shared(options, name):
    """The model in train mode and the optimiser that a method shares with others."""
    return trained(options.size, "eager" if name == "Fisher penalty, as published" else "sdpa")


def prepared(options, name):
    """The step of a method."""
    model, optimiser = shared(options, name)
    clean, view = (make_batch(options.size, options.tokens, options.batch, seed=seed) for seed in (0, 1))
    clean["labels"] = torch.arange(options.batch) % model.config.num_labels
    return step_of(model, optimiser, clean, view, methods(SIZES[options.size][0])[name].make())


def memory(options, name) -> float:
    """Peak of two steps in MiB, and of what a method keeps, without the optimiser's moments, which are every method's.

    It counts from the loaded model on, without gradients.
    """
    model, _ = shared(options, name)

    def two_steps():
        step = prepared(options, name)  # here, since some remember the weights that they start from
        step()
        step()

    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) / 2**20
    return peak_memory(two_steps) - moments


def measured(options) -> list[dict]:
    """One row per method, the plain step first."""
    found = methods(SIZES[options.size][0])
    seconds = interleaved({name: prepared(options, name) for name in found}, options.rounds)
    rows = []
    for name, method in found.items():
        row = {"cpu": CPU, "method": name, "family": method.family, "seconds": statistics.median(seconds[name])}
        row |= {"time": ratio(seconds, name, PLAIN), "passes": method.passes / found[PLAIN].passes}
        row["time / passes"] = row["time"] / row["passes"]
        arguments = ("--size", options.size, "--tokens", options.tokens, "--batch", options.batch, "--memory", name)
        rows.append(row | in_own_process(__file__, *arguments))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="minilm")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "steps", help="path without ending")
    parser.add_argument("--memory", help="(internal) peak memory of one method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps({"peak MiB": memory(options, options.memory)}))
        return
    devices.keep_memory()  # as training does
    save(updated(options, measured(options)), options.output)


def save(report: dict, output: Path) -> None:
    """Write the report as JSON and as Markdown."""
    columns = {"method": "", "cpu": "", "time": ".2f", "passes": ".2f", "time / passes": ".2f"}
    columns |= {"seconds": ".3g", "memory": ".2f", "peak MiB": ".0f"}
    note = (
        "Time and memory are ratios to a plain training step on the same batch, and so are the passes that a method "
        "needs. Memory is the peak of two steps over the loaded model, gradients with it, without the optimiser's "
        "moments. Weight decay, label smoothing, dropout and early stopping are plain steps.\n"
    )
    write_report(output, report, [heading("Training steps", report), note, markdown(report["rows"], columns)])


if __name__ == "__main__":
    main()
