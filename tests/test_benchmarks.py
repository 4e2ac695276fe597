"""The reports of the benchmarks: what other machines measured stays, beside what this one measures."""

import json
import sys

import pytest

from flatlingo.files import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
common = pytest.importorskip("common", reason="no benchmarks/")
import trace_report  # noqa: E402

OLD, NEW = {"cpu": "A", "torch": "1"}, {"cpu": "A", "torch": "2"}
OTHER = {"cpu": "B", "torch": "1"}


def row(cpu, size="tiny", tokens=64, method="loop", seconds=1.0):
    return {"cpu": cpu, "size": size, "T": tokens, "method": method, "seconds": seconds}


@pytest.fixture
def path(tmp_path):
    """A report of two makes of CPU."""
    report = {"environments": {"A": OLD, "B": OTHER}, "rows": [row("A"), row("B"), row("A", "mbert")]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path / "report.json"


@pytest.mark.parametrize(
    ("where", "kept"),
    [(OLD, ["A", "B", "A"]), (NEW, ["B"]), ({"cpu": "C"}, ["A", "B", "A"])],
    ids=["the same versions", "other versions", "another make"],
)
def test_other_makes_stay_and_so_does_this_ones_of_the_same_versions(path, where, kept):
    report = common.read_report(path, where)
    assert [one["cpu"] for one in report["rows"]] == kept
    assert report["environments"][where["cpu"]] == where
    assert report["environments"]["B"] == OTHER


def test_the_first_report_is_empty(tmp_path):
    report = common.read_report(tmp_path / "none.json", OLD, lists=("rows", "lengths"))
    assert report == {"environments": {"A": OLD}, "rows": [], "lengths": []}


def test_a_setting_measured_again_is_replaced_and_makes_stand_beside_each_other():
    rows = [row("A"), row("A", "mbert"), row("B", "mbert"), row("A", method="floor"), row("A", tokens=128)]
    found = [row("B", seconds=2.0), row("B", method="floor"), row("B", "mbert", seconds=3.0)]
    new = common.replaced(rows, found, ("size", "T"), order=trace_report.size_and_length)
    assert [(one["size"], one["T"], one["method"], one["cpu"], one["seconds"]) for one in new] == [
        ("tiny", 64, "loop", "A", 1.0),
        ("tiny", 64, "loop", "B", 2.0),
        ("tiny", 64, "floor", "A", 1.0),
        ("tiny", 64, "floor", "B", 1.0),
        ("tiny", 128, "loop", "A", 1.0),
        ("mbert", 64, "loop", "A", 1.0),
        ("mbert", 64, "loop", "B", 3.0),
    ]


@pytest.mark.parametrize("name", ["trace", "steps", "penalties"])
def test_committed_reports_name_the_make_of_every_row(name):
    report = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert {one["cpu"] for one in report["rows"]} == set(report["environments"])
    text = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text()
    assert text.startswith(common.heading(text.splitlines()[0].removeprefix("# "), report))
