"""Tr(F) side by side: flatlingo, the obvious ways, and other packages, on the same model and rows.

    make bench                                        (or, in the environment that it makes)
    python benchmarks/trace.py [--sizes tiny minilm mbert] [--tokens 64 128] [--rounds 5] [--methods …]

All methods of a setting run interleaved in one process of one thread, which keeps the memory that it has freed; the
report says what its columns hold. Memory is the peak of a process of its own, which gives back what it frees, over the
loaded model. It is measured first: a dash if that failed; a method that was killed there is not timed. A method that
fails is reported with its reason. Results are written after each setting. Kept are settings measured before on this
make of CPU with these versions and this code, if not measured again, and what other makes have measured.

* floor_full: a forward pass and C - 1 backward passes with parameter gradients, which no method that forms them beats;
* floor_act: the same without parameter gradients, a bound for any method that goes back through all of the network;
* opacus, nngeometry and curvlinops have no Tr(F) with C - 1 backward passes: opacus is given flatlingo's factor of the
  softmax covariance, nngeometry computes its own exact Fisher, and Hutchinson is *one* draw, which is no estimate yet
  (a relative error of 1 % needs thousands).
"""

import argparse
import copy
import gc
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
    product_rate,
    ratio,
    read_report,
    replaced,
    spread,
)
from trace_methods import CHANGING, DRAWS, FLOORS, METHODS, NO_RESULT, ONE_DRAW, SLOW, available, floor_of, loop
from trace_report import save, size_and_length

from flatlingo import devices
from flatlingo.devices import cpu_has_bf16
from flatlingo.fisher import fisher_trace

COMMITTED = RESULTS / "trace"
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


def own(model, name: str):
    """The model, or a copy for a method that changes it."""
    return copy.deepcopy(model) if name in CHANGING else model


def errors(size: str, methods: list[str]) -> dict[str, dict]:
    """Error of each method's mean trace on four short rows against the loop in float64, or why it fails."""
    model, batch = make_model(size), make_batch(size, 16, 4)
    exact = loop(copy.deepcopy(model).double(), batch)()
    found = {}
    for name in methods:
        try:
            once = METHODS[name](own(model, name), batch)
            values = [once() for _ in range(DRAWS if name in ONE_DRAW else 1)]
        except Exception as error:
            found[name] = {"failed": reason(error)}
            continue
        if name in NO_RESULT:
            found[name] = {}
        else:  # one draw is as far off as it happens to be; how far draws spread is the method's error
            found[name] = {"error": (statistics.stdev(values) if name in ONE_DRAW else abs(values[0] - exact)) / exact}
    return found


def memory(size: str, tokens: int, name: str) -> dict:
    """Peak of one method in this process, over a model that nothing has been computed with."""
    METHODS[name](make_model(size), make_batch(size, 8, 2))()  # what is allocated once
    gc.collect()
    model, batch = make_model(size), make_batch(size, tokens)
    return {"peak MiB": peak_memory(lambda: METHODS[name](model, batch)())}


def known_before(size: str, tokens: int, quality: dict[str, dict]) -> dict[str, dict]:
    """What each row says before it is timed: error and memory, or why the method cannot run."""
    found = {}
    for name, row in quality.items():
        if "failed" not in row:
            measured = in_own_process(__file__, "--memory", name, "--sizes", size, "--tokens", tokens)
            # a method that was killed would take this process with it; another failure is that of the measurement
            keys = {"killed": "failed", "failed": "memory failed"}
            row = row | {keys.get(key, key): value for key, value in measured.items()}
        found[name] = row
    return found


def setting(size: str, tokens: int, rounds: int, known: dict[str, dict]) -> list[dict]:
    """One row per method for a model size and a length; `known` is what `known_before` found."""
    model, batch = make_model(size), make_batch(size, tokens)
    working = {name: METHODS[name](own(model, name), batch) for name, row in known.items() if "failed" not in row}
    seconds = interleaved(working, rounds, slow=SLOW)
    rows = []
    for name, before in known.items():
        row = {"cpu": CPU, "size": size, "T": tokens, "B": len(batch["input_ids"]), "method": name, **before}
        if name in working:
            median = statistics.median(seconds[name])
            row |= {"seconds": median, "examples/s": row["B"] / median, "rounds": len(seconds[name])}
            for floor in FLOORS:
                row[f"time / {floor}"] = ratio(seconds, name, floor_of(name, floor))
            row["spread"] = spread(seconds, name, floor_of(name, "floor_full"))
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=available(), choices=available())
    parser.add_argument("--output", type=Path, default=COMMITTED, help="path without ending")
    parser.add_argument("--memory", help="(internal) peak memory of one method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.memory:
        print(json.dumps(memory(options.sizes[0], options.tokens[0], options.memory)))
        return
    where = environment(*PEERS)
    # of a setting measured again, and of another environment, all rows of this make go
    complete = set(options.methods) == set(available()) and "-" not in [where[peer] for peer in PEERS]
    if options.output.resolve() == COMMITTED.resolve() and not complete:
        parser.error("the committed report needs every method and every peer: make bench; else give --output")
    measure(options, read_report(options.output.with_suffix(".json"), where, lists=("rows", "lengths")))


def measure(options: argparse.Namespace, report: dict) -> None:
    """Measure all settings, and write the report after each."""
    methods = [name for name in available() if name in options.methods or name.startswith("floor")]
    quality = {size: errors(size, methods) for size in options.sizes}
    settings = [(size, tokens) for size in options.sizes for tokens in options.tokens]
    known = {(size, tokens): known_before(size, tokens, quality[size]) for size, tokens in settings}
    devices.keep_memory()  # as training does; from here on, for what this process keeps is not left for another
    report.setdefault("GFLOP/s", {})[CPU] = {
        str(dtype).removeprefix("torch."): product_rate(1024, dtype) / 1e9
        for dtype in (torch.float32, *([torch.bfloat16] if cpu_has_bf16() else []))
    }
    for size, tokens in settings:
        found = setting(size, tokens, options.rounds, known[size, tokens])
        report["rows"] = replaced(report["rows"], found, ("size", "T"), order=size_and_length)
        save(report, options.output)
    for size in options.sizes:
        if size != "mbert":
            found = lengths(size, max(1, options.rounds // 2))
            report["lengths"] = replaced(report["lengths"], found, ("size",), order=size_and_length)
            save(report, options.output)


if __name__ == "__main__":
    main()
