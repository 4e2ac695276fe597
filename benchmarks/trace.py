"""Tr(F) side by side: flatlingo, the obvious ways, and other packages, on the same model and rows.

    make bench                                        (or, in the environment that it makes)
    python benchmarks/trace.py [--sizes tiny minilm mbert] [--tokens 64 128] [--rounds 7] [--methods …]

All methods of a setting run interleaved in one process, on one thread, in float32 (one of flatlingo's under bf16
autocast too). Times are CPU seconds, ratios medians over rounds of the ratio within a round; methods marked slow run in
two rounds. flatlingo's are a fourth of a call of four batches, for what a call sets up serves all of them. Memory is
the peak of a process of its own over the loaded model, a dash if that failed. Errors are of the mean trace of four rows
of 16 tokens against a float64 loop over examples and labels. A method that fails is reported with its reason. "spread"
is the interquartile range of the ratio to floor_full over rounds, relative to its median. Results are written after
each setting. Kept are settings measured before on this make of CPU with these versions, if not measured again, and what
other makes have measured.

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
from pathlib import Path

import numpy as np
import torch
from common import (
    CPU,
    RESULTS,
    SIZES,
    environment,
    in_own_process,
    interleaved,
    make_batch,
    make_model,
    peak_memory,
    ratio,
    read_report,
    replaced,
    spread,
)
from trace_methods import METHODS, NO_RESULT, SLOW, loop
from trace_report import save, size_and_length

from flatlingo.fisher import fisher_trace

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
    """One row per method for a model size and a length; `quality` is what `errors` found."""
    able = [name for name in methods if "failed" not in quality[name]]
    # first, for the memory that the methods take together is not left for another process
    memory = {name: in_own_process(__file__, "--memory", name, "--sizes", size, "--tokens", tokens) for name in able}
    model, batch = make_model(size), make_batch(size, tokens)
    working = {name: METHODS[name](model, batch) for name in able}
    seconds = interleaved(working, rounds, slow=SLOW)
    rows = []
    for name in methods:
        row = {"cpu": CPU, "size": size, "T": tokens, "B": len(batch["input_ids"]), "method": name, **quality[name]}
        if name in working:
            row |= {"memory failed" if key == "failed" else key: value for key, value in memory[name].items()}
            median = statistics.median(seconds[name])
            row |= {"seconds": median, "examples/s": row["B"] / median, "rounds": len(seconds[name])}
            for floor in ("floor_full", "floor_act"):
                row[f"time / {floor}"] = ratio(seconds, name, floor)
            row["spread"] = spread(seconds, name, "floor_full")
        rows.append(row)
        print({key: value for key, value in row.items() if key not in ("cpu", "size", "T", "B")}, flush=True)
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
            "cpu": CPU,
            "size": size,
            "batches": name,
            "real tokens": float(drawn.sum() / sum(batch["input_ids"].numel() for batch in made)),
            "examples/s": len(drawn) / statistics.median(seconds[name]),
            "speed-up": 1 / ratio(seconds, name, "padded to 128"),
        }
        for name, made in ways.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "minilm", "mbert"], choices=SIZES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--output", type=Path, default=RESULTS / "trace", help="path without ending")
    parser.add_argument("--memory", help="(internal) peak memory of one method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.memory:
        model, batch = make_model(options.sizes[0]), make_batch(options.sizes[0], options.tokens[0])
        METHODS[options.memory](model, make_batch(options.sizes[0], 8, 2))()  # what is allocated once
        model.zero_grad()
        print(json.dumps({"peak MiB": peak_memory(lambda: METHODS[options.memory](model, batch)())}))
        return
    methods = list(dict.fromkeys(["floor_full", "floor_act", *options.methods]))
    report = read_report(options.output.with_suffix(".json"), environment(*PEERS), lists=("rows", "lengths"))
    report.setdefault("GFLOP/s", {})[CPU] = {
        str(dtype).removeprefix("torch."): product_rate(dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    for size in options.sizes:
        quality = errors(size, methods)
        for tokens in options.tokens:
            found = setting(size, tokens, methods, options.rounds, quality)
            report["rows"] = replaced(report["rows"], found, ("size", "T"), order=size_and_length)
            save(report, options.output)
        if size != "mbert":
            found = lengths(size, max(1, options.rounds // 2))
            report["lengths"] = replaced(report["lengths"], found, ("size",), order=size_and_length)
            save(report, options.output)


def product_rate(dtype: torch.dtype, n: int = 1024) -> float:
    """GFLOP/s of a product of two n × n matrices, the most that is to be had in a precision."""
    x = torch.randn(n, n, dtype=dtype)
    seconds = interleaved({"product": lambda: x @ x}, 9)["product"]
    return 2 * n**3 / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    main()
