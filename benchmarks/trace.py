"""Tr(F) side by side: flatlingo, the obvious ways, and other packages, on the same model and rows.

    make bench                                        (or, in the environment that it makes)
    python benchmarks/trace.py [--sizes tiny minilm mbert] [--tokens 64 128] [--rounds 7] [--methods …]

All methods of a setting run interleaved in one process, on one thread, in float32 (one of flatlingo's under bf16
autocast too). Times are CPU seconds, ratios medians over rounds of the ratio within a round; methods marked slow run in
two rounds. flatlingo's are a fourth of a call of four batches, for what a call sets up serves all of them. Memory is
the peak of a process of its own over the loaded model, a dash if that failed. Errors are of the mean trace of four rows
of 16 tokens against a float64 loop over examples and labels. A method that fails is reported with its reason. "spread"
is the interquartile range of the ratio to floor_full over rounds, relative to its median. Results are written after
each setting; settings measured before on this machine with these versions, if not measured again, are kept.

* floor_full: a forward pass and C - 1 backward passes with parameter gradients, which no method that forms them beats;
* floor_act: the same without parameter gradients, a bound for any method that goes back through all of the network;
* opacus, nngeometry and curvlinops have no Tr(F) with C - 1 backward passes: opacus is given flatlingo's factor of the
  softmax covariance, nngeometry computes its own exact Fisher, and Hutchinson is *one* draw, which is no estimate yet
  (a relative error of 1 % needs thousands).
"""

import argparse
import copy
import json
import statistics
import warnings
from functools import partial

import matplotlib
import numpy as np
import torch
from common import (
    LABELS,
    RESULTS,
    SIZES,
    environment,
    heading,
    in_own_process,
    interleaved,
    make_batch,
    make_model,
    markdown,
    peak_memory,
    ratio,
    spread,
    write,
)
from torch import nn
from torch.func import functional_call, grad, vmap

from flatlingo.fisher import fisher_trace, softmax_factor
from flatlingo.fisher.gradnorms import GradientNorms

matplotlib.use("agg")
CALL = 4  # batches
PEERS = ("opacus", "nngeometry", "curvlinops-for-pytorch", "backpack-for-pytorch")
# Tokens of the English XNLI development pairs in mBERT's vocabulary: 97 quantiles, from the shortest to the longest.
# fmt: off
XNLI_LENGTHS = [
    13, 17, 18, 19, 20, 21, 22, 22, 23, 23, 24, 24, 25, 25, 26, 26, 27, 27, 28, 28, 28, 29, 29, 30, 30, 30, 31, 31,
    32, 32, 32, 33, 33, 34, 34, 35, 35, 35, 36, 36, 36, 37, 37, 37, 38, 38, 38, 39, 39, 40, 40, 40, 41, 41, 41, 42,
    42, 43, 43, 44, 44, 44, 45, 45, 46, 46, 46, 47, 47, 47, 48, 48, 49, 49, 49, 50, 50, 51, 51, 52, 52, 53, 54, 54,
    55, 55, 56, 57, 57, 59, 59, 60, 62, 63, 65, 68, 79,
]
# fmt: on


def directions_of(logits):
    """Weights and directions of the C - 1 backward passes."""
    weights, directions = softmax_factor(logits.detach())
    return list(zip(weights.unbind(1), directions.to(logits).unbind(1), strict=True))


# Each method takes (model, batch) and returns a function that computes the mean trace once, or nothing for the floors.


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
    with torch.no_grad():
        engine = GradientNorms(model, dict(model.named_parameters()), batch, model(**batch).logits)

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


def reason(error: Exception) -> str:
    """Why a method cannot be had, in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]


def errors(size: str, methods: list[str]) -> dict[str, dict]:
    """Error of each method's mean trace on four short rows against the loop in float64, or why it fails."""
    model, batch = make_model(size), make_batch(size, 16, 4)
    exact = loop(copy.deepcopy(model).double(), batch)()
    found = {}
    for name in methods:
        try:
            value = METHODS[name](model, batch)()
            found[name] = {} if name in NO_RESULT else {"error": abs(value / exact - 1)}
        except Exception as error:
            found[name] = {"failed": reason(error)}
    return found


