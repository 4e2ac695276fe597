"""The catalogue of methods, and the table of them that the package's docstring shows."""

import json

import pandas as pd
import pytest

from flatlingo import regularizers
from flatlingo.report import catalogue as module
from flatlingo.report.catalogue import catalogue
from flatlingo.study.families import FAMILIES


@pytest.fixture
def _benchmark(monkeypatch, tmp_path):
    rows = [{"family": "none", "passes": 1, "time": 1}, {"family": "consistency", "passes": 2, "time": 1.9}]
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"rows": [*rows, {"family": "", "passes": 2, "time": 9}]}))
    monkeypatch.setattr(module, "BENCHMARK", path)


@pytest.mark.usefixtures("_benchmark")
def test_every_method_has_its_line_its_weight_and_its_cost():
    page = catalogue()
    assert sorted(["none", *page.index]) == sorted(FAMILIES)
    assert page.loc["sam", ["one line", "weight"]].tolist() == ["finetune(…, sam=SAM(rho=0.05))", "ρ"]
    assert page.loc["consistency", ["passes", "time"]].tolist() == pytest.approx([2, 1.9])


@pytest.mark.usefixtures("_benchmark")
def test_a_setting_costs_a_plain_step_and_a_term_that_was_not_measured_is_unknown():
    page = catalogue()
    assert page.loc["weight_decay", "time"] == 1
    assert pd.isna(page.loc["r3f", "time"])


def test_without_the_benchmark_costs_are_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BENCHMARK", tmp_path / "nothing.json")
    assert catalogue()[["passes", "time"]].isna().all(axis=None)


def test_the_package_shows_the_table_of_the_families():
    rows = [("method", "one line", "paper")]
    rows += [(row.title, f"`{row.code}`", row.paper) for row in FAMILIES.values() if row.changes != "nothing"]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    table = "\n".join([rule, lines[0], rule, *lines[1:], rule])
    assert table in regularizers.__doc__, f"replace the table in regularizers/__init__.py by\n{table}"
