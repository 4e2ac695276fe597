"""Status: the state of every run of a sweep, the time left, and how progress is shown."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time

import pytest
from tiny import SIZES, resolved, write_preset
from typer.testing import CliRunner

from flatlingo.cli import app
from flatlingo.study import status
from flatlingo.study.store import Store
from flatlingo.study.sweep import sweep

RESULT = {"trace": {"value": 1.0}}


@pytest.fixture(scope="module")
def configs():
    return resolved("nli", "smoke")[:8]


def owning(runs, config):
    """A process that owns a run."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def target():
        with runs.own(config):
            ready.set()
            time.sleep(600)

    process = context.Process(target=target, daemon=True)
    process.start()
    assert ready.wait(60)
    return process


def log(runs, config, text):
    runs.log(config).parent.mkdir(exist_ok=True)
    runs.log(config).write_text(text)


@pytest.fixture(scope="module")
def mixed(configs, tmp_path_factory):
    """A store with a run in each state, in the order of `status.STATES`, and the process of the one that runs."""
    runs = Store(tmp_path_factory.mktemp("store"))
    finished, running, failed, killed, damaged, *_ = configs
    for config, seconds in [(finished, 30), (damaged, 40)]:
        runs.write(config, RESULT, {"seconds": seconds})
    (runs.path(damaged) / "result.json").write_text("{}")
    process = owning(runs, running)
    log(runs, failed, "Traceback …\nFAILED 2026-01-01 00:00:00 training step 1: the loss is not finite\n")
    log(runs, running, "2026-01-01 00:00:00 begun\n00:05:00 step 7 of 9, loss 1, about 2 min left\n")
    (runs.work(killed) / "checkpoint-500").mkdir(parents=True)
    dying = owning(runs, killed)
    log(runs, killed, "2026-01-01 00:00:00 begun\n")
    os.kill(dying.pid, signal.SIGKILL)
    dying.join()
    yield runs, process
    process.kill()
    process.join()


def test_every_seed_that_was_begun_is_told_of(tmp_path):
    runs = Store(tmp_path)
    (config, later) = (resolved("nli", "smoke", seeds=[seed])[0] for seed in (1, 3))
    runs.write(config, RESULT, {"seconds": 30})
    (runs.work(later) / "checkpoint-500").mkdir(parents=True)
    assert [runs.seeds(plan) for plan in ("nli", "paraphrase")] == [[1, 3], []]
    of_a_seed = len(resolved("nli", "smoke"))
    done = CliRunner().invoke(app, ["status", str(tmp_path), "nli", "--preset", "smoke"])
    assert f"1 of {2 * of_a_seed} runs finished" in done.stdout
    done = CliRunner().invoke(app, ["status", str(tmp_path), "nli", "--preset", "smoke", "--seeds", "1"])
    assert f"1 of {of_a_seed} runs finished" in done.stdout


def test_every_state_is_told_apart(configs, mixed):
    runs, process = mixed
    table = status.status(configs, runs)
    assert list(table["state"]) == [*status.STATES, "missing", "missing"]
    assert list(table["run_id"]) == [config.run_id for config in configs]
    detail = dict(zip(table["state"], table["detail"], strict=True))
    assert str(process.pid) in detail["running"]
    assert "the loss is not finite (log: " in detail["failed"]
    assert "result.json" in detail["damaged"]
    assert "ended without a word, it goes on from where it was" in detail["killed"]
    assert "step 7 of 9" in detail["running"]


def test_the_summary_counts_and_estimates(configs, mixed):
    table = status.status(configs, mixed[0])
    # seven runs of about 30 s, one at a time, one of them begun
    assert status.time_left(table) == pytest.approx(7 * 30, abs=30)
    line = status.summary(table)
    assert line.startswith(
        "1 of 8 runs finished, 1 running, 1 failed, 1 killed, 1 damaged, 3 missing, about 3 min left"
    )
    assert status.summary(table[table["state"] == "missing"]).endswith("time left unknown")
    assert status.summary(table[table["state"] == "finished"]) == "1 of 1 runs finished"


def test_the_command_names_what_needs_attention(configs, mixed):
    runs, _ = mixed
    (runs.folder / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["status", str(runs.folder), "nli", "--preset", "smoke"])
    assert done.exit_code == 0, done.output
    assert "nli: 1 of 9 runs finished" in done.output
    for config, state in zip(configs, status.STATES, strict=False):
        assert (f"{config.run_id}  {state}" in done.output) == (state not in ("finished", "missing"))
    assert "left alone: notes.txt" in done.output


