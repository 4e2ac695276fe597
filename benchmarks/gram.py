"""Gram matrices over tokens in blocks of 16, 32 and 64 tokens, and whole: which block is fastest on this make of CPU.

    python benchmarks/gram.py [--rounds 4]

Tr(F) multiplies half of each Gram matrix, block by block (`fisher.roles.BLOCK`): small blocks save more, large ones
multiply faster. One thread; of each form the least CPU time, forms taking turns.
"""

import argparse
import time
from pathlib import Path

import torch
from common import CPU, RESULTS, environment, heading, markdown, read_report, replaced, write_report

from flatlingo.fisher import roles

SHAPES = [(16, 64, 384), (16, 64, 1536), (16, 128, 384), (16, 128, 1536), (4, 128, 768), (4, 128, 3072), (32, 40, 384)]
BLOCKS = {"16": 16, "32": 32, "64": 64, "whole": 10**9}


def milliseconds(x: torch.Tensor, block: int, times: int) -> float:
    """The least that the folded Gram matrix took."""
    before, roles.BLOCK = roles.BLOCK, block
    try:
        found = []
        for _ in range(times):
            start = time.process_time_ns()
            roles._gram(x)
            found.append(time.process_time_ns() - start)
        return min(found) / 1e6
    finally:
        roles.BLOCK = before


@torch.no_grad()
def measured(shape: tuple[int, int, int], rounds: int) -> dict:
    """A row of the table: times relative to blocks of 32."""
    x, found = torch.randn(shape), {name: [] for name in BLOCKS}
    for _ in range(rounds):
        for name, block in BLOCKS.items():
            found[name].append(milliseconds(x, block, 12))
    base = min(found["32"])
    row = {"cpu": CPU, **dict(zip(("examples", "tokens", "size"), shape, strict=True)), "ms": base}
    return row | {name: min(values) / base for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "gram", help="path without ending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = read_report(options.output.with_suffix(".json"), environment())
    found = [measured(shape, options.rounds) for shape in SHAPES]
    report["rows"] = replaced(report["rows"], found, ("examples", "tokens", "size"))
    columns = {"cpu": "", "examples": "", "tokens": "", "size": "", "ms": ".2f", **dict.fromkeys(BLOCKS, ".2f")}
    note = (
        "Milliseconds in blocks of 32 tokens, as Tr(F) takes them on CPU, and what other blocks take relative to it.\n"
    )
    write_report(
        options.output, report, [heading("Gram matrices in blocks", report), note, markdown(report["rows"], columns)]
    )


if __name__ == "__main__":
    main()
