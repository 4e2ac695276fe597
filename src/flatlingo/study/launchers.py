"""How the runs of a sweep get to processes: on this machine, or as array jobs of a SLURM cluster."""

import functools
import itertools
import math
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import filelock
import joblib
import submitit
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from submitit.core.utils import UncompletedJobError
from transformers import TrainerCallback

from flatlingo import devices
from flatlingo.checkpoints import MINUTES
from flatlingo.devices import device_name, keep_memory
from flatlingo.errors import DivergedError, FlatlingoError, first_line
from flatlingo.study.outcome import FAILED, Outcome
from flatlingo.study.run import run
from flatlingo.study.runspec import RunConfig
from flatlingo.study.sources import Sources
from flatlingo.study.store import LOGS, Store
from flatlingo.watching import MinuteLines, tensorboard_in

PACKAGES = ("flatlingo", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")
POLL_SECONDS = 5
# A job is asked to stop 90 s before its time is over; SLURM may ask 60 s earlier, and the run takes some to begin.
STOPPING_MINUTES = 4
STOP = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")  # what submitit has SLURM send
KILLED = "its process was killed, as the system does when memory runs out, or its GPU failed twice (its log tells)"


@dataclass(frozen=True)
class Job:
    """Computes one run into a store, in whatever process it is called. Never raises for a run that fails.

    The process keeps the memory that it frees until it ends, see `devices.keep_memory`.

    Args:
        runs: the store.
        sources: where encoder and rows lie.
        keep_weights: also store the fine-tuned weights.
        checkpoint_minutes: between two checkpoints of a run.
        tensorboard: folder for what TensorBoard shows, one folder per run in it; None for nothing.
    """

    runs: Store
    sources: Sources
    keep_weights: bool
    checkpoint_minutes: float = MINUTES
    tensorboard: Path | None = None

    def __call__(self, config: RunConfig) -> Outcome:
        """Compute the run unless it is in the store or another process owns it."""
        try:
            with self.runs.own(config):
                return Outcome(config, "done") if config in self.runs else self._compute(config)
        except filelock.Timeout:
            return Outcome(config, "busy")
        except OSError as error:
            return Outcome(config, "failed", f"{error.filename or self.runs.folder}: {error.strerror}")

    def checkpoint(self, config: RunConfig) -> submitit.helpers.DelayedSubmission:
        """What submitit requeues when a job is preempted or out of time: the run, which goes on from its checkpoint."""
        return submitit.helpers.DelayedSubmission(self, config)

    def _compute(self, config: RunConfig) -> Outcome:
        keep_memory()
        _answer_alone()
        if self.runs.exists(config):
            self.runs.set_aside(config)
        log = self.runs.log(config)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", buffering=1, encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                print(
                    f"{_now()} {config.run_id} on {socket.gethostname()}, process {os.getpid()}, {device_name()}, "
                    f"cores: {devices.cores()}"
                )
                started = time.perf_counter()
                finished = run(
                    config.spec,
                    self.sources,
                    work=self.runs.work(config),
                    checkpoint_minutes=self.checkpoint_minutes,
                    callbacks=self._callbacks(config),
                )
                kept = (finished.model, finished.tokenizer) if self.keep_weights else ()
                self.runs.write(config, finished.result, _environment(started), finished.rows, *kept)
            except DivergedError as error:  # a result too, and the same on every repetition
                self.runs.write(config, {"diverged": str(error)}, _environment(started))
            except Exception as error:
                traceback.print_exc()
                reason = first_line(error)
                print(f"{FAILED}{_now()} {reason}")
                return Outcome(config, "failed", reason)
        log.unlink(missing_ok=True)
        return Outcome(config, "done")

    def _callbacks(self, config: RunConfig) -> list[TrainerCallback]:
        """What is written while a run trains: a line per minute into its log, and for TensorBoard if asked for."""
        boards = [tensorboard_in(self.tensorboard / config.run_id)] if self.tensorboard else []
        return [MinuteLines(), *boards]


