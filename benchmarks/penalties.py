"""One training gradient with each penalty against a plain one: time, memory, error, spread over label draws.

    python benchmarks/penalties.py [--size minilm] [--tokens 64] [--batch 8] [--rounds 7]

Methods run interleaved in one process of one thread, which keeps the memory that it has freed; times are CPU seconds,
ratios are medians over rounds. Memory is the peak of a process of its own over the loaded model. Errors are of the
penalty's gradient in float32 against float64 with the same labels, on a model that has been trained for some steps on
random labels (at random weights curvature is too small to show errors), and once more under bf16 autocast, which finite
differences refuse. The spread over label draws is that of a batch, and of the mean over its halves, as with two steps
of gradient accumulation.
"""

import argparse
import copy
import json
import statistics
from contextlib import nullcontext
from pathlib import Path

import torch
from common import (
    CPU,
    RESULTS,
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
from torch.nn.functional import cosine_similarity, cross_entropy

from flatlingo import devices
from flatlingo.regularizers import FisherPenalty, TracePenalty

METHODS = {
    "plain": lambda: None,
    "Fisher penalty, exact": lambda: FisherPenalty(1.0),
    "Fisher penalty, finite difference": lambda: FisherPenalty(1.0, method="finite-difference"),
    "Fisher penalty, exact, every 10": lambda: FisherPenalty(1.0, every=10),
    "trace penalty": lambda: TracePenalty(1.0),
}
REFERENCES = ("Fisher penalty, exact", "trace penalty")  # differentiated in float64
MEASURED_ERRORS = ("Fisher penalty, exact", "Fisher penalty, finite difference", "trace penalty")


def training_gradient(model, batch, name):
    """A function that computes the gradient of task loss and penalty once; of "every 10" ten times, with it in one."""
    gradient, times = gradient_of(model, batch, METHODS[name]()), 10 if name.endswith("every 10") else 1

    def step():
        for _ in range(times):
            model.zero_grad()
            gradient()

    step.times = times
    return step


def penalty_gradient(model, batch, penalty, seed, *, parts=1, autocast=False):
    """Value and flat gradient of the penalty alone, the mean over equal parts of the batch."""
    penalty.start(model, seed=seed)
    rows = len(batch["labels"]) // parts
    total = 0.0
    for start in range(0, rows * parts, rows):
        part = {key: value[start : start + rows] for key, value in batch.items()}
        with penalty.forward_context(), torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            outputs = model(**part)
        total = total + penalty(model, part, outputs)[0] / parts
    parameters = list(model.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    return float(total.detach()), torch.cat([g.flatten() for g in flat]).double()


def trained(model, batch, steps):
    """The model after some steps of AdamW on one batch, with smoothed labels: a model that is sure draws one label."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(**batch).logits, batch["labels"], label_smoothing=0.2).backward()
        optimiser.step()
    return model


def errors(model, batch, name, reference):
    """Relative error and cosine of the gradient against the reference, in float32 and under bf16 autocast."""
    found = {}
    for precision in ("float32",) if "finite" in name else ("float32", "bf16"):
        gradient = penalty_gradient(model, batch, METHODS[name](), 0, autocast=precision == "bf16")[1]
        cosine = cosine_similarity(gradient, reference, dim=0)
        found[f"error, {precision}"] = float((gradient - reference).norm() / reference.norm())
        found[f"1 - cosine, {precision}"] = float(1 - cosine)
    return found


def spread(model, batch, name, draws, parts):
    """Relative standard deviation over label draws: of the term, and of its gradient (norm of the deviation)."""
    terms, gradients = zip(
        *(penalty_gradient(model, batch, METHODS[name](), seed, parts=parts) for seed in range(draws)), strict=True
    )
    mean = sum(gradients) / draws
    deviation = (sum((g - mean).square().sum() for g in gradients) / (draws - 1)).sqrt()
    return statistics.stdev(terms) / statistics.mean(terms), float(deviation / mean.norm())


def measured(options, model, batch) -> list[dict]:
    """One row per method, the plain gradient first."""
    steps = {name: training_gradient(model, batch, name) for name in METHODS}
    seconds = interleaved(steps, options.rounds)
    model = trained(model.eval(), batch, options.steps)
    exact = copy.deepcopy(model).double()
    references = {name: penalty_gradient(exact, batch, METHODS[name](), 0)[1] for name in REFERENCES}
    rows = []
    for name in METHODS:
        time = {"seconds": statistics.median(seconds[name]), "time": ratio(seconds, name, "plain")}
        arguments = ("--size", options.size, "--tokens", options.tokens, "--batch", options.batch, "--memory", name)
        row = {"cpu": CPU, "method": name, **time, **in_own_process(__file__, *arguments)}
        if name in MEASURED_ERRORS:
            reference = "trace penalty" if name == "trace penalty" else "Fisher penalty, exact"
            row |= errors(model, batch, name, references[reference])
        if name in REFERENCES:
            for parts, label in ((1, ""), (2, ", accumulated")):
                term, gradient = spread(model, batch, name, options.draws, parts)
                row |= {f"spread{label}": term, f"spread of the gradient{label}": gradient}
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="minilm")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30, help="of training before errors and spread are measured")
    parser.add_argument("--draws", type=int, default=12, help="label draws for the spread")
    parser.add_argument("--output", type=Path, default=RESULTS / "penalties", help="path without ending")
    parser.add_argument("--memory", help="(internal) peak memory of one method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(options.size, dropout=0.1).train()
    batch = make_batch(options.size, options.tokens, options.batch)
    batch["labels"] = torch.arange(options.batch) % model.config.num_labels
    if options.memory:
        print(json.dumps({"peak MiB": peak_memory(lambda: training_gradient(model, batch, options.memory)())}))
        return
    devices.keep_memory()  # as training does
    save(updated(options, measured(options, model, batch)), options.output)


def save(report: dict, output: Path) -> None:
    """Write the report as JSON and as Markdown."""
    ratios = {"method": "", "cpu": "", "time": ".2f", "seconds": ".3g", "memory": ".2f", "peak MiB": ".0f"}
    quality = {
        "error, float32": ".1e",
        "1 - cosine, float32": ".1e",
        "error, bf16": ".1e",
        "1 - cosine, bf16": ".1e",
        "spread": ".2f",
        "spread, accumulated": ".2f",
        "spread of the gradient": ".2f",
        "spread of the gradient, accumulated": ".2f",
    }
    note = (
        "Time and memory are ratios to the plain training gradient of the same batch; of a penalty of every tenth step "
        "time is the mean of ten.\n"
    )
    columns = ratios | {name: form for name, form in quality.items() if any(name in row for row in report["rows"])}
    text = [heading("Penalties", report), note, markdown(report["rows"], columns)]
    write_report(output, report, text)


if __name__ == "__main__":
    main()