def setting(size: str, tokens: int, methods: list[str], rounds: int, quality: dict[str, dict]) -> list[dict]:
    """One row a method for a model size and a length; `quality` is what `errors` found."""
    able = [name for name in methods if "failed" not in quality[name]]
    # first, for the memory that the methods take together is not left for another process
    memory = {name: in_own_process(__file__, "--memory", name, "--sizes", size, "--tokens", tokens) for name in able}
    model, batch = make_model(size), make_batch(size, tokens)
    working = {name: METHODS[name](model, batch) for name in able}
    seconds = interleaved(working, rounds, slow=SLOW)
    rows = []
    for name in methods:
        row = {"size": size, "T": tokens, "B": len(batch["input_ids"]), "method": name, **quality[name]}
        if name in working:
            row |= {"memory failed" if key == "failed" else key: value for key, value in memory[name].items()}
            median = statistics.median(seconds[name])
            row |= {"seconds": median, "examples/s": row["B"] / median, "rounds": len(seconds[name])}
            for floor in ("floor_full", "floor_act"):
                row[f"time / {floor}"] = ratio(seconds, name, floor)
            row["spread"] = spread(seconds, name, "floor_full")
        rows.append(row)
        print({key: value for key, value in row.items() if key not in ("size", "T", "B")}, flush=True)
    return rows


def lengths(size: str, rounds: int) -> list[dict]:
    """flatlingo on 388 rows as long as those of XNLI: padded to 128, in random order, sorted by length."""
    drawn = np.repeat(XNLI_LENGTHS, 4)
    model, rows = make_model(size), make_batch(size, 128, len(drawn))

    def batches(order, per_batch=16, budget=None, padded_to=None):
        parts = [[]]
        for row in order:
            rows_now = len(parts[-1])
            if rows_now and (rows_now == per_batch if budget is None else drawn[row] * (rows_now + 1) > budget):
                parts.append([])
            parts[-1].append(row)
        made = []
        for part in parts:
            longest = padded_to or int(drawn[part].max())
            mask = torch.arange(longest) < torch.tensor(drawn[part])[:, None]
            batch = {key: value[part, :longest] for key, value in rows.items()} | {"attention_mask": mask.long()}
            made.append(batch | {"input_ids": batch["input_ids"].where(mask, 0)})
        return made

    order = np.random.default_rng(0).permutation(len(drawn))
    by_length = np.argsort(drawn, kind="stable")
    ways = {
        "padded to 128": batches(order, padded_to=128),
        "random order": batches(order),
        "sorted, 16 rows": batches(by_length),
        "sorted, 64 rows": batches(by_length, per_batch=64),
        "sorted, 512 tokens": batches(by_length, budget=512),
        "sorted, 2048 tokens": batches(by_length, budget=2048),
    }
    seconds = interleaved({name: partial(fisher_trace, model, made) for name, made in ways.items()}, rounds)
    return [
        {
            "size": size,
            "batches": name,
            "real tokens": float(drawn.sum() / sum(batch["input_ids"].numel() for batch in made)),
            "examples/s": len(drawn) / statistics.median(seconds[name]),
            "speed-up": 1 / ratio(seconds, name, "padded to 128"),
        }
        for name, made in ways.items()
    ]


