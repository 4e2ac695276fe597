"""The reports of the benchmarks: what other machines measured stays, beside what this one measures."""

import json
import sys
from types import SimpleNamespace

import pytest

from flatlingo.files import ROOT
from flatlingo.study.families import FAMILIES
from flatlingo.study.presets import PARTS

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


@pytest.mark.parametrize("name", ["trace", "steps", "penalties", "gram"])
def test_committed_reports_name_the_make_of_every_row(name):
    report = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert {one["cpu"] for one in report["rows"]} == set(report["environments"])
    text = (ROOT / "benchmarks" / "results" / f"{name}.md").read_text()
    assert text.startswith(common.heading(text.splitlines()[0].removeprefix("# "), report))


def test_every_method_that_changes_a_step_is_timed_with_its_passes():
    steps = pytest.importorskip("steps", reason="no benchmarks/")
    found = steps.methods(layers=4)
    assert all(method.make() is not None for name, method in found.items() if name != steps.PLAIN)
    timed = {method.family: method.passes for method in found.values() if method.family}
    others = {row.name for row in FAMILIES.values() if row.passes == 3} - set(timed)
    assert {name: row.passes for name, row in FAMILIES.items() if name not in others} == timed
    assert others == {"weight_decay", "dropout", "label_smoothing", "early_stopping"}
    parts = [found[f"trace penalty, {part}"].passes / 3 for part in ("head", "last layer")]
    assert parts == [1 + 2 * PARTS[part] for part in ("head", "last_layer")]


@pytest.fixture
def encoder():
    return pytest.importorskip("encoder", reason="no benchmarks/")


@pytest.fixture
def xnli_rows(tmp_path):
    """A folder of made-up rows in XTREME's layout, of many lengths."""
    (tmp_path / "xnli").mkdir()
    for name, n in {"train-en": 810, "dev-en": 600}.items():
        lines = [f"{'the cat sleeps ' * (1 + i % 9)}{i}.\tThe cat {i} sleeps.\t{LABELS[i % 3]}" for i in range(n)]
        (tmp_path / "xnli" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


LABELS = ("entailment", "neutral", "contradiction")


def test_every_setting_of_a_real_encoder_is_timed(encoder, xnli_rows, monkeypatch):
    """In this process instead of two, and without compiling, which takes minutes."""
    settings = [setting for setting in encoder.GRADIENTS if not setting.compiled]
    monkeypatch.setattr(encoder, "PREDICTED", (16, 64))
    monkeypatch.setattr(encoder, "TRACED", ((16, "sdpa"), (32, "eager")))
    options = SimpleNamespace(model="mini-mbert", data=xnli_rows, batches=2, rounds=1, rows=32, compile=False)
    bench = encoder.Bench(options)

    class Here(encoder.Pair):
        def __init__(self):
            pass

        def __call__(self, name, *arguments):
            result = getattr(bench, name)(*arguments)
            return [(1.0, result), (2.0, result)]

    before = {name: parameter.detach().clone() for name, parameter in bench.model.named_parameters()}
    rows = encoder.steps(Here(), options)
    assert [row["work"] for row in rows] == [*map(str, settings), *encoder.OPTIMIZERS]
    assert {row["ms"] for row in rows} == {1000.0}
    assert {row["kept / not"] for row in rows} == {2.0}
    for name, parameter in bench.model.named_parameters():
        assert parameter.grad is not None
        assert parameter.equal(before[name]), "the learning rate is 0, so every setting sees the same weights"
    shortest, longest = ([batch["input_ids"].shape[1] for batch in bench.batches[True]][i] for i in (0, -1))
    assert shortest < longest
    assert [row["rows/s"] for row in encoder.throughput(Here(), options)] == [32.0] * (2 * 3 + 2)