@functools.cache
def _answer_alone() -> None:
    """Leave the signal by which SLURM asks a job to stop to this process.

    Those that it forks, which draw views for a GPU, would inherit submitit's answer and put the job back into the queue
    in its place.
    """
    if callable(signal.getsignal(STOP)):
        os.register_at_fork(after_in_child=lambda: signal.signal(STOP, signal.SIG_IGN))


def _environment(started: float) -> dict:
    """What a run was computed with, and the seconds since `started`."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "device": device_name(),
        "seconds": round(time.perf_counter() - started, 1),
    }


def local(job: Job, configs: list[RunConfig], jobs: int | None = None) -> Iterator[Outcome]:
    """Compute runs on this machine, several at a time, one torch thread each; outcomes come as runs end.

    Where there are CUDA devices every process sees one of them only; more runs at a time than devices share them
    evenly, so that several small runs fill one big GPU. `CUDA_VISIBLE_DEVICES` says which are used, MIG slices too.

    If the system kills a process (memory ran out), the runs that were under way are repeated one at a time, so that
    only the one that was the cause fails. A process whose GPU has failed ends too, since all runs after it would fail.

    Args:
        job: what to do with a run.
        configs: the runs.
        jobs: runs at a time; one per GPU or, without GPUs, one per core by default. With one, they are computed in the
            calling process.

    Raises:
        FlatlingoError: if the GPU of the calling process has failed.
    """
    gpus = _gpus()
    jobs = jobs or len(gpus) or joblib.cpu_count()
    left = {config.run_id: config for config in configs}
    try:
        for outcome in _pool(job, configs, min(jobs, len(configs)), gpus):
            del left[outcome.config.run_id]
            yield outcome
        return
    except TerminatedWorkerError:
        begun = [config for config in left.values() if job.runs.owner(config)]
        begun = begun or list(left.values())[:1]  # killed before any began
    for config in begun:
        del left[config.run_id]
        try:
            yield from _pool(job, [config], 2, gpus)  # two, since one would be this process
        except TerminatedWorkerError:
            yield Outcome(config, "failed", KILLED)
    if left:
        yield from local(job, list(left.values()), jobs)


def slurm(
    job: Job, configs: list[RunConfig], jobs: int | None = None, *, time_limit: int = 240, cluster: str = "slurm"
) -> Iterator[Outcome]:
    """Compute runs as the jobs of one SLURM array, one run per job; outcomes come as jobs end.

    Partition, account, GPUs, memory and whatever else the cluster wants come from sbatch's own variables
    (`SBATCH_PARTITION`, `SBATCH_ACCOUNT`, `SBATCH_GPUS_PER_NODE=1`, `SBATCH_CPUS_PER_GPU=5`, `SBATCH_MEM_PER_NODE`, …);
    up to four cores draw perturbed views beside a GPU. The store and the Python environment must lie on a file system
    that the nodes share. A job that is preempted, or within 90 s of its time limit, goes back into the queue and later
    goes on from its last checkpoint; one that is out of time for the fourth time fails. Preemptions are not counted.

    Args:
        job: what to do with a run.
        configs: the runs.
        jobs: jobs at a time; no limit by default.
        time_limit: of a job, in minutes; runs write at least two checkpoints in it.
        cluster: "slurm", or submitit's "local" or "debug" to try it without one.

    Raises:
        FlatlingoError: for a time limit in which no run could go on, a path that SLURM would read as a pattern, or jobs
            that SLURM refuses.
    """
    folder = job.runs.folder.resolve() / LOGS / "slurm"
    if "%" in str(folder):
        raise FlatlingoError(f"store {job.runs.folder}: SLURM replaces what follows % in a path; give a store without")
    if time_limit <= STOPPING_MINUTES:
        raise FlatlingoError(
            f"a time limit of {time_limit} minutes leaves a SLURM job no time to train: it is asked to stop up to 2.5 "
            f"minutes before its end; give --time-limit {STOPPING_MINUTES + 1} or more"
        )
    working = time_limit - STOPPING_MINUTES
    job = replace(job, checkpoint_minutes=min(job.checkpoint_minutes, working / 3))
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(
            name=f"flatlingo-{configs[0].plan}",
            timeout_min=_minutes_for_submitit(working),
            slurm_additional_parameters={"time": time_limit},
            slurm_array_parallelism=jobs or len(configs),
        )
        submitted = executor.map_array(job, configs)
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise FlatlingoError(f"SLURM does not take the jobs: {first_line(error)}") from error
    of = {task.job_id: config for task, config in zip(submitted, configs, strict=True)}
    for task in submitit.helpers.as_completed(submitted, poll_frequency=POLL_SECONDS):
        try:
            yield task.result()
        except (UncompletedJobError, submitit.core.utils.FailedJobError) as error:
            yield Outcome(of[task.job_id], "failed", f"{first_line(error)} (see {task.paths.stderr})")


def _minutes_for_submitit(working: float) -> int:
    """The time limit by which submitit takes a job that is stopped after `working` minutes to be out of time.

    It takes it so after 80 % of the limit, or ten minutes before its end if that is earlier; and any job whose limit is
    ten minutes or less, whenever it is stopped.
    """
    return math.ceil(max(working / 0.8, working + 10))


def _here(job: Job, config: RunConfig) -> Outcome:
    """Compute a run in this process.

    Raises:
        FlatlingoError: if its GPU has failed, since every further run would fail.
    """
    outcome = job(config)
    if outcome.state == "failed" and devices.is_broken():
        raise FlatlingoError(
            f"the GPU failed during {config.run_id} ({outcome.reason}), and only a new process can use it again; the "
            "runs before are stored: call the sweep once more, and if it fails again, look at `nvidia-smi`"
        )
    return outcome


def _pool(job: Job, configs: list[RunConfig], workers: int, gpus: list[str]) -> Iterator[Outcome]:
    if workers == 1:
        if gpus and not torch.cuda.is_available():  # it would train on the CPU instead
            raise FlatlingoError(
                "the driver counts a GPU that CUDA cannot use (is it too old for this PyTorch?): mend that, or set "
                "CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU"
            )
        yield from map(partial(_here, job), configs)
        return
    with tempfile.TemporaryDirectory(prefix="flatlingo-") as slots:
        work = _Worker(job, os.getpid(), gpus, Path(slots))
        with joblib.parallel_config("loky", inner_max_num_threads=1):
            parallel = joblib.Parallel(workers, return_as="generator_unordered", batch_size=1)
            outcomes = parallel(joblib.delayed(work)(config) for config in configs)
        try:
            yield from outcomes
        finally:
            if gpus:  # a process keeps the device that it has seen first
                get_reusable_executor().shutdown(wait=True)


@dataclass(frozen=True)
class _Worker:
    """Calls a job in a process of a pool, which sees a GPU of its own and ends when the process of the sweep does."""

    job: Job
    parent: int
    gpus: list[str]
    slots: Path

    def __call__(self, config: RunConfig) -> Outcome:
        if not _held:
            threading.Thread(target=self._end_with_parent, daemon=True).start()
            _held.append(self._claim_gpu() if self.gpus else None)
        if self.gpus and not torch.cuda.is_available():  # it would train on the CPU instead
            chosen = os.environ["CUDA_VISIBLE_DEVICES"]
            return Outcome(config, "failed", f"no process can use the GPU {chosen} that CUDA_VISIBLE_DEVICES names")
        outcome = self.job(config)
        if outcome.state == "failed" and devices.is_broken():
            with self.job.runs.own(config):  # as if it were killed: it is repeated once, in a new process
                os._exit(1)
        return outcome

    def _end_with_parent(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(1)
        os._exit(1)

    def _claim_gpu(self) -> filelock.FileLock:
        for number in itertools.count():
            lock = filelock.FileLock(self.slots / str(number), timeout=0)
            with suppress(filelock.Timeout):
                lock.acquire()
                os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
                return lock


# What this process of a pool holds as long as it lives.
_held: list[filelock.FileLock | None] = []


def _gpus() -> list[str]:
    """The devices that CUDA_VISIBLE_DEVICES lets this process see, or all.

    Of several MIG slices a process sees the first only, and each process of a pool may have another.
    """
    count = torch.cuda.device_count()
    chosen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not chosen:
        return [str(number) for number in range(count)]
    return chosen if count and chosen[0].startswith("MIG-") else chosen[:count]


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
