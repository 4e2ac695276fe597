"""Launchers: one run per process, each with a GPU of its own, here or as the jobs of a cluster."""

import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment
from tiny import SIZES, resolved, sources_of, write_preset

from flatlingo.errors import FlatlingoError
from flatlingo.study import launchers
from flatlingo.study.launchers import Job, Outcome
from flatlingo.study.presets import Encoder, load_preset
from flatlingo.study.sources import Sources
from flatlingo.study.store import Store
from flatlingo.study.sweep import sweep


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """One run that succeeds and one that fails."""
    return write_preset(
        tmp_path_factory.mktemp("presets"),
        nli={"none": [0], "early_stopping": [0]},
        setup=SIZES | {"train_size": 32, "languages": ["en"]},
    )


@pytest.fixture(scope="module")
def sources(preset):
    return sources_of("nli", preset)


@pytest.fixture(scope="module")
def configs(preset):
    return resolved("nli", preset)


def test_a_job_computes_once_and_tells_failures(configs, sources, tmp_path):
    runs = Store(tmp_path)
    job = Job(runs, sources, keep_weights=False)
    assert job(configs[0]) == Outcome(configs[0], "done")
    before = (runs.path(configs[0]) / "environment.json").stat()
    assert job(configs[0]) == Outcome(configs[0], "done")
    assert (runs.path(configs[0]) / "environment.json").stat() == before
    failed = job(configs[1])
    assert failed.state == "failed"
    assert "patience" in failed.reason
    assert runs.log(configs[1]).read_text().splitlines()[-1].startswith(launchers.FAILED)


