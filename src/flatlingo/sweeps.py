"""A sweep: the runs of a figure, computed where they are missing from a store."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from flatlingo import checkpoints, experiment, launchers, study
from flatlingo.errors import FlatlingoError, unknown
from flatlingo.experiment import RunConfig
from flatlingo.launchers import Job, Outcome
from flatlingo.paths import ROOT
from flatlingo.status import progress as show_progress
from flatlingo.store import open_store

LAUNCHERS = ("local", "slurm")
POLL_SECONDS = 1.0
Launch = Callable[[Job, list[RunConfig]], Iterator[Outcome]]
logger = logging.getLogger(__name__)


def sweep(
    figure: str,
    *,
    preset: str = "mini",
    store: str | Path | None = "recorded",
    seeds: int | list[int] | None = None,
    data: str | Path | None = None,
    model: str | None = None,
    launcher: str = "local",
    jobs: int | None = None,
    time_limit: int = 240,
    keep_weights: bool = True,
    checkpoint_minutes: float = checkpoints.MINUTES,
    tensorboard: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute the runs of a figure that are missing from a store, and return the table of all of them.

    May be killed at any moment and called again, and called several times at once on one store: finished runs are never
    computed again, each run is computed by one process at a time, and a run that was broken off goes on from its last
    checkpoint, to the same result. A run that is found damaged is set aside and computed again.

    Args:
        figure: "figure1", "figure2", "methods" or "beyond" (see `experiment.plan`).
        preset: "smoke", "mini", "paper", or a path to a YAML file.
        store: folder of finished runs; "recorded" reads the committed results and never computes.
        seeds: how many, or which; the preset's number by default.
        data: folder of real rows in XTREME layout instead of the mini world (see `experiment.plan`), relative to the
            checkout.
        model: another pre-trained model than the preset's.
        launcher: "local" (processes of this machine) or "slurm" (array jobs, see `launchers.slurm`).
        jobs: runs at a time; locally one a GPU or, without GPUs, one a core by default. Results do not depend on it: on
            CPU every run uses one thread.
        time_limit: of a SLURM job, in minutes.
        keep_weights: also store the fine-tuned weights of every run.
        checkpoint_minutes: between two checkpoints of a run; shorter runs write none. Results do not depend on it.
        tensorboard: folder for what TensorBoard shows of the trainings, one folder a run in it; None for nothing.
        progress: show a progress bar, or a line a minute where standard error is no terminal.

    Returns:
        One row a run; for figure 2, one row a run and target language (columns: see `study.table`).

    Raises:
        FlatlingoError: for bad input; if the recorded results lack runs; if the store cannot be written; or, after all
            runs were tried, if some failed: the message lists them with the logs to read.
    """
    if launcher not in LAUNCHERS:
        raise FlatlingoError(unknown("launcher", launcher, LAUNCHERS))
    settings = experiment.load_preset(preset)
    data = None if data is None else ROOT / Path(data).expanduser()
    configs = experiment.plan(figure, settings, seeds=seeds, data=data, model=model)
    runs = open_store(store, settings.name)
    missing = [config for config in configs if config not in runs]
    if missing and store in (None, "recorded"):
        raise FlatlingoError(
            f"{len(missing)} of {len(configs)} runs of {figure} are not among the recorded results of preset "
            f"{settings.name}, or damaged (first: {missing[0].run_id}); pass a store folder to compute them, "
            "or refresh the recorded results with `make record`"
        )
    if missing:
        study.check(missing[0], data)
        runs.refuse_unless_writable()
        for config in filter(runs.exists, missing):
            reason = runs.damage(config)
            logger.warning("run %s is damaged (%s): it is set aside and computed again", runs.path(config), reason)
        local, slurm = launchers.local, partial(launchers.slurm, time_limit=time_limit)
        launch = partial(local if launcher == "local" else slurm, jobs=jobs)
        board = None if tensorboard is None else ROOT / Path(tensorboard).expanduser()
        _compute(Job(runs, data, keep_weights, checkpoint_minutes, board), missing, launch, progress)
    for config in configs:
        runs.tidy(config)
        if reason := runs.lost_weights(config):
            logger.warning("run %s: %s; its result is whole and used", runs.path(config), reason)
    return study.table(configs, [runs.result(config) for config in configs])


def _compute(job: Job, missing: list[RunConfig], launch: Launch, progress: bool) -> None:
    """Compute what is missing, waiting for runs of other processes; a failing run does not stop the others."""
    failed = []
    with show_progress(missing, job.runs, shown=progress) as ended:
        todo = missing
        while todo:
            busy = []
            for outcome in launch(job, todo):
                if outcome.state == "busy":
                    busy.append(outcome.config)
                    continue
                ended(outcome)
                if outcome.state == "failed":
                    failed.append(outcome)
            todo = busy
            while todo and all(map(job.runs.is_owned, todo)):
                time.sleep(POLL_SECONDS)
    if failed:
        table = pd.DataFrame([[o.config.run_id, o.reason, job.runs.log(o.config)] for o in failed])
        table.columns = ["run", "why", "log"]
        with pd.option_context("display.max_colwidth", 200):
            raise FlatlingoError(
                f"{len(failed)} of {len(missing)} runs failed; the others are stored.\n{table.to_string(index=False)}"
            )
