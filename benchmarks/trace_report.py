"""What benchmarks/trace.py has found, as JSON, as Markdown and as a plot."""

from pathlib import Path

import matplotlib.pyplot as plt
from common import SIZES, heading, markdown, without_bf16, write_report
from trace_methods import BUDGET, CALL, DRAWS

LEGEND = f"""\
Times are CPU seconds on one thread, in float32 unless a row says bf16 (autocast): medians over rounds of the ratio to a
floor in the same round and precision; slow methods run in two rounds. "spread" is the interquartile range of the ratio
to floor_full over rounds, relative to its median. Row "flatlingo" is a call of `fisher_trace` with {CALL} rows or more,
divided by its number of batches; "passes alone" leaves out what a call does before and after them. The error is that of
the mean trace of four rows of 16 tokens against a float64 loop over examples and labels; of one draw, the standard
deviation over {DRAWS} draws. vmap and opacus' GradSampleModule take as many rows at a time as fit in {BUDGET >> 30} GiB
with their gradients and the squares, a power of two; ghost clipping takes all. "peak MiB" is over the loaded model.
"""
MARKERS = "osD^v"  # of the makes of CPU
plt.switch_backend("agg")


def size_and_length(row: dict) -> tuple[int, int]:
    """The order of settings in tables."""
    return list(SIZES).index(row["size"]), row.get("T", 0)


def save(report: dict, output: Path) -> None:
    """Write the report as JSON, as Markdown and as a plot."""
    rows, by_length = report["rows"], report["lengths"]
    columns = {
        "size": "",
        "T": "d",
        "B": "d",
        "method": "",
        "cpu": "",
        "time / floor_full": ".2f",
        "time / floor_act": ".2f",
    }
    columns |= {"examples/s": ".3g", "peak MiB": ".0f", "error": ".0e", "spread": ".2f", "rounds": "d"}
    length_columns = {
        "size": "",
        "batches": "",
        "cpu": "",
        "real tokens": ".2f",
        "examples/s": ".3g",
        "speed-up": ".2f",
    }
    parts = [heading("Tr(F), side by side", report)]
    for make, found in report["GFLOP/s"].items():
        rates = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in found.items())
        parts += [f"A product of two 1024 × 1024 matrices on {make}: {rates}.\n"]
    parts += without_bf16([make for make, found in report["GFLOP/s"].items() if "bfloat16" not in found])
    parts += [LEGEND, markdown([row for row in rows if "failed" not in row], columns)]
    if failed := failures(rows):
        parts += ["\n## What could not run\n", *failed]
    parts += ["\n## Rows as long as those of XNLI\n", markdown(by_length, length_columns)]
    write_report(output, report, parts)
    plot(rows, output.with_suffix(".png"))


def failures(rows: list[dict]) -> list[str]:
    """What could not run, why and where."""
    settings = {}
    for row in rows:
        for key, what in {"failed": "", "memory failed": "memory of "}.items():
            if key in row:
                name = f"{what}{row['method']} ({row['cpu']}): {row[key]}"
                settings.setdefault(name, []).append(f"{row['size']}, T = {row['T']}")
    return [f"* {name} ({'; '.join(where)})" for name, where in settings.items()]


def plot(rows: list[dict], path) -> None:
    """Time relative to floor_full, one panel per setting, one height per make of CPU within each method's."""
    settings = list(dict.fromkeys((row["size"], row["T"]) for row in rows))
    makes = list(dict.fromkeys(row["cpu"] for row in rows))
    size = (2.2 * len(settings) + 2, 1.6 * (1 + len(makes)))
    fig, axes = plt.subplots(1, len(settings), figsize=size, sharey=True, squeeze=False)
    names = list(dict.fromkeys(row["method"] for row in rows if "seconds" in row))[::-1]
    for ax, (size, tokens) in zip(axes[0], settings, strict=True):
        for row in rows:
            if (row["size"], row["T"]) == (size, tokens) and "seconds" in row:
                make = makes.index(row["cpu"])
                value, height = row["time / floor_full"], names.index(row["method"]) - 0.3 * make
                colour = "#0072B2" if row["method"].startswith("flatlingo") else "0.5"
                ax.plot(value, height, MARKERS[make % len(MARKERS)], color=colour, label=row["cpu"])
                ax.annotate(f"{value:.2f}", (value, height), (5, 0), textcoords="offset points", va="center", size=8)
        ax.axvline(1, color="0.8", linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlim=(0.25, 60), title=f"{size}, T = {tokens}", xlabel="time / floor_full")
        ax.set_xticks([0.5, 1, 2, 5, 10, 20, 50], labels=["0.5", "1", "2", "5", "10", "20", "50"])
        ax.minorticks_off()
        ax.set_yticks(range(len(names)), labels=names)
        ax.set_ylim(-0.5, len(names) - 0.5)
    if len(makes) > 1:
        handles = {label: handle for handle, label in zip(*axes[0][0].get_legend_handles_labels(), strict=True)}
        axes[0][0].legend(handles.values(), handles.keys(), fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=120, metadata={"Software": None})