def test_a_job_keeps_the_memory_of_its_process_before_it_computes(configs, sources, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(launchers, "keep_memory", lambda: order.append("kept"))
    monkeypatch.setattr(launchers, "run", lambda *_, **__: order.append("ran"))
    Job(Store(tmp_path), sources, keep_weights=False)(configs[0])
    assert order == ["kept", "ran"]


def test_processes_that_are_killed_before_they_begin_end_in_failures(configs, sources, tmp_path, monkeypatch):
    def killed(_job, asked, *_):
        assert len(asked) > 0
        raise TerminatedWorkerError("memory ran out while libraries were loaded")
        yield

    monkeypatch.setattr(launchers, "_pool", killed)
    outcomes = list(launchers.local(Job(Store(tmp_path), sources, keep_weights=False), configs, jobs=2))
    assert outcomes == [Outcome(config, "failed", launchers.KILLED) for config in configs]


def test_a_job_leaves_a_run_to_its_owner(configs, sources, tmp_path):
    runs = Store(tmp_path)
    with runs.own(configs[0]):
        assert Job(runs, sources, keep_weights=False)(configs[0]).state == "busy"
    assert configs[0] not in runs


def test_jobs_of_a_cluster_report_what_became_of_their_runs(configs, sources, tmp_path, capfd):
    job = Job(Store(tmp_path), sources, keep_weights=False)
    outcomes = list(launchers.slurm(job, configs, cluster="debug"))
    assert {(outcome.config, outcome.state) for outcome in outcomes} == {(configs[0], "done"), (configs[1], "failed")}
    here = Job(Store(tmp_path / "here"), sources, keep_weights=False)
    assert here(configs[0]).state == "done"
    one, other = (runs.path(configs[0]) / "result.json" for runs in (job.runs, here.runs))
    assert one.read_bytes() == other.read_bytes(), "whatever the launcher"


def test_a_job_that_is_preempted_goes_back_into_the_queue_with_the_same_run(configs, sources, tmp_path):
    job = Job(Store(tmp_path), sources, keep_weights=False)
    again = pickle.loads(pickle.dumps(job.checkpoint(configs[0])))
    assert again.args == (configs[0],)
    assert again.function.runs.path(configs[0]) == job.runs.path(configs[0])


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The commands of a SLURM that takes jobs and never runs them."""
    (tmp_path / "bin").mkdir()
    scripts = {"sbatch": "cat $1 >> $0.log; echo Submitted batch job 4242", "sacct": "", "scontrol": "", "srun": ""}
    for name, line in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(launchers.submitit.helpers, "as_completed", lambda *_, **options: iter(()))  # nor wait for them
    return tmp_path


def submitted(folder, configs, sources, minutes):
    """What a job of the cluster is given, and the script that SLURM is."""
    job = Job(Store(folder / "store"), sources, keep_weights=False)
    assert list(launchers.slurm(job, configs[:1], time_limit=minutes)) == []
    (given,) = (folder / "store" / "logs" / "slurm").glob("4242*submitted.pkl")
    return DelayedSubmission.load(given), (folder / "bin" / "sbatch.log").read_text()


FORKED = """
import os, signal, sys
from flatlingo.study import launchers
signal.signal(signal.SIGUSR2, lambda *_: print("back into the queue", flush=True))
launchers._answer_alone()
if child := os.fork():
    os.waitpid(child, 0)
    os.kill(os.getpid(), signal.SIGUSR2)
else:
    os.kill(os.getpid(), signal.SIGUSR2)
    os._exit(0)
"""


def test_only_the_job_itself_answers_when_slurm_asks_it_to_stop():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["back into the queue"]


@pytest.mark.parametrize("minutes", [5, 10, 20, 60, 240])
def test_only_a_job_that_is_stopped_near_its_end_counts_as_out_of_time(cluster, configs, sources, minutes):
    delayed, script = submitted(cluster, configs, sources, minutes)
    assert f"#SBATCH --time={minutes}\n" in script
    assert f"@{90}" in script  # seconds before the end that SLURM asks the job to stop, or up to 60 earlier
    handler = SignalHandler(SlurmJobEnvironment(), None, delayed)
    out_of_time = []
    for worked in (1, 60 * (minutes - 4.5), 60 * minutes - 90 - 60, 60 * minutes - 90):
        handler._start_time -= worked
        out_of_time.append(handler.has_timed_out())
        handler._start_time += worked
    assert out_of_time == [False, False, True, True]


def test_jobs_that_slurm_refuses_are_told_in_its_words(cluster, configs, sources):
    sbatch = cluster / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpux' >&2\nexit 1\n")
    job = Job(Store(cluster / "store"), sources, keep_weights=False)
    with pytest.raises(FlatlingoError, match="SLURM does not take the jobs: sbatch: error: invalid partition"):
        next(launchers.slurm(job, configs))


def test_a_short_job_writes_checkpoints_before_it_is_stopped(cluster, configs, sources):
    delayed, _ = submitted(cluster, configs, sources, 8)
    assert delayed.function.checkpoint_minutes < 8 - 2.5


@pytest.mark.parametrize(
    ("store", "minutes", "message"),
    [("100%", 240, "SLURM replaces what follows %"), ("store", 4, "give --time-limit 5 or more")],
    ids=["a path with %", "four minutes"],
)
def test_what_slurm_cannot_do_is_told_before_a_job_is_sent(cluster, configs, sources, store, minutes, message):
    job = Job(Store(cluster / store), sources, keep_weights=False)
    with pytest.raises(FlatlingoError, match=message):
        next(launchers.slurm(job, configs, time_limit=minutes))
    assert not (cluster / "bin" / "sbatch.log").exists()


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [
        (["2", "5"], 2, ["2", "5"]),
        (["0"], 4, ["0", "0", "0", "0"]),
        (["2", "5"], 4, ["2", "2", "5", "5"]),
        (["MIG-a", "MIG-b"], 2, ["MIG-a", "MIG-b"]),
    ],
    ids=["one each", "four share one", "four share two", "MIG slices"],
)
def test_the_processes_of_a_pool_share_the_gpus_and_a_dead_one_gives_its_back(
    tmp_path, monkeypatch, gpus, workers, expected
):
    context = multiprocessing.get_context("fork")
    seen = context.Queue()
    monkeypatch.setattr(launchers.torch.cuda, "is_available", lambda: True)

    def target():
        launchers._held.clear()
        told = lambda _: Outcome(None, "done", os.environ["CUDA_VISIBLE_DEVICES"])  # noqa: E731
        work = launchers._Worker(told, os.getppid(), gpus, tmp_path)
        assert work(None) == work(None)
        seen.put(work(None).reason)
        while True:
            work(None)

    def started():
        process = context.Process(target=target, daemon=True)
        process.start()
        return process, seen.get(timeout=60)

    processes, found = zip(*(started() for _ in range(workers)), strict=True)
    assert sorted(found) == expected
    processes[0].kill()
    processes[0].join()
    another, again = started()
    assert again == found[0]
    for process in (*processes, another):
        process.kill()
        process.join()


def test_a_gpu_that_cannot_be_used_is_a_failure_and_not_a_run_on_the_cpu(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "_held", [None])  # as if it had taken its device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-gone")
    monkeypatch.setattr(launchers.torch.cuda, "is_available", lambda: False)
    work = launchers._Worker(lambda _: pytest.fail("computed"), os.getppid(), ["MIG-gone"], tmp_path)
    outcome = work(configs[0])
    assert outcome.state == "failed"
    assert "the GPU MIG-gone" in outcome.reason


def test_the_only_gpu_that_cuda_cannot_use_is_refused_and_not_left_for_the_cpu(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "_gpus", lambda: ["0"])
    monkeypatch.setattr(launchers.torch.cuda, "is_available", lambda: False)
    with pytest.raises(FlatlingoError, match="counts a GPU that CUDA cannot use"):
        next(launchers.local(Job(Store(tmp_path), None, keep_weights=False), configs[:1]))


def failing(runs):
    """A job whose run fails because its GPU has."""
    job = Job(runs, None, keep_weights=False)
    object.__setattr__(job, "_compute", lambda config: Outcome(config, "failed", "CUDA error: illegal memory access"))
    return job


def test_a_process_whose_gpu_has_failed_ends_and_its_run_is_one_to_be_repeated(configs, tmp_path, monkeypatch):
    """All later runs of the process would fail; `local` repeats those whose owner has died, once."""
    monkeypatch.setattr(launchers.devices, "is_broken", lambda: True)
    monkeypatch.setattr(launchers, "_held", [None])
    runs = Store(tmp_path)
    work = launchers._Worker(failing(runs), os.getppid(), [], tmp_path)
    process = multiprocessing.get_context("fork").Process(target=work, args=(configs[0],))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 1
    assert runs.owner(configs[0])["alive"] is False


def test_a_sweep_in_one_process_ends_when_its_gpu_has_failed(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "_gpus", lambda: ["0"])
    monkeypatch.setattr(launchers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launchers.devices, "is_broken", lambda: True)
    with pytest.raises(
        FlatlingoError, match=r"the GPU failed during .*illegal memory access.*call the sweep once more"
    ):
        list(launchers.local(failing(Store(tmp_path)), configs))


def test_a_failure_that_leaves_the_gpu_whole_does_not_stop_the_others(configs, tmp_path):
    outcomes = list(launchers.local(failing(Store(tmp_path)), configs, 1))
    assert [outcome.state for outcome in outcomes] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("initialized", "error", "broken"),
    [(False, None, False), (True, None, False), (True, "CUDA error: unspecified launch failure", True)],
    ids=["not used", "works", "failed"],
)
def test_a_gpu_that_answers_no_more_is_found_out(monkeypatch, initialized, error, broken):
    def synchronize():
        if not initialized or error:
            raise RuntimeError(error)

    monkeypatch.setattr(launchers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launchers.torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(launchers.torch.cuda, "synchronize", synchronize)
    assert launchers.devices.is_broken() is broken


ASKED = """
import torch
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init", "get_device_capability", "current_device"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name) or 0)
import flatlingo.study.launchers, flatlingo.study.sweep
assert not asked, asked
"""


def test_loading_the_package_asks_for_no_gpu_so_that_each_process_may_choose_its_own():
    """CUDA reads CUDA_VISIBLE_DEVICES once, when it is first asked for anything."""
    subprocess.run(
        [sys.executable, "-c", ASKED], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )


@pytest.mark.parametrize(
    ("variable", "count", "gpus"),
    [
        ("", 2, ["0", "1"]),
        ("3,5", 2, ["3", "5"]),
        ("3, 5", 2, ["3", "5"]),
        ("0,-1,1", 1, ["0"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),
        ("", 0, []),
        ("MIG-a", 0, []),
    ],
    ids=["all", "chosen", "spaces", "up to an invalid one", "by name", "MIG slices", "none", "a driver that fails"],
)
def test_only_visible_gpus_are_shared_out(monkeypatch, variable, count, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setattr(launchers.torch.cuda, "device_count", lambda: count)
    assert launchers._gpus() == gpus


@pytest.mark.parametrize("jobs", [None, 4])
def test_one_gpu_takes_one_run_at_a_time_or_as_many_as_asked_for(configs, sources, tmp_path, monkeypatch, jobs):
    """The pool itself is imitated: it would need a device."""
    asked = []
    monkeypatch.setattr(launchers, "_gpus", lambda: ["0"])
    monkeypatch.setattr(launchers, "_pool", lambda *arguments: asked.append(arguments[2:]) or iter(()))
    many = list(itertools.chain.from_iterable(itertools.repeat(configs, 4)))
    assert list(launchers.local(Job(Store(tmp_path), sources, keep_weights=False), many, jobs)) == []
    assert asked == [(jobs or 1, ["0"])]


def test_an_encoder_that_needs_a_gpu_is_refused_before_anything_is_loaded(preset, configs, tmp_path, monkeypatch):
    for asked in ("load_tokenizer", "load_model"):
        monkeypatch.setattr(f"flatlingo.models.{asked}", lambda *_, **__: pytest.fail("loaded"))
    large = Sources(Encoder(source="mini-mbert", needs_gpu=True), "mini-nli")
    with pytest.raises(FlatlingoError, match=r"training mini-mbert needs a GPU, and torch .* set FLATLINGO_CPU=1"):
        large.check(configs[0])
    outcome = Job(Store(tmp_path), large, keep_weights=False)(configs[0])
    assert outcome.state == "failed", "as on a node of a cluster"
    assert "needs a GPU" in outcome.reason


def test_an_encoder_that_needs_a_gpu_is_trained_on_the_cpu_if_one_says_so(configs, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATLINGO_CPU", "1")
    large = Sources(Encoder(source="mini-mbert", needs_gpu=True), "mini-nli")
    large.check(configs[0])
    assert Job(Store(tmp_path), large, keep_weights=False)(configs[0]).state == "done"


@pytest.mark.parametrize(("preset", "large"), [("mini", False), ("small", False), ("paper", True), ("xlmr", True)])
def test_the_encoders_of_the_papers_size_need_a_gpu(preset, large):
    assert load_preset(preset).encoder.needs_gpu is large


def test_an_unknown_launcher_is_refused(tmp_path):
    with pytest.raises(FlatlingoError, match="did you mean 'slurm'"):
        sweep("nli", preset="smoke", store=tmp_path, launcher="slurn")
