"""The benchmarks at sizes that tell nothing about speed, and their reports: what other machines measured stays."""

import copy
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from flatlingo.files import ROOT
from flatlingo.study.families import FAMILIES
from flatlingo.study.runspec import PARTS

sys.path.insert(0, str(ROOT / "benchmarks"))
common = pytest.importorskip("common", reason="no benchmarks/")
import penalties  # noqa: E402
import steps  # noqa: E402
import trace_methods  # noqa: E402
import trace_report  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "trace_benchmark", ROOT / "benchmarks" / "trace.py"
)  # trace is Python's own
trace = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trace)

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


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ('"""Other words."""\n\n\nclass A:\n    """New."""\n\n    def f(self):\n        return 1  # one\n', True),
        ("class A:\n    def f(self):\n        return 1\n", True),
        ("class A:\n    def f(self):\n        return 2\n", False),
    ],
    ids=["other prose", "no prose", "another result"],
)
def test_the_digest_of_the_code_leaves_out_its_prose(tmp_path, source, same):
    module = tmp_path / "fisher" / "norms.py"
    module.parent.mkdir()
    module.write_text('"""Words."""\nclass A:\n    def f(self):\n        """One."""\n        return 1\n')
    before = common.code(tmp_path)
    module.write_text(source)
    assert (common.code(tmp_path) == before) is same


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


def test_slow_functions_are_warmed_up_and_timed_twice():
    calls = {"fast": 0, "slow": 0}

    def count(name):
        calls[name] += 1

    functions = {name: lambda name=name: count(name) for name in calls}
    seconds = common.interleaved(functions, 4, slow=("slow",))
    assert {name: len(found) for name, found in seconds.items()} == {"fast": 4, "slow": 2}
    assert calls == {"fast": 5, "slow": 3}


def test_a_process_that_is_killed_tells_so_and_one_that_fails_tells_why(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nos.kill(os.getpid(), 9) if sys.argv[1] == 'dies' else sys.exit('why')\n")
    assert common.in_own_process(script, "dies") == {"killed": "killed by SIGKILL"}
    assert common.in_own_process(script, "fails") == {"failed": "why"}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("method", ["flatlingo", "flatlingo, passes alone", "torch.func vmap(vjp)"])
def test_ways_to_the_trace_agree(method):
    model, batch = common.make_model("micro").double(), common.make_batch("micro", 8)
    exact = trace_methods.loop(copy.deepcopy(model), batch)()
    assert trace_methods.METHODS[method](model, batch)() == pytest.approx(exact, rel=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_report_has_every_method_and_names_those_that_cannot_run(monkeypatch, tmp_path):
    """As if this CPU had bf16, and with the memory of other processes made up, one of which dies."""

    def memory(script, option, name, *setting):
        return {"killed": "killed by SIGKILL"} if name.startswith("loop") else {"peak MiB": 1.0}

    monkeypatch.setattr(trace_methods, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(trace, "in_own_process", memory)
    monkeypatch.setattr(trace, "product_rate", lambda n, dtype: 1e9)
    monkeypatch.setattr(trace.devices, "keep_memory", lambda: None)
    monkeypatch.setattr(trace, "lengths", lambda size, rounds: [])
    methods = [name for name in trace_methods.METHODS if name.startswith(("flat", "loop"))]
    options = SimpleNamespace(sizes=["micro"], tokens=[8], rounds=1, methods=methods, output=tmp_path / "trace")
    trace.measure(options, common.read_report(tmp_path / "trace.json", OLD, lists=("rows", "lengths")))
    rows = {one["method"]: one for one in json.loads((tmp_path / "trace.json").read_text())["rows"]}
    floors = ["floor_full", "floor_act", "floor_full, bf16", "floor_act, bf16"]
    assert list(rows) == [*floors, *methods]
    for name in ("floor_full", "floor_full, bf16"):
        assert rows[name]["time / floor_full"] == 1
    bf16 = rows["flatlingo, bf16"]
    assert bf16["time / floor_act"] == bf16["seconds"] / rows["floor_act, bf16"]["seconds"] > 0
    assert "seconds" not in rows["loop over examples and labels"]
    text = (tmp_path / "trace.md").read_text()
    assert "loop over examples and labels" in text.partition("What could not run")[2]
    assert "killed by SIGKILL (micro, T = 8)" in text


def test_the_committed_trace_report_is_not_replaced_by_a_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trace.py", "--methods", "flatlingo"])
    monkeypatch.setattr(trace.torch, "set_num_threads", lambda n: None)
    with pytest.raises(SystemExit):
        trace.main()
    assert "needs every method and every peer" in capsys.readouterr().err


def test_every_step_and_every_penalty_is_timed(monkeypatch, tmp_path):
    settings = {"tokens": 8, "batch": 4, "rounds": 1, "steps": 1, "draws": 2, "output": tmp_path / "report"}
    options = SimpleNamespace(size="mini", **settings)  # two layers, of which one method needs the first
    for module in (steps, penalties):
        monkeypatch.setattr(module, "in_own_process", lambda *arguments: {"peak MiB": 1.0})
    model, batch = common.make_model("micro", dropout=0.1).train(), common.make_batch("micro", 8, 4)
    batch["labels"] = torch.arange(4) % 3
    measured = {steps: steps.measured(options), penalties: penalties.measured(options, model, batch)}
    assert [one["method"] for one in measured[steps]] == list(steps.methods(layers=2))
    assert [one["method"] for one in measured[penalties]] == list(penalties.METHODS)
    for module, rows in measured.items():
        assert all(one["time"] > 0 for one in rows)
        report = common.updated(options, rows)
        assert all(one["memory"] == 1 for one in report["rows"])
        module.save(report, options.output)


def test_memory_of_a_step_counts_what_a_method_keeps(monkeypatch):
    """What is measured starts before the method does."""
    kept = []
    monkeypatch.setattr(steps, "peak_memory", lambda function: kept.append(function) or 0.0)
    monkeypatch.setattr(steps, "prepared", lambda options, name: kept.append(name) or (lambda: None))
    steps.memory(SimpleNamespace(size="micro"), "L2 to the start")
    assert len(kept) == 1
    kept[0]()
    assert kept[1:] == ["L2 to the start"]


def test_every_method_that_changes_a_step_is_timed_with_its_passes():
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
    monkeypatch.setattr(encoder, "cpu_has_bf16", lambda: True)
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


def test_a_piece_of_work_that_fails_is_not_timed(encoder):
    class Failing(encoder.Pair):
        def __init__(self):
            pass

        def __call__(self, *work):
            return [(1.0, None), (0.1, "ValueError: why")]

    with pytest.raises(RuntimeError, match="predict 16: ValueError: why"):
        Failing().seconds(1, [("predict", 16)])


@pytest.mark.parametrize("rows", ["48", "1000"])
def test_rows_that_make_too_few_batches_or_are_not_there_are_refused(encoder, monkeypatch, capsys, rows):
    monkeypatch.setattr(sys, "argv", ["encoder.py", "--data", "nowhere", "--rows", rows])
    with pytest.raises(SystemExit):
        encoder.main()
    assert "--rows must be 256" in capsys.readouterr().err
