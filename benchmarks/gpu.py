"""What there is to know of a GPU before a study is given to it, in one command of at most nine minutes; JSON out.

    python benchmarks/gpu.py [--output FILE] [--minutes 9] [--smoke]

A model of mBERT's shape with random weights, 32 rows per batch, all rows as long as T, trained by `training.finetune`.
The report is benchmarks/results/gpu.json. Without a GPU, or with --smoke, everything is small, so that the benchmark
itself can be tried anywhere, and the report is build/gpu-smoke.json. It is written after every part; a part that fails
says why, and one that no time is left for is left out.
"""

import argparse
import contextlib
import gc
import itertools
import json
import statistics
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import yaml
from common import RESULTS, SIZES, environment, make_model, product_rate, write
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from transformers.utils import logging

from flatlingo import devices, models
from flatlingo.checkpoints import Checkpoints
from flatlingo.encoding import batches
from flatlingo.evaluation import accuracy, evaluating, trace_of_rows
from flatlingo.fisher import fisher_trace
from flatlingo.regularizers import L2, FisherPenalty, SubwordConsistency, TracePenalty
from flatlingo.study.families import family
from flatlingo.study.launchers import Job, local
from flatlingo.study.presets import load_preset
from flatlingo.study.sources import Sources
from flatlingo.study.store import Store
from flatlingo.tasks import load_task
from flatlingo.training import finetune

TOKENIZER = models.load_tokenizer("mini-mbert")
TF32 = ("highest", "high")  # without and with


@dataclass(frozen=True)
class Scale:
    """How large everything is; rows of the reference are traced on the CPU in float64, the matrix is square."""

    model: str
    lengths: tuple[int, ...]
    batch_size: int
    steps: int
    reference_rows: int
    evaluated_rows: int
    matrix: int
    jobs: tuple[int, ...]


FULL = Scale("mbert", (64, 128), 32, 12, 8, 512, 8192, (1, 2, 4, 8))
SMOKE = Scale("mini", (16,), 4, 4, 2, 8, 256, (1,))


