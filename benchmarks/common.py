"""What the benchmarks share: models and batches, paired timing, memory of a process of its own, reports by machine."""

import argparse
import ast
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

import flatlingo
from flatlingo.devices import cpu_name
from flatlingo.files import replacing

RESULTS = Path(__file__).parent / "results"
LABELS = 3
CPU = cpu_name()
# layers, hidden size, heads, vocabulary, examples per batch; "micro" and "mini" are for trying a benchmark out
SIZES = {
    "micro": (1, 32, 2, 500, 4),
    "mini": (2, 64, 2, 2400, 4),
    "tiny": (2, 128, 2, 30522, 32),
    "minilm": (6, 384, 12, 30522, 16),
    "mbert": (12, 768, 12, 119547, 8),
}


def make_model(size: str, *, attention: str = "sdpa", dropout: float = 0.0, seed: int = 0):
    """A BERT of random weights, biases and scales off their defaults, in eval mode."""
    layers, hidden, heads, vocabulary, _ = SIZES[size]
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=128,
        num_labels=LABELS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
    )
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def make_batch(size: str, tokens: int, examples: int | None = None, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random ids without padding, position ids written out (two of the peers need them)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (examples or SIZES[size][4], tokens)
    return {
        "input_ids": torch.randint(5, SIZES[size][3], shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "token_type_ids": torch.zeros(shape, dtype=torch.long),
        "position_ids": torch.arange(tokens).expand(shape).contiguous(),
    }


def without_bf16(makes: list[str]) -> list[str]:
    """What a report says of makes of CPU on which bf16 was left out."""
    return [f"{make} has no bf16 of its own: it is not measured there.\n" for make in makes]


def gradient_of(model, batch, method=None, view=None) -> Callable[[], None]:
    """A function that adds the gradient of task loss and of a method's term to the parameters'.

    Args:
        model: in train mode.
        batch: with labels.
        method: the regulariser; none by default.
        view: the columns that its `features` would make of each row.
    """
    if method is None:
        return lambda: model(**batch).loss.backward()
    method.start(model, seed=0)
    columns = batch | {f"{method.name}/{column}": values for column, values in (view or {}).items()}

    def gradient():
        with method.training_context(model):
            with method.forward_context(), method.shared_context(model, columns):
                outputs = model(**batch)
            (outputs.loss + method(model, columns, outputs)[0]).backward()

    return gradient


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def product_rate(n: int, dtype: torch.dtype, seconds=cpu_seconds, device="cpu") -> float:
    """FLOP/s of a product of two n × n matrices, the most that is to be had in a precision; `seconds` times a call."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min([seconds(lambda: a @ b) for _ in range(9)][1:])


def interleaved(functions: dict, rounds: int, *, slow: tuple[str, ...] = ()) -> dict[str, list[float]]:
    """CPU seconds of each function, one after another in every round; slow ones in the first two rounds only.

    One more round comes first and is not counted. A function that does its work several times has the number as its
    attribute `times`, and its seconds are divided by it.
    """
    seconds = {name: [] for name in functions}
    for number in range(-1, rounds):
        for name, function in functions.items():
            if name in slow and number > 1:
                continue
            taken = cpu_seconds(function)
            if number >= 0:
                seconds[name].append(taken / getattr(function, "times", 1))
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, reference: str) -> float:
    """Median over rounds of the ratio of two functions' times in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=False))


def spread(seconds: dict[str, list[float]], name: str, reference: str) -> float:
    """Interquartile range over rounds of the ratio of two functions' times, relative to its median."""
    ratios = [a / b for a, b in zip(seconds[name], seconds[reference], strict=False)]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def peak_memory(function) -> float:
    """MiB that a call adds at its peak to what the process held before; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status_mib("VmRSS")
    function()
    return status_mib("VmHWM") - before


def status_mib(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def in_own_process(script: str, *arguments: object) -> dict:
    """Call a benchmark with arguments in a fresh process; its last line of output is JSON. Without it, why."""
    # All that is freed goes back to the system: else a call is served from what a warm-up left in the heap, and its
    # peak over what was held before says too little.
    given_back = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | given_back | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode < 0:  # as the system does for want of memory
        return {"killed": f"killed by {signal.Signals(-done.returncode).name}"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def environment(*packages: str) -> dict[str, str]:
    """The machine, versions of packages (`-` for those that are not installed), a digest of the code measured."""
    versions = {}
    for package in ("flatlingo", "torch", "transformers", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "-"
    here = {"cpu": CPU, "threads": str(torch.get_num_threads()), "python": platform.python_version()}
    return here | versions | {"code": code()}


def code(package: Path = Path(flatlingo.__file__).parent) -> str:
    """A digest of what is measured, which a version does not tell: between releases it changes and that does not.

    Comments and docstrings do not count.
    """
    digest = hashlib.sha256()
    for folder in ("fisher", "regularizers"):
        for path in sorted((package / folder).glob("*.py")):
            digest.update(ast.unparse(_without_docstrings(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:8]


def _without_docstrings(source: str) -> ast.Module:
    module = ast.parse(source)
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return module


def read_report(path: Path, where: dict[str, str], *, lists: tuple[str, ...] = ("rows",)) -> dict:
    """What a report holds already, without what this make of CPU measured with other versions.

    Args:
        path: a report: `environments` and whatever else there is one of a make of CPU, by make; and lists of rows, each
            with its `cpu`.
        where: this environment.
        lists: the names of these lists.
    """
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"environments": {}}
    if report["environments"].get(where["cpu"]) != where:
        for name in lists:
            report[name] = [row for row in report.get(name, []) if row["cpu"] != where["cpu"]]
    report["environments"][where["cpu"]] = where
    return report


def replaced(rows: list[dict], found: list[dict], keys: tuple[str, ...], order=None) -> list[dict]:
    """The rows with those of the same make of CPU and setting replaced; makes stand beside each other.

    Args:
        rows: those of all makes.
        found: new ones.
        keys: what a setting is besides the make; none if a make has one setting only.
        order: a function of a row by which settings are sorted; default as they come.
    """
    keys = ("cpu", *keys)
    settings = {tuple(row[key] for key in keys) for row in found}
    rows = [row for row in rows if tuple(row[key] for key in keys) not in settings] + found

    def line(row):
        """What a row is about, whatever the make."""
        return tuple(row.get(key) for key in (*keys[1:], "method", "batches"))

    first = {}
    for row in rows:
        first.setdefault(line(row), len(first))
    rows = sorted(rows, key=lambda row: first[line(row)])
    return sorted(rows, key=order) if order else rows


def updated(options: argparse.Namespace, rows: list[dict]) -> dict:
    """The report at `options.output` with rows of one setting, and with their memory relative to the first's."""
    for row in rows:
        if "peak MiB" in row and "peak MiB" in rows[0]:
            row["memory"] = row["peak MiB"] / rows[0]["peak MiB"]
    report = read_report(options.output.with_suffix(".json"), environment())
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("output", "memory")}
    report.setdefault("settings", {})[CPU] = settings
    report["rows"] = replaced(report["rows"], rows, ())
    return report


def write_report(path: Path, report: dict, text: list[str]) -> None:
    """Write a report as JSON, and its text as Markdown beside it; `path` has no ending."""
    write(path.with_name(f"{path.name}.json"), json.dumps(report, indent=1) + "\n")
    write(path.with_name(f"{path.name}.md"), "\n".join([*text, ""]))


def write(path: Path, content: str) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    print("wrote", path)


def markdown(rows: list[dict], columns: dict[str, str]) -> str:
    """A Markdown table; `columns` gives the headings and the format of numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name), form) for name, form in columns.items()) + " |")
    return "\n".join(lines)


def _cell(value, form: str) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    return value if isinstance(value, str) else format(value, form)


def heading(title: str, report: dict) -> str:
    """Title, and a line of environment and settings for each make of CPU."""
    machines = [where | report.get("settings", {}).get(make, {}) for make, where in report["environments"].items()]
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()) for machine in machines]
    return "\n\n".join([f"# {title}", *lines]) + "\n"
