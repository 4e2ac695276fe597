"""Sweeps under faults: processes killed for real, full and read-only stores, damaged files. No finished run is lost."""

import ctypes
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import time

import pytest
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.backend.context import set_start_method
from tiny import SIZES, resolved, sources_of, write_preset
from transformers import PreTrainedModel

from flatlingo import checkpoints, evaluation
from flatlingo.errors import FlatlingoError
from flatlingo.study import launchers
from flatlingo.study import run as running
from flatlingo.study import store as storing
from flatlingo.study.sources import Sources
from flatlingo.study.store import Store
from flatlingo.study.sweep import sweep
from flatlingo.trainer import RegularizedTrainer


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """Two runs of less than a second."""
    return write_preset(
        tmp_path_factory.mktemp("presets"),
        nli={"none": [0], "consistency": [0.6]},
        setup=SIZES | {"train_size": 32},
        training={"batch_size": 16},
    )


@pytest.fixture(scope="module")
def configs(preset):
    return resolved("nli", preset)


@pytest.fixture(scope="module")
def undisturbed(preset, tmp_path_factory):
    """What a sweep stores that nothing disturbs."""
    store = tmp_path_factory.mktemp("undisturbed")
    sweep("nli", preset=preset, store=store, jobs=1, progress=False)
    return contents(store)


@pytest.fixture
def store(undisturbed, tmp_path):
    """A finished store of one's own."""
    for name, content in undisturbed.items():
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "store"


def contents(store):
    """Every file of the finished runs."""
    return {str(p.relative_to(store)): p.read_bytes() for p in store.glob("nli*/**/*") if p.is_file()}


def repeatable(files):
    """Without the seconds that a run took."""
    return {name: text for name, text in files.items() if not name.endswith(("environment.json", "SHA256SUMS"))}


def left_behind(store):
    """What only a run under way has: half-written folders, locks, logs, checkpoints."""
    return [*store.glob(".*"), *store.glob("locks/*"), *store.glob("logs/*"), *store.glob("work/*")]