def test_all_plans_by_default_and_only_a_folder_that_exists(tmp_path):
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--preset", "smoke"])
    assert [line.split(",")[0] for line in done.output.splitlines()] == [
        "nli: 0 of 9 runs finished",
        "paraphrase: 0 of 4 runs finished",
        "methods: 0 of 26 runs finished",
        "regularized_second_stage: 0 of 3 runs finished",
    ]
    assert "no such folder" in str(CliRunner().invoke(app, ["status", str(tmp_path / "nowhere")]).exception)


def test_a_store_that_is_only_read_is_left_as_it_is(configs, mixed):
    runs, _ = mixed
    before = sorted(map(str, runs.folder.rglob("*")))
    status.status(configs, runs)
    assert sorted(map(str, runs.folder.rglob("*"))) == before


def test_without_a_terminal_a_line_a_minute_is_written(configs, mixed, monkeypatch, capsys):
    monkeypatch.setattr(status, "LINE_SECONDS", 0.05)
    with status.progress(configs, mixed[0], shown=True):
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(" nli: 1 of 8 runs finished, 1 running" in line for line in lines)


@pytest.mark.parametrize(("wanted", "shown"), [("none", ""), ("lines", "runs finished")])
def test_the_environment_decides_in_notebooks(configs, mixed, monkeypatch, capsys, wanted, shown):
    monkeypatch.setenv("FLATLINGO_PROGRESS", wanted)
    monkeypatch.setattr(status, "_in_notebook", lambda: True)
    monkeypatch.setattr(status, "LINE_SECONDS", 0.01)
    with status.progress(configs, mixed[0], shown=True):
        time.sleep(0.1)
    printed = capsys.readouterr().err
    assert shown in printed
    assert bool(printed) is bool(shown)


def test_progress_can_be_switched_off(configs, mixed, monkeypatch, capsys):
    monkeypatch.setattr(status, "LINE_SECONDS", 0.01)
    with status.progress(configs, mixed[0], shown=False) as ended:
        time.sleep(0.1)
        ended(None)
    assert capsys.readouterr().err == ""


def test_the_owner_of_a_run_is_known_by_process_and_machine(configs, mixed):
    runs, process = mixed
    owner = runs.owner(configs[1])
    assert (owner["pid"], owner["alive"]) == (process.pid, True)
    assert owner["host"] == os.uname().nodename
    assert not runs.owner(configs[3])["alive"]
    assert runs.owner(configs[0]) is None


def test_an_owner_that_has_not_yet_said_who_it_is_has_no_pid_that_could_be_killed(configs, mixed):
    runs, _ = mixed
    with runs.own(configs[6]):
        (runs.folder / "locks" / f"{configs[6].run_id}.json").write_text("")
        assert runs.owner(configs[6])["pid"] is None
        assert status.status(configs, runs).loc[6, "detail"] == "on ?, process ?"


@pytest.fixture(params=["files can be exchanged", "they cannot"])
def without_flock(request, monkeypatch):
    """A file system without `flock`, of either kind."""

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    if request.param == "they cannot":
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)


def test_running_and_killed_are_told_apart_without_flock(without_flock, configs, tmp_path):
    runs = Store(tmp_path)
    processes = [owning(runs, config) for config in configs[:2]]
    for config in configs[:2]:
        log(runs, config, "2026-01-01 00:00:00 begun\n")
    processes[1].kill()
    processes[1].join()
    for _ in range(2):
        assert list(status.status(configs[:3], runs)["state"]) == ["running", "killed", "missing"]
    processes[0].kill()


def test_a_sweep_works_without_flock_and_takes_up_what_was_killed(without_flock, tmp_path):
    runs = Store(tmp_path / "store")
    path = write_preset(tmp_path, nli={"none": [0]}, setup=SIZES | {"train_size": 32, "languages": ["en"]})
    (config,) = resolved("nli", path)
    process = owning(runs, config)
    process.kill()
    process.join()
    assert len(sweep("nli", preset=path, store=runs.folder, jobs=1, progress=False)) == 1
    assert list((runs.folder / "locks").iterdir()) == []
