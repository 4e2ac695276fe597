"""Launchers: one run a process, each with a GPU of its own, here or as the jobs of a cluster."""

import multiprocessing
import os
import pickle

import pytest
from tiny import SIZES, write_preset

from flatlingo import experiment, launchers
from flatlingo.errors import FlatlingoError
from flatlingo.launchers import Job, Outcome
from flatlingo.store import Store
from flatlingo.sweeps import sweep


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """One run that succeeds and one that fails."""
    path = write_preset(
        tmp_path_factory.mktemp("presets"),
        figure1={"none": [0], "l2": [1e38]},
        study=SIZES | {"train_size": 32, "languages": ["en"]},
    )
    return experiment.plan("figure1", experiment.load_preset(path))


def test_a_job_computes_once_and_tells_failures(configs, tmp_path):
    runs = Store(tmp_path)
    job = Job(runs, None, keep_weights=False)
    assert job(configs[0]) == Outcome(configs[0], "done")
    before = (runs.path(configs[0]) / "environment.json").stat()
    assert job(configs[0]) == Outcome(configs[0], "done")
    assert (runs.path(configs[0]) / "environment.json").stat() == before
    failed = job(configs[1])
    assert failed.state == "failed"
    assert "not finite" in failed.reason
    assert runs.log(configs[1]).read_text().splitlines()[-1].startswith(launchers.FAILED)


def test_a_job_leaves_a_run_to_its_owner(configs, tmp_path):
    runs = Store(tmp_path)
    with runs.own(configs[0]):
        assert Job(runs, None, keep_weights=False)(configs[0]).state == "busy"
    assert configs[0] not in runs


def test_jobs_of_a_cluster_report_what_became_of_their_runs(configs, tmp_path, capfd):
    job = Job(Store(tmp_path), None, keep_weights=False)
    outcomes = list(launchers.slurm(job, configs, cluster="debug"))
    assert {(outcome.config, outcome.state) for outcome in outcomes} == {(configs[0], "done"), (configs[1], "failed")}
    here = Job(Store(tmp_path / "here"), None, keep_weights=False)
    assert here(configs[0]).state == "done"
    one, other = (runs.path(configs[0]) / "result.json" for runs in (job.runs, here.runs))
    assert one.read_bytes() == other.read_bytes(), "whatever the launcher"


def test_a_job_that_is_preempted_goes_back_into_the_queue_with_the_same_run(configs, tmp_path):
    job = Job(Store(tmp_path), None, keep_weights=False)
    again = pickle.loads(pickle.dumps(job.checkpoint(configs[0])))
    assert again.args == (configs[0],)
    assert again.function.runs.path(configs[0]) == job.runs.path(configs[0])


def test_every_process_of_a_pool_sees_a_gpu_of_its_own_and_a_dead_one_gives_its_back(tmp_path):
    context = multiprocessing.get_context("fork")
    seen = context.Queue()

    def target():
        launchers._held.clear()
        work = launchers._Worker(lambda _: os.environ["CUDA_VISIBLE_DEVICES"], os.getppid(), ["2", "5"], tmp_path)
        assert work(None) == work(None)
        seen.put(work(None))
        while True:
            work(None)

    def started():
        process = context.Process(target=target, daemon=True)
        process.start()
        return process, seen.get(timeout=60)

    (first, one), (second, other) = started(), started()
    assert {one, other} == {"2", "5"}
    first.kill()
    first.join()
    third, again = started()
    assert again == one
    for process in (second, third):
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("variable", "count", "gpus"),
    [("", 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]), ("", 0, [])],
    ids=["all", "chosen", "by name", "none"],
)
def test_only_visible_gpus_are_shared_out(monkeypatch, variable, count, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    monkeypatch.setattr(launchers.torch.cuda, "device_count", lambda: count)
    assert launchers._gpus() == gpus


def test_an_unknown_launcher_is_refused(tmp_path):
    with pytest.raises(FlatlingoError, match="did you mean 'slurm'"):
        sweep("figure1", preset="smoke", store=tmp_path, launcher="slurn")
