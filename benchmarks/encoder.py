"""A training step of a real encoder on real rows on CPU, setting by setting; and what predictions and Tr(F) take.

    python benchmarks/encoder.py --model FOLDER --data FOLDER [--batches 4] [--rounds 2]

FOLDER holds rows in XTREME's layout (xnli/train-en.tsv, xnli/dev-en.tsv); the encoder is that of preset small. Batches
are some of an epoch of 50, from the shortest to the longest. Two processes of one thread, one of which keeps freed
memory (`devices.keep_memory`), take turns batch by batch; times are CPU seconds, of each batch the least over rounds,
and summed. A step is the gradient (with dropout), its norm clipped, and AdamW.

`--compile` adds torch.compile, which does not pay here: on an AMD EPYC, one shape of 16 x 41 tokens took 32 s to
compile and then 1.15 times as long as without; with shapes left open, compiling was broken off after 80 s.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from common import (
    CPU,
    RESULTS,
    environment,
    heading,
    markdown,
    read_report,
    replaced,
    status_mib,
    without_bf16,
    write_report,
)
from transformers.utils import logging

from flatlingo import devices, models
from flatlingo.devices import cpu_has_bf16
from flatlingo.encoding import EncodedRows, LengthGroupedSampler, PairCollator, indexed_batches, padding_id
from flatlingo.evaluation import evaluating, trace_of_rows
from flatlingo.study.presets import load_preset
from flatlingo.tasks import load_task

BATCH, EPOCH, MAX_LENGTH, VALIDATION = 16, 50, 128, 512


class Setting(NamedTuple):
    """How the gradient of a batch is computed."""

    precision: str
    grouped: bool
    attention: str
    compiled: bool = False

    def __str__(self) -> str:
        words = [self.precision, "grouped by length" if self.grouped else "random order"]
        words.append({"sdpa": "fused attention", "eager": "attention of products"}[self.attention])
        return ", ".join([*words, *(["compiled"] if self.compiled else [])])


GRADIENTS = [
    Setting("float32", False, "sdpa"),
    Setting("float32", True, "sdpa"),
    Setting("float32", True, "eager"),
    Setting("bf16", False, "sdpa"),
    Setting("bf16", True, "sdpa"),
    Setting("bf16", True, "eager"),  # preset small
    Setting("bf16", True, "eager", compiled=True),
]
OPTIMIZERS = {
    "AdamW, one tensor after the other": {"foreach": False},
    "AdamW, all tensors at once (foreach)": {"foreach": True},
    "AdamW, fused": {"fused": True},  # the Trainer's
}
PREDICTED = (16, 64)
TRACED = ((16, "sdpa"), (32, "sdpa"), (32, "eager"))
FEWEST_ROWS = 4 * max(*PREDICTED, *(size for size, _ in TRACED))  # fewer make no batches to be sorted into


class Bench:
    """Encoder, rows and optimisers in one process; each method does a piece of work once."""

    def __init__(self, options: argparse.Namespace):
        task = load_task(
            "xnli", data=options.data, languages=("en",), train_size=EPOCH * BATCH, validation_size=VALIDATION, seed=1
        )
        self.tokenizer = models.load_tokenizer(options.model)
        self.model = models.load_model(options.model, task.labels, seed=1)
        self.validation = task.rows("en", "validation").select(range(options.rows))
        rows = EncodedRows(task.rows("en", "train"), self.tokenizer, max_length=MAX_LENGTH)
        self.collate = PairCollator(self.tokenizer, padding_id(self.model, self.tokenizer))
        grouped = list(LengthGroupedSampler(rows, BATCH, seed=1))
        self.batches = {
            order: self._some([rows[i] for i in places], options.batches)
            for order, places in {False: range(len(rows)), True: grouped}.items()  # rows come in random order
        }
        self.items = EncodedRows(self.validation, self.tokenizer, max_length=MAX_LENGTH).clean
        self.compiled: Callable | None = None
        self.chosen: torch.optim.Optimizer | None = None

    def _some(self, items: list, n: int) -> list[dict]:
        batches = [self.collate(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
        batches.sort(key=lambda batch: batch["input_ids"].shape[1])
        return [batches[round((k + 0.5) * len(batches) / n - 0.5)] for k in range(n)]

    def gradient(self, setting: Setting, number: int) -> None:
        """The gradient of one batch, and its norm clipped."""
        if self.model.config._attn_implementation != setting.attention:
            self.model.set_attn_implementation(setting.attention)
        call = self.model.train()
        if setting.compiled:
            if self.compiled is None:
                self.compiled = torch.compile(self.model, dynamic=True)
            call = self.compiled
        self.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "bf16"):
            loss = call(**self.batches[setting.grouped][number]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def choose(self, name: str) -> None:
        """Make an optimiser and its moments; the weights stay as they are."""
        self.chosen = None  # before, since moments are twice as large as the model
        self.chosen = torch.optim.AdamW(self.model.parameters(), lr=0.0, **OPTIMIZERS[name])
        self.chosen.step()

    def optimizer(self, name: str) -> None:
        """One step of the optimiser chosen, by the gradient that is there."""
        self.chosen.step()

    def predict(self, batch_size: int, ordered: bool, attention: str) -> None:
        """Logits of the validation rows in float32, as `evaluation.logits` computes them, or in the rows' own order."""
        self.model.set_attn_implementation(attention)
        items = self.items if ordered else [dict(item) for item in self.items]
        with evaluating(self.model):
            if ordered:
                batches = [batch for _, batch in indexed_batches(items, self.collate, batch_size=batch_size)]
            else:
                batches = [self.collate(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
            for batch in batches:
                self.model(**{column: values for column, values in batch.items() if column != "labels"})

    def trace(self, batch_size: int, attention: str) -> None:
        """Tr(F) of the validation rows."""
        self.model.set_attn_implementation(attention)
        rows = self.validation
        trace_of_rows(self.model.eval(), self.tokenizer, rows, max_length=MAX_LENGTH, batch_size=batch_size)

    def peak(self) -> float:
        """MiB that the process has held at most."""
        return status_mib("VmHWM")


def serve(connection, options: argparse.Namespace, keeps: bool) -> None:
    """Do what is asked for, piece by piece, in a process of its own; answer with its CPU seconds and result."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if keeps:
        devices.keep_memory()
    bench = Bench(options)
    connection.send((0.0, None))
    while (work := connection.recv()) is not None:
        name, arguments = work
        start = time.process_time()
        try:
            result = getattr(bench, name)(*arguments)
        except Exception as error:  # of a setting that does not work here, such as compiling without a compiler
            result = f"{type(error).__name__}: {error}"
        connection.send((time.process_time() - start, result))


class Pair:
    """The two processes, which take turns."""

    def __init__(self, options: argparse.Namespace):
        context = multiprocessing.get_context("spawn")
        self.ends = []
        for keeps in (False, True):
            here, there = context.Pipe()
            context.Process(target=serve, args=(there, options, keeps), daemon=True).start()
            there.close()  # so that its end is that of the process: one that dies is an EOFError, no endless wait
            self.ends.append(here)
            here.recv()

    def __call__(self, name: str, *arguments: object) -> list[tuple[float, object]]:
        """CPU seconds and result of a piece of work in each process, one after the other."""
        answers = []
        for end in self.ends:
            end.send((name, arguments))
            answers.append(end.recv())
        return answers

    def end(self) -> None:
        """Let both processes end."""
        for end in self.ends:
            end.send(None)

    def seconds(self, rounds: int, works: list[tuple]) -> list[list[float]]:
        """Of each piece of work the least seconds over rounds, (works, 2); all pieces take turns.

        Raises:
            RuntimeError: a piece failed, whose seconds would say nothing.
        """
        least = [[float("inf")] * 2 for _ in works]
        for _ in range(rounds):
            for work, found in zip(works, least, strict=True):
                for k, (seconds, reason) in enumerate(self(*work)):
                    if reason is not None:
                        raise RuntimeError(f"{' '.join(map(str, work))}: {reason}")
                    found[k] = min(found[k], seconds)
        return least


def steps(pair: Pair, options: argparse.Namespace) -> list[dict]:
    """Rows of the table of a step: milliseconds, without and with memory kept."""
    works, failed, first = [], {}, {}
    settings = [setting for setting in GRADIENTS if options.compile or not setting.compiled]
    settings = [setting for setting in settings if cpu_has_bf16() or setting.precision != "bf16"]
    for setting in settings:
        answers = [pair("gradient", setting, number) for number in range(options.batches)]  # warms up, and compiles
        first[setting] = sum(seconds for (seconds, _), _ in answers)
        if reasons := [reason for answer in answers for _, reason in answer if reason]:
            failed[setting] = reasons[0]
        else:
            works += [("gradient", setting, number) for number in range(options.batches)]
    least = pair.seconds(options.rounds, works)
    for name in OPTIMIZERS:
        pair("choose", name)
        works.append(("optimizer", name))
        least += pair.seconds(options.rounds + 2, works[-1:])

    def row(work: str, which: Callable[[tuple], bool]) -> dict:
        chosen = [found for piece, found in zip(works, least, strict=True) if which(piece)]
        plain, kept = (1e3 * sum(found[k] for found in chosen) / len(chosen) for k in range(2))
        return {"cpu": CPU, "work": work, "ms": plain, "ms, memory kept": kept, "kept / not": kept / plain}

    rows = []
    for setting in settings:
        if setting in failed:
            rows.append({"cpu": CPU, "work": str(setting), "note": failed[setting].splitlines()[0][:120]})
            continue
        found = row(str(setting), lambda piece, setting=setting: piece[1] == setting)
        if setting.compiled:
            seconds = first[setting] - options.batches * found["ms"] / 1e3
            found["note"] = f"{seconds:.0f} s to compile, once for each process"
        rows.append(found)
    rows += [row(name, lambda piece, name=name: piece[1] == name) for name in OPTIMIZERS]
    for found in rows:
        if "ms" in found and "AdamW" not in found["work"]:
            found["speed"] = rows[0]["ms"] / found["ms"]
    return rows


def throughput(pair: Pair, options: argparse.Namespace) -> list[dict]:
    """Rows a second of predictions and of Tr(F), without and with memory kept."""
    works = {}
    for attention in ("sdpa", "eager"):
        for size, ordered in ((64, False), *((size, True) for size in PREDICTED)):
            name = f"predictions, {attention}, {'sorted' if ordered else 'unsorted'}, batches of {size}"
            works[name] = ("predict", size, ordered, attention)
    works |= {f"Tr(F), {attention}, batches of {size}": ("trace", size, attention) for size, attention in TRACED}
    least = pair.seconds(max(1, options.rounds - 1), list(works.values()))
    return [
        {"cpu": CPU, "work": work, "rows/s": options.rows / plain, "rows/s, memory kept": options.rows / kept}
        for work, (plain, kept) in zip(works, least, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=load_preset("small").encoder.source, help="the encoder, or a folder of it")
    parser.add_argument("--data", type=Path, required=True, help="folder of rows in XTREME layout")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=FEWEST_ROWS, help="validation rows to predict and to trace")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.add_argument("--note", default="", help="what ran beside it, for the report")
    parser.add_argument("--output", type=Path, default=RESULTS / "encoder", help="path without ending")
    options = parser.parse_args()
    if not FEWEST_ROWS <= options.rows <= VALIDATION:
        parser.error(f"--rows must be {FEWEST_ROWS} (four of the largest batches) to {VALIDATION}")
    torch.set_num_threads(1)
    pair = Pair(options)
    report = read_report(options.output.with_suffix(".json"), environment(), lists=("steps", "throughput"))
    settings = {"batch": BATCH, "batches": options.batches, "rounds": options.rounds, "rows": options.rows}
    settings |= {"beside": options.note} if options.note else {}
    report.setdefault("settings", {})[CPU] = {key: str(value) for key, value in settings.items()}
    for name, measure in {"steps": steps, "throughput": throughput}.items():
        found = measure(pair, options)
        print(json.dumps(found, indent=1), flush=True)
        report[name] = replaced(report[name], found, ())
        save(report, options.output)
    print("peak MiB, memory given back and kept:", *(round(peak) for _, peak in pair("peak")))
    pair.end()


def save(report: dict, output: Path) -> None:
    """Write the report as JSON and as Markdown."""
    columns = {"work": "", "cpu": "", "ms": ".0f", "ms, memory kept": ".0f", "kept / not": ".2f", "speed": ".2f"}
    rates = {"work": "", "cpu": "", "rows/s": ".1f", "rows/s, memory kept": ".1f"}
    timed = {make: [row["work"] for row in report["steps"] if row["cpu"] == make] for make in report["environments"]}
    text = [
        heading("A training step of preset small's encoder", report),
        "Gradient and clipping of a batch of 16 XNLI rows, and the optimiser's step; the speed of the first row is 1. "
        "Preset small trains under bf16, grouped by length, with attention of products, AdamW fused, memory kept.\n",
        *without_bf16([make for make, works in timed.items() if not any(work.startswith("bf16") for work in works)]),
        markdown(report["steps"], columns | {"note": ""}),
        "\n## Rows a second in float32\n",
        markdown(report["throughput"], rates),
    ]
    write_report(output, report, text)


if __name__ == "__main__":
    main()
