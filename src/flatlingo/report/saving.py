"""How a figure is saved: PNG, SVG and PDF, and a JSON with what it shows and where it came from."""

import dataclasses
import io
import json
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flatlingo.errors import FlatlingoError
from flatlingo.files import FIGURES, replacing

STYLE = Path(__file__).with_name("paper.mplstyle")
PACKAGES = ("flatlingo", "torch", "transformers", "numpy", "pandas", "scipy", "matplotlib")


def save_figure(
    fig: Figure,
    name: str,
    *,
    caption: str,
    table: pd.DataFrame | dict[str, pd.DataFrame],
    folder: str | Path | None = None,
    headline: dict[str, object] | None = None,
    sources: dict[str, str] | None = None,
) -> list[Path]:
    """Write a figure as PNG, SVG and PDF, and beside them a JSON with what it shows and where it came from.

    The same figure gives the same bytes: no dates, no random ids. Each file appears complete or not at all.

    Args:
        fig: the figure.
        name: file name without ending.
        caption: the caption, for whoever reuses the figure.
        table: the data drawn, or several tables by name; goes into the JSON, rounded to 6 significant digits.
        folder: where to write, made if missing; by default `files.FIGURES`.
        headline: numbers the text quotes (numbers, strings, correlations) by name.
        sources: where the data came from, e.g. preset and store. Names, not paths: the file is to be shared.

    Returns:
        The four paths.

    Raises:
        FlatlingoError: if a source is an absolute path.
    """
    for key, value in (sources or {}).items():
        if Path(str(value)).is_absolute():
            raise FlatlingoError(f"source {key}={value} of figure {name} is an absolute path; give a name")
    folder = Path(folder or FIGURES)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "caption": " ".join(caption.split()),
        "headline": plain(headline or {}),
        "data": plain(table),
        "provenance": {**(sources or {}), "versions": versions()},
    }
    files = {"json": (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()}
    undated = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    with plt.style.context(STYLE):
        for ending, metadata in undated.items():
            drawn = io.BytesIO()
            fig.savefig(drawn, format=ending, metadata=metadata)
            files[ending] = drawn.getvalue()
    paths = []
    for ending, content in files.items():
        paths.append(folder / f"{name}.{ending}")
        with replacing(paths[-1]) as temporary:
            temporary.write_bytes(content)
    return paths


def versions() -> dict[str, str]:
    """Versions of the packages that numbers and pictures depend on."""
    return {package: version(package) for package in PACKAGES}


def plain(value):
    """A value in JSON's types: tables as lists of rows, dataclasses as dicts, floats to 6 digits, NaN as null."""
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