@dataclass
class Bench:
    """What all parts share: where, how large, and until when."""

    scale: Scale
    until: float
    rates: dict[str, float] = field(default_factory=dict)  # FLOP/s of a matrix product, by precision

    @property
    def device(self) -> torch.device:
        return devices.device()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """What is trained in: bf16 where the device has it."""
        return "bf16" if devices.has_bf16() else "float32"

    def model(self, seed: int = 0):
        return make_model(self.scale.model, dropout=0.1, seed=seed).to(self.device)

    def train(self, model, rows: Dataset, tokens: int, **settings) -> None:
        options = {"seed": 1, "epochs": 1, "batch_size": self.scale.batch_size, "learning_rate": 1e-5}
        options |= {"max_length": tokens, "precision": self.precision}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the rows are cut to T on purpose
            finetune(model, TOKENIZER, rows, **options | settings)

    def in_time(self) -> bool:
        return time.monotonic() < self.until

    def clear(self) -> None:
        """Give back what nothing refers to any more: a trainer and its model refer to each other."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def finish(self) -> None:
        """Wait for the GPU, which works on while Python goes ahead."""
        if self.on_gpu:
            torch.cuda.synchronize()


def rows(n: int, tokens: int) -> Dataset:
    """Sentences of the mini world whose words are repeated until, once cut, every row has so many tokens."""
    source = load_task("mini-nli", train_size=64, validation_size=3, languages=("en",)).rows("en", "train")

    def long(text: str) -> str:
        return " ".join((text.split() * tokens)[:tokens])

    return Dataset.from_list(
        [
            {"row_id": i, "text_a": long(row["text_a"]), "text_b": long(row["text_b"]), "label": row["label"]}
            for i, row in zip(range(n), itertools.cycle(source), strict=False)
        ]
    )


def about(bench: Bench) -> dict:
    """The device, its driver and the precision of training and of matrix products."""
    found = environment("accelerate") | {"device": devices.device_name(), "cuda": torch.version.cuda}
    found |= {"precision of training": bench.precision, "matmul precision": torch.get_float32_matmul_precision()}
    if bench.on_gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {"GiB": properties.total_memory / 2**30, "capability": [properties.major, properties.minor]}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found


def matrix_rate(bench: Bench) -> dict:
    """TFLOP/s of a large matrix product: bf16 if the device has it, float32, and float32 with TF32."""
    before, bf16 = torch.get_float32_matmul_precision(), {"bf16": (torch.bfloat16, "highest")}
    kinds = {"float32": (torch.float32, "highest"), "TF32": (torch.float32, "high")}
    try:
        for name, (dtype, setting) in ((bf16 if devices.has_bf16() else {}) | kinds).items():
            torch.set_float32_matmul_precision(setting)
            bench.rates[name] = product_rate(bench.scale.matrix, dtype, partial(timed, bench=bench), bench.device)
    finally:
        torch.set_float32_matmul_precision(before)
    return {name: rate / 1e12 for name, rate in bench.rates.items()}


def given_back(bench: Bench) -> dict:
    """Twenty steps under bf16, after which the model computes in float32, whatever the batch."""
    if bench.precision != "bf16":
        return {"skipped": "the device has no bf16 of its own"}
    model, tokens = bench.model(), bench.scale.lengths[0]
    data = rows(20 * bench.scale.batch_size, tokens)
    bench.train(model, data, tokens)
    (many,) = batches(TOKENIZER, data.select(range(32)), max_length=tokens, batch_size=32)
    inputs = {name: values.to(bench.device) for name, values in many.items() if name != "labels"}
    with evaluating(model):
        whole, part = model(**inputs).logits, model(**{k: v[:4] for k, v in inputs.items()}).logits
    return {
        "finite": bool(whole.isfinite().all()),
        "forward of its class": "forward" not in vars(model),
        "dtype": str(whole.dtype),
        "logits of 4 and of 32 rows differ by": float((whole[:4] - part).abs().max()),
    }


def traces(bench: Bench) -> dict:
    """Tr(F) here in float32 against the CPU in float64, with and without TF32; and how far TF32 moves the logits."""
    model, tokens = bench.model(), bench.scale.lengths[0]
    padded = batches(TOKENIZER, rows(bench.scale.reference_rows, tokens), max_length=tokens, batch_size=4)
    exact = fisher_trace(make_model(bench.scale.model).double(), padded)
    found, logits, before = {"reference": exact.value}, {}, torch.get_float32_matmul_precision()
    try:
        for setting in TF32:
            torch.set_float32_matmul_precision(setting)
            trace = fisher_trace(model, padded)
            off = abs(trace.per_example / exact.per_example - 1).max()
            found[f"largest relative error, {setting}"] = float(off)
            with evaluating(model):
                inputs = {name: values.to(bench.device) for name, values in padded[0].items() if name != "labels"}
                logits[setting] = model(**inputs).logits
            found[f"setting afterwards, {setting}"] = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
    found["largest difference of logits under TF32"] = float((logits["high"] - logits["highest"]).abs().max())
    return found


# method → the term, passes in units of one forward pass, settings of its own
METHODS = {
    "none": (lambda: [], family("none").passes, {}),
    "none, float32": (lambda: [], family("none").passes, {"precision": "float32"}),
    "L2": (lambda: [L2(0.01)], family("l2").passes, {}),
    "MVR": (lambda: [SubwordConsistency(TOKENIZER)], family("consistency").passes, {}),
    "MVR, one pass": (lambda: [SubwordConsistency(TOKENIZER, shared_pass=True)], family("consistency").passes, {}),
    "MVR, two workers": (lambda: [SubwordConsistency(TOKENIZER)], family("consistency").passes, {"workers": 2}),
    "Fisher penalty": (lambda: [FisherPenalty()], family("fisher_penalty").passes, {}),
    "Fisher penalty, finite difference": (
        lambda: [FisherPenalty(method="finite-difference")],
        family("fisher_penalty").passes - 1,  # as in benchmarks/steps.py
        {"precision": "float32"},  # which it needs
    ),
    "trace penalty": (lambda: [TracePenalty()], family("trace_penalty").passes, {}),
}


class Watch(TrainerCallback):
    """Times all steps but the first, and profiles the last two, which are not timed."""

    PROFILED = 2

    def __init__(self, bench: Bench):
        self.bench, self.began, self.seconds = bench, 0.0, 0.0
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
        self.profile = profile(activities=kinds)

    def on_train_begin(self, args, state, control, **kwargs):
        state.logging_steps = state.max_steps + 1  # a log waits for the GPU, in a study in one step of fifty

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.bench.finish()
            self.began = time.perf_counter()
        elif state.global_step == state.max_steps - self.PROFILED:
            self.bench.finish()
            self.seconds = (time.perf_counter() - self.began) / (state.global_step - 1)
            self.profile.start()
            self.began = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.bench.finish()
        self.profiled_seconds = time.perf_counter() - self.began
        self.profile.stop()

    def counts(self) -> dict:
        """A step's launches (operators on CPU), waits for the GPU, `.item()`s, and the share of time it computes."""
        events = self.profile.key_averages()

        def calls(*names: str) -> float:
            return sum(event.count for event in events if event.key.startswith(names)) / self.PROFILED

        found = {
            "launches": calls("cudaLaunchKernel", "cuLaunchKernel") if self.bench.on_gpu else calls("aten::"),
            "synchronisations": calls("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
            "items": calls("aten::_local_scalar_dense"),
        }
        if self.bench.on_gpu:
            busy = sum(
                event.self_device_time_total
                for event in events
                if event.device_type.name == "CUDA" and not event.is_user_annotation
            )
            found["busy share while profiled"] = 1e-6 * busy / self.profiled_seconds
            found["busy share"] = 1e-6 * busy / self.PROFILED / self.seconds
        return found


def steps(bench: Bench, tokens: int) -> dict:
    """Milliseconds, memory, launches, busy share and share of the matrix rate of each method's training step."""
    found, data = {}, rows(bench.scale.steps * bench.scale.batch_size, tokens)
    for name, (terms, passes, settings) in METHODS.items():
        if not bench.in_time():
            found[name] = {"skipped": "no time left"}
            continue
        model = watch = None  # those of the method before, which the peak would count
        bench.clear()
        model, watch = bench.model(), Watch(bench)
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        bench.train(model, data, tokens, regularizers=terms(), callbacks=[watch], **settings)
        precision = settings.get("precision", bench.precision)
        work = passes * forward_flops(bench.scale.model, bench.scale.batch_size, tokens)
        found[name] = {"ms": 1e3 * watch.seconds, **watch.counts()}
        if bench.on_gpu:
            found[name]["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        if precision in bench.rates:
            found[name]["share of matrix rate"] = work / watch.seconds / bench.rates[precision]
    return found


def forward_flops(size: str, batch_size: int, tokens: int) -> float:
    """Of one pass through the encoder's layers: 24 h² + 4 T h per token and layer."""
    layers, hidden, *_ = SIZES[size]
    return batch_size * tokens * layers * (24 * hidden**2 + 4 * tokens * hidden)


def evaluation(bench: Bench) -> dict:
    """Rows per second of accuracy and of Tr(F), in batches of 32 and 128."""
    found, model, tokens = {}, bench.model(), bench.scale.lengths[-1]
    data = rows(bench.scale.evaluated_rows, tokens)
    for batch_size in (32, 128):
        for name, measure in {"accuracy": accuracy, "Tr(F)": trace_of_rows}.items():
            options = {"max_length": tokens, "batch_size": batch_size}
            measure(model, TOKENIZER, data.select(range(min(len(data), batch_size))), **options)
            seconds = timed(lambda m=measure, o=options: m(model, TOKENIZER, data, **o), bench)
            found[f"{name}, {batch_size}"] = len(data) / seconds
    return found


def same_seed(bench: Bench) -> dict:
    """How far the weights of two trainings with the same seed, and of one broken off and resumed, are apart."""
    tokens = bench.scale.lengths[0]
    data = rows(bench.scale.steps * bench.scale.batch_size, tokens)

    def trained(**settings):
        model = bench.model()
        bench.train(model, data, tokens, regularizers=[FisherPenalty()], **settings)
        return model

    first, second = trained(), trained()
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(BrokenOffError):
            trained(checkpoints=Checkpoints(Path(folder), minutes=0), callbacks=[BreakOff(3)])
        resumed = trained(checkpoints=Checkpoints(Path(folder), minutes=60))
    start = bench.model()
    return {
        "moved": distance(start, first),
        "same seed": distance(first, second),
        "broken off and resumed": distance(first, resumed),
    }


class BrokenOffError(Exception):
    """Raised by `BreakOff` to end a training in its middle."""


class BreakOff(TrainerCallback):
    """Ends a training once the step after a checkpoint has begun."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise BrokenOffError


def distance(one, other) -> float:
    """Largest difference of two models' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def runs_per_hour(bench: Bench, jobs: int) -> dict:
    """Throughput of a small plan of this encoder with so many runs at a time; starting processes is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        preset = _preset(bench, Path(folder))
        sources = Sources.of(preset, "nli")
        configs = sources.resolve(sources.specs("nli", preset, seeds=2 * jobs))
        store = Store(Path(folder, "store"))
        outcomes = list(local(Job(store, sources, keep_weights=False), configs, jobs))
        if failed := [outcome.reason for outcome in outcomes if outcome.state != "done"]:
            return {"failed": f"{len(failed)} of {len(configs)}: {failed[0]}"}
        seconds = [store.result(config)["seconds"] for config in configs]
    return {"seconds per run": statistics.median(seconds), "runs per hour": 3600 * jobs / statistics.mean(seconds)}


def _preset(bench: Bench, folder: Path):
    """A plan of one condition: the benchmark's layers with mini-mbert's vocabulary, English rows of the mini world."""
    model = make_model(bench.scale.model, dropout=0.1)
    model.resize_token_embeddings(len(TOKENIZER))
    model.save_pretrained(folder / "encoder")
    TOKENIZER.save_pretrained(folder / "encoder")
    settings = load_preset("smoke").model_dump(mode="json")
    plan = settings["plans"]["nli"]
    plan["conditions"] = {"none": [0]}
    plan["setup"] |= {"languages": ["en"], "precision": bench.precision, "measurement": {"trace_examples": 32}}
    plan["setup"] |= {"train_size": 20 * bench.scale.batch_size, "validation_size": 64}
    plan["setup"]["training"]["batch_size"] = bench.scale.batch_size
    encoder = {"source": str(folder / "encoder")}
    path = folder / "gpu.yaml"
    path.write_text(yaml.safe_dump(settings | {"name": "gpu", "encoder": encoder, "plans": {"nli": plan}}))
    return load_preset(str(path))


def timed(call: Callable[[], object], bench: Bench) -> float:
    """Seconds of a call."""
    bench.finish()
    began = time.perf_counter()
    call()
    bench.finish()
    return time.perf_counter() - began


def parts(bench: Bench) -> dict[str, Callable[[], dict]]:
    """The parts of the report in order, what matters most first."""
    found = {
        "device": lambda: about(bench),
        "matrix TFLOP/s": lambda: matrix_rate(bench),
        "bf16": lambda: given_back(bench),
        "Tr(F)": lambda: traces(bench),
        "same seed": lambda: same_seed(bench),
    }
    found |= {f"steps, T = {tokens}": lambda tokens=tokens: steps(bench, tokens) for tokens in bench.scale.lengths}
    found["rows per second"] = lambda: evaluation(bench)
    return found | {f"{jobs} jobs": lambda jobs=jobs: runs_per_hour(bench, jobs) for jobs in bench.scale.jobs}


def reports(bench: Bench) -> Iterator[dict]:
    """The report as it is after each part."""
    report = {"scale": vars(bench.scale), "seconds": {}}
    for name, part in parts(bench).items():
        began = time.monotonic()
        try:
            report[name] = part() if bench.in_time() else {"skipped": "no time left"}
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            report[name] = {"failed": f"{type(error).__name__}: {error}"}
        bench.clear()
        report["seconds"][name] = round(time.monotonic() - began, 1)
        print(f"{name}: {json.dumps(report[name])}", flush=True)
        yield report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="default: results/gpu.json, of a smoke test build/gpu-smoke.json")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--smoke", action="store_true", help="everything small, also on a GPU")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    small = options.smoke or not torch.cuda.is_available()
    output = options.output or (Path("build/gpu-smoke.json") if small else RESULTS / "gpu.json")
    # The last part to begin may take a minute.
    bench = Bench(SMOKE if small else FULL, time.monotonic() + 60 * options.minutes - (0 if small else 60))
    for report in reports(bench):
        write(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