def forked(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def swept_alone(preset, store, before):
    """A sweep with a checkpoint after every step, in a process of its own, prepared for a fault by `before`.

    Returns its exit status, 2 for a FlatlingoError.
    """

    def target():
        before()
        try:
            sweep("nli", preset=preset, store=store, jobs=1, checkpoint_minutes=0, progress=False)
        except FlatlingoError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            store.with_name("message").write_text(str(error))
            os._exit(2)

    process = forked(target)
    process.join()
    return process.exitcode


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killing(owner, name, calls, *, after=False, spoil=None):
    """Make the given call of a function the last thing that the process does."""

    def before():
        original, count = getattr(owner, name), 0

        def deadly(*arguments, **options):
            nonlocal count
            count += 1
            if count == calls and not after:
                kill()
            value = original(*arguments, **options)
            if count == calls:
                if spoil:
                    spoil(*arguments)
                kill()
            return value

        setattr(owner, name, deadly)

    return before


def tear(_, folder):
    """The weights as a write leaves them that is half done."""
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


# The second run is the one that is hit. A run has two steps, and a checkpoint after each.
# When, by what, how many runs are then finished, and how many steps are left to do.
MOMENTS = {
    "between two runs": (killing(Store, "own", 2), 1, 2),
    "before the first step": (killing(running, "_train", 2), 1, 2),
    "in a step": (killing(RegularizedTrainer, "compute_loss", 4), 1, 1),
    "in the writing of a checkpoint": (killing(RegularizedTrainer, "_save_rng_state", 4), 1, 1),
    "before a checkpoint has its digests": (killing(checkpoints, "write_sums", 4), 1, 1),
    "in the measurement of Tr(F)": (killing(evaluation, "trace_of_rows", 3), 1, 0),
    "before the result is written": (killing(Store, "write", 2), 1, 0),
    "in the writing of the weights": (killing(PreTrainedModel, "save_pretrained", 6, after=True, spoil=tear), 1, 0),
    "before the run's folder gets its name": (killing(storing, "write_sums", 2, after=True), 1, 0),
    "after the run's folder got its name": (killing(Store, "write", 2, after=True), 2, 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_sweep_continues_where_it_was(preset, undisturbed, tmp_path, moment, monkeypatch):
    fault, finished, left = MOMENTS[moment]
    store = tmp_path / "store"
    assert swept_alone(preset, store, fault) == -signal.SIGKILL
    before = contents(store)
    assert len({name.partition("/")[0] for name in before}) == finished
    steps, step = [], RegularizedTrainer.training_step
    monkeypatch.setattr(RegularizedTrainer, "training_step", lambda *given: steps.append(1) or step(*given))
    sweep("nli", preset=preset, store=store, jobs=1, progress=False)
    after = contents(store)
    assert len(steps) == left
    assert before.items() <= after.items(), "finished runs are untouched"
    assert repeatable(after) == repeatable(undisturbed)
    assert not left_behind(store)


def test_a_sweep_killed_at_random_times_until_it_is_done(preset, undisturbed, tmp_path):
    store, times, kills = tmp_path / "store", random.Random(0), 0
    while True:
        process = forked(lambda: sweep("nli", preset=preset, store=store, jobs=1, checkpoint_minutes=0, progress=False))
        process.join(times.uniform(0.02, 0.3) if kills < 4 else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills > 0
    assert repeatable(contents(store)) == repeatable(undisturbed)
    assert not left_behind(store)


def test_two_sweeps_on_one_store_do_every_run_once(preset, undisturbed, tmp_path):
    store, computed = tmp_path / "store", tmp_path / "computed"

    def target():
        run = launchers.run

        def counted(spec, *rest, **more):
            with computed.open("a") as file:
                file.write(f"{spec.name} {os.getpid()}\n")
            return run(spec, *rest, **more)

        launchers.run = counted
        sweep("nli", preset=preset, store=store, jobs=1, progress=False)

    processes = [forked(target) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    runs, by = zip(*(line.split() for line in computed.read_text().splitlines()), strict=True)
    assert sorted(runs) == ["nli-kl=0.6-s1", "nli-none-s1"], "each once"
    assert len(set(by)) == 2, "both did some"
    assert repeatable(contents(store)) == repeatable(undisturbed)


def test_a_worker_that_is_killed_costs_its_run_a_repetition_and_workers_end_with_their_sweep(
    preset, configs, undisturbed, tmp_path
):
    runs = Store(tmp_path / "store")

    def alive():
        return {owner["pid"] for config in configs if (owner := runs.owner(config)) and owner["alive"]} - {None}

    def wait_for(number_of_owners):
        while not number_of_owners(len(alive())):
            assert time.time() < deadline
            time.sleep(0.01)

    def target():
        set_start_method("fork")  # of the pool, so that its processes need not import everything again
        reusable_executor._executor = None  # one of this process's parent would be dead here
        sweep("nli", preset=preset, store=runs.folder, jobs=2, progress=False)

    deadline = time.time() + 240
    process = forked(target)
    wait_for(lambda n: n > 0)
    worker = alive().pop()
    os.kill(worker, signal.SIGKILL)
    while worker in alive() or not alive():  # the pool is made anew
        assert time.time() < deadline
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    wait_for(lambda n: n == 0)
    sweep("nli", preset=preset, store=runs.folder, jobs=1, progress=False)
    assert repeatable(contents(runs.folder)) == repeatable(undisturbed)


def test_four_sweeps_at_once_do_40_runs_in_one_store_each_once(configs, preset, tmp_path, monkeypatch):
    """With the computing left out, everything else of a sweep is done 40 times."""
    finished = running.run(configs[0], sources_of("nli", preset))
    monkeypatch.setattr(Sources, "check", lambda *_, **options: None)
    store, computed = tmp_path / "store", tmp_path / "computed"

    def target():
        def instead(spec, *rest, **more):
            with computed.open("a") as file:
                file.write(f"{spec.name} {os.getpid()}\n")
            return finished

        launchers.run = instead
        sweep("nli", preset=preset, seeds=20, store=store, jobs=1, keep_weights=False, progress=False)

    processes = [forked(target) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    runs, by = zip(*(line.split() for line in computed.read_text().splitlines()), strict=True)
    assert len(runs) == len(set(runs)) == 40
    assert len(set(by)) > 1
    assert not left_behind(store)
    assert len(sweep("nli", preset=preset, seeds=20, store=store, progress=False)) == 40


def limit(size):
    """Let no file of the process grow beyond a size: the write fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_disk_that_fills_up_fails_the_runs_by_name_and_leaves_nothing_half_written(preset, undisturbed, tmp_path):
    store = tmp_path / "store"
    assert swept_alone(preset, store, limit(200_000)) == 2
    message = (tmp_path / "message").read_text()
    assert "2 of 2 runs failed" in message
    assert "File too large" in message
    assert not contents(store)
    assert not list(store.glob(".*"))
    sweep("nli", preset=preset, store=store, jobs=1, progress=False)
    assert repeatable(contents(store)) == repeatable(undisturbed)


def test_a_full_disk_is_refused_before_anything_is_computed(preset, tmp_path):
    started = killing(launchers, "run", 1)
    store = tmp_path / "store"
    assert swept_alone(preset, store, lambda: (started(), limit(0)())) == 2
    assert "cannot be written: File too large" in (tmp_path / "message").read_text()
    assert not list(store.iterdir())


def without_privileges():
    """What a superuser may beyond others is given up, so that access rights hold."""
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def test_a_read_only_store_is_read_but_refused_where_runs_are_missing(preset, configs, store, tmp_path):
    (store / configs[0].run_id).rename(tmp_path / "kept")
    store.chmod(0o555)
    assert swept_alone(preset, store, without_privileges) == 2
    assert "cannot be written: Permission denied" in (tmp_path / "message").read_text()
    store.chmod(0o755)
    (tmp_path / "kept").rename(store / configs[0].run_id)
    store.chmod(0o555)
    assert swept_alone(preset, store, without_privileges) == 0


def shorten(path):
    os.truncate(path, path.stat().st_size - 20)


def edit(path):
    text = path.read_text()
    path.write_text(text.replace('"value": ', '"value": 1'))
    assert path.read_text() != text


def another(path):
    config = json.loads(path.read_text())
    config["setup"]["training"]["epochs"] = 9
    path.write_text(json.dumps(config))


def a_file_instead(path):
    path.rename(path.with_name(".moved"))
    path.write_text("what is this?")


DAMAGES = {
    "absent result": ("result.json", os.unlink, "result.json: No such file"),
    "truncated result": ("result.json", shorten, "result.json is not as it was written"),
    "edited result": ("result.json", edit, "result.json is not as it was written"),
    "another configuration": ("config.json", another, "config.json is not as it was written"),
    "no digests": ("SHA256SUMS", os.unlink, "SHA256SUMS: No such file"),
    "bytes for digests": ("SHA256SUMS", lambda path: path.write_bytes(b"\xff\x00"), "can't decode"),
    "a file instead of a folder": ("", a_file_instead, "Not a directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_set_aside_and_computed_again(
    preset, configs, undisturbed, store, caplog, damage, monkeypatch
):
    name, harm, reason = DAMAGES[damage]
    run = Store(store).path(configs[1])
    harm(run / name)
    computed, original = [], launchers.run
    monkeypatch.setattr(
        launchers, "run", lambda spec, *rest, **more: computed.append(spec) or original(spec, *rest, **more)
    )
    sweep("nli", preset=preset, store=store, jobs=1, progress=False)
    assert computed == [configs[1].spec]
    assert configs[1].run_id in caplog.text
    assert reason in caplog.text
    assert repeatable(contents(store)) == repeatable(undisturbed)
    assert [path.name.startswith(configs[1].run_id) for path in (store / "damaged").iterdir()] == [True]


def test_a_run_under_another_name_is_not_taken_for_it(configs, store):
    runs = Store(store)
    os.rename(runs.path(configs[0]), runs.folder / "moved")
    os.rename(runs.path(configs[1]), runs.path(configs[0]))
    assert "another configuration" in runs.damage(configs[0])
    with pytest.raises(FlatlingoError, match=configs[0].run_id):
        runs.result(configs[0])


@pytest.mark.parametrize(
    ("harm", "reason"), [(os.unlink, "is missing"), (shorten, "cannot be read")], ids=["missing", "truncated"]
)
def test_lost_weights_are_told_and_the_result_is_used(preset, configs, store, caplog, harm, reason):
    harm(Store(store).path(configs[1]) / "model" / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        table = sweep("nli", preset=preset, store=store, progress=False)
    assert list(table["label"]) == ["none", "kl=0.6"]
    assert f"model.safetensors {reason}" in caplog.text
    assert configs[1].run_id in caplog.text


def test_foreign_files_are_left_alone_and_named(preset, undisturbed, store):
    (store / "notes.txt").write_text("mine")
    (store / "nli-none-s1-old").mkdir()
    sweep("nli", preset=preset, store=store, progress=False)
    (store / "calibration-nli.csv").write_text("mine, but such lie in stores")
    assert Store(store).foreign() == ["nli-none-s1-old", "notes.txt"]
    assert (store / "notes.txt").read_text() == "mine"
    assert contents(store) == undisturbed