def plot(rows: list[dict], path) -> None:
    """Time relative to floor_full, one panel a setting."""
    import matplotlib.pyplot as plt

    settings = list(dict.fromkeys((row["size"], row["T"]) for row in rows))
    fig, axes = plt.subplots(1, len(settings), figsize=(2.2 * len(settings) + 2, 3.2), sharey=True, squeeze=False)
    names = [name for name in METHODS if any("seconds" in row and row["method"] == name for row in rows)][::-1]
    for ax, (size, tokens) in zip(axes[0], settings, strict=True):
        for row in rows:
            if (row["size"], row["T"]) == (size, tokens) and "seconds" in row:
                value, height = row["time / floor_full"], names.index(row["method"])
                ax.plot(value, height, "o", color="#0072B2" if row["method"].startswith("flatlingo") else "0.5")
                ax.annotate(f"{value:.2f}", (value, height), (5, 0), textcoords="offset points", va="center", size=8)
        ax.axvline(1, color="0.8", linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlim=(0.25, 60), title=f"{size}, T = {tokens}", xlabel="time / floor_full")
        ax.set_xticks([0.5, 1, 2, 5, 10, 20, 50], labels=["0.5", "1", "2", "5", "10", "20", "50"])
        ax.minorticks_off()
        ax.set_yticks(range(len(names)), labels=names)
        ax.set_ylim(-0.5, len(names) - 0.5)
    fig.tight_layout()
    fig.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "minilm", "mbert"], choices=SIZES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--output", default=RESULTS / "trace", help="path without ending")
    parser.add_argument("--memory", help="(internal) peak memory of one method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.memory:
        model, batch = make_model(options.sizes[0]), make_batch(options.sizes[0], options.tokens[0])
        METHODS[options.memory](model, make_batch(options.sizes[0], 8, 2))()  # what is allocated once
        model.zero_grad()
        print(json.dumps({"peak MiB": peak_memory(METHODS[options.memory](model, batch))}))
        return
    methods = list(dict.fromkeys(["floor_full", "floor_act", *options.methods]))
    path = RESULTS.joinpath(f"{options.output}.json")
    where = environment(*PEERS)
    report = json.loads(path.read_text()) if path.exists() else {}
    if report.get("environment") != where:
        report = {"environment": where, "rows": [], "lengths": []}
    report["GFLOP/s"] = {
        str(dtype).removeprefix("torch."): product_rate(dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    for size in options.sizes:
        quality = errors(size, methods)
        for tokens in options.tokens:
            found = setting(size, tokens, methods, options.rounds, quality)
            report["rows"] = replaced(report["rows"], found, ("size", "T"))
            save(report, options.output)
        if size != "mbert":
            found = lengths(size, max(1, options.rounds // 2))
            report["lengths"] = replaced(report["lengths"], found, ("size",))
            save(report, options.output)


def product_rate(dtype: torch.dtype, n: int = 1024) -> float:
    """GFLOP/s of a product of two n × n matrices, the most that is to be had in a precision."""
    x = torch.randn(n, n, dtype=dtype)
    seconds = interleaved({"product": lambda: x @ x}, 9)["product"]
    return 2 * n**3 / statistics.median(seconds) / 1e9


def replaced(rows: list[dict], found: list[dict], keys: tuple[str, ...]) -> list[dict]:
    """The rows with those of the same setting replaced, in the order of sizes and lengths."""
    settings = {tuple(row[key] for key in keys) for row in found}
    kept = [row for row in rows if tuple(row[key] for key in keys) not in settings]
    return sorted(kept + found, key=lambda row: (list(SIZES).index(row["size"]), row.get("T", 0)))


def save(report: dict, output: str) -> None:
    """Write the report as JSON, as Markdown and as a plot."""
    rows, by_length, where = report["rows"], report["lengths"], report["environment"]
    failed = {row["method"]: row["failed"] for row in rows if "failed" in row}
    failed |= {
        f"memory of {row['method']} ({row['size']}, T = {row['T']})": row["memory failed"]
        for row in rows
        if "memory failed" in row
    }
    columns = {"size": "", "T": "d", "B": "d", "method": "", "time / floor_full": ".2f", "time / floor_act": ".2f"}
    columns |= {"examples/s": ".3g", "peak MiB": ".0f", "error": ".0e", "spread": ".2f", "rounds": "d"}
    length_columns = {"size": "", "batches": "", "real tokens": ".2f", "examples/s": ".3g", "speed-up": ".2f"}
    rates = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in report["GFLOP/s"].items())
    parts = [heading("Tr(F), side by side", where), f"A product of two 1024 × 1024 matrices: {rates}.\n"]
    parts += [markdown([r for r in rows if "failed" not in r], columns)]
    if failed:
        parts += ["\n## What could not run\n", *(f"* {name}: {why}" for name, why in failed.items())]
    parts += ["\n## Rows as long as those of XNLI\n", markdown(by_length, length_columns), ""]
    write(RESULTS.joinpath(f"{output}.json"), json.dumps(report, indent=1) + "\n")
    write(RESULTS.joinpath(f"{output}.md"), "\n".join(parts))
    plot(rows, RESULTS.joinpath(f"{output}.png"))


if __name__ == "__main__":
    main()
