"""A sweep: the runs of a plan, computed where they are missing from a store."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from flatlingo.errors import FlatlingoError, unknown
from flatlingo.files import ROOT, refuse_unwritable
from flatlingo.study.presets import Preset, expand, load_preset
from flatlingo.study.runspec import RunConfig, RunSpec
from flatlingo.study.status import progress as show_progress
from flatlingo.study.store import Store, open_store
from flatlingo.study.table import table

if TYPE_CHECKING:  # what computes runs is imported when a run is missing
    from flatlingo.study.launchers import Job
    from flatlingo.study.outcome import Outcome
    from flatlingo.study.sources import Sources

LAUNCHERS = ("local", "slurm")
POLL_SECONDS = 1.0
logger = logging.getLogger(__name__)


def sweep(
    plan: str,
    *,
    preset: str = "mini",
    store: str | Path = "recorded",
    seeds: int | list[int] | None = None,
    task: str | Path | None = None,
    data: str | Path | None = None,
    model: str | Path | None = None,
    launcher: str = "local",
    jobs: int | None = None,
    time_limit: int = 240,
    keep_weights: bool = True,
    checkpoint_minutes: float = 5.0,
    tensorboard: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute the runs of a plan that are missing from a store, and return the table of all of them.

    May be killed at any moment and called again, and called several times at once on one store: finished runs are never
    computed again, each run is computed by one process at a time, and a run that was broken off goes on from its last
    checkpoint, to the same result (on a GPU but for rounding). A run that is found damaged is set aside and computed
    again. A run whose loss became infinite or NaN is stored as such, told in a warning, and left out of the table.

    Args:
        plan: "nli" or "paraphrase" (the two studies), or another of `runspec.PLANS` that the preset has.
        preset: "smoke", "quick", "mini", "small", "paper", "xlmr", or a path to a YAML file.
        store: folder of finished runs; "recorded" reads the committed results, which takes neither the encoder nor the
            rows, and never computes.
        seeds: how many, or which; by default as many as the preset plans, and of the recorded every seed that has a run
            of each condition (`recorded_runs`).
        task: another task than the plan's: a name, or the path of a description (`flatlingo.tasks`).
        data: folder of the task's rows, relative to the checkout. A task of the mini world is then replaced by the real
            one of its kind.
        model: another encoder than the preset's: a folder or a Hub id.
        launcher: "local" (processes of this machine) or "slurm" (array jobs, see `launchers.slurm`).
        jobs: runs at a time; locally one per GPU or, without GPUs, one per core by default. Results do not depend on
            it: on CPU every run uses one thread.
        time_limit: of a SLURM job, in minutes.
        keep_weights: also store the fine-tuned weights of every run.
        checkpoint_minutes: between two checkpoints of a run; shorter runs write none. Results do not depend on it.
        tensorboard: folder for what TensorBoard shows of the trainings, one folder per run in it; None for nothing.
        progress: show a progress bar, or a line per minute where standard error is no terminal.

    Returns:
        One row per run or, with a second stage, one row per run and target language; columns: `study.table`.

    Raises:
        FlatlingoError: for bad input; if the recorded results lack runs; if the store cannot be written; or, after all
            runs were tried, if some failed: the message lists them with the logs to read.
    """
    settings = load_preset(preset)
    runs = open_store(store, settings.name)
    if store == "recorded":
        if others := [name for name, value in {"task": task, "data": data, "model": model}.items() if value]:
            raise FlatlingoError(
                f"the recorded results are of preset {settings.name}'s own encoder and rows, not of another "
                f"{others[0]}; pass a store folder"
            )
        complete = recorded_runs(plan, settings, runs) if seeds is None else {}
        configs = list(itertools.chain(*complete.values())) or _recorded(
            expand(plan, settings, seeds=seeds), runs, settings
        )
    else:
        computing = Computing(launcher, jobs, time_limit, keep_weights, checkpoint_minutes, tensorboard, progress)
        sources = computing.sources(settings, plan, model=model, task=task, data=data)
        configs = computing.complete(sources.specs(plan, settings, seeds), sources, runs)
    for config in configs:
        if reason := runs.lost_weights(config):
            logger.warning("run %s: %s; its result is whole and used", runs.path(config), reason)
    return tabulated(configs, runs)


def tabulated(configs: list[RunConfig], runs: Store) -> pd.DataFrame:
    """The table of finished runs, without those that diverged, which a warning names.

    Raises:
        FlatlingoError: if every run diverged, or one is damaged.
    """
    kept, results = [], []
    for config in configs:
        result = runs.result(config)
        if reason := result.get("diverged"):
            logger.warning("run %s is left out: %s", config.run_id, reason)
        else:
            kept.append(config)
            results.append(result)
    if not kept:
        raise FlatlingoError(f"all {len(configs)} runs of {configs[0].plan} diverged (last: {reason})")
    return table(kept, results)


@dataclass(frozen=True)
class Computing:
    """How missing runs are computed; arguments as for `sweep`."""

    launcher: str = "local"
    jobs: int | None = None
    time_limit: int = 240
    keep_weights: bool = True
    checkpoint_minutes: float = 5.0
    tensorboard: str | Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.launcher not in LAUNCHERS:
            raise FlatlingoError(unknown("launcher", self.launcher, LAUNCHERS))

    def sources(self, preset: Preset, plan: str, **where: object) -> "Sources":
        """Where encoder and rows of a preset's plan lie, see `Sources.of`."""
        # Here, because it loads the libraries that train, which reading recorded results does without.
        from flatlingo.study.sources import Sources

        return Sources.of(preset, plan, **where)

    def complete(self, specs: list[RunSpec], sources: "Sources", runs: Store) -> list[RunConfig]:
        """Compute what is missing from a store; the configurations of all runs, in order.

        Raises:
            FlatlingoError: as `sweep`.
        """
        configs = _resolved(sources, specs, runs)
        missing = [config for config in configs if config not in runs]
        if missing:
            from flatlingo.devices import refuse_several_processes
            from flatlingo.study import launchers

            refuse_several_processes("a sweep")
            sources.check(missing[0], here=self.launcher == "local")
            _prepare(runs, missing)
            board = None if self.tensorboard is None else ROOT / Path(self.tensorboard).expanduser()
            job = launchers.Job(runs, sources, self.keep_weights, self.checkpoint_minutes, board)
            slurm = partial(launchers.slurm, time_limit=self.time_limit)
            launch = launchers.local if self.launcher == "local" else slurm
            _compute(job, missing, partial(launch, jobs=self.jobs), self.progress)
        for config in configs:
            runs.tidy(config)
        return configs


def recorded_runs(plan: str, preset: Preset, runs: Store) -> dict[int, list[RunConfig]]:
    """The runs of the seeds 1, 2, … of which a store has every condition of a plan; a warning names incomplete ones.

    The first seed without any run ends the search.
    """
    complete = {}
    for seed in itertools.count(1):
        specs = expand(plan, preset, seeds=[seed])
        found = [config for config in map(runs.find, specs) if config]
        if not found:
            return complete
        if len(found) == len(specs):
            complete[seed] = found
        else:
            logger.warning(
                "seed %d of plan %s is left out: %d of its %d runs are there", seed, plan, len(found), len(specs)
            )


def _recorded(specs: list[RunSpec], runs: Store, preset: Preset) -> list[RunConfig]:
    found = [runs.find(spec) for spec in specs]
    if None in found:
        missing = [spec for spec, config in zip(specs, found, strict=True) if config is None]
        raise FlatlingoError(
            f"{len(missing)} of {len(specs)} runs of {specs[0].plan} are not among the recorded results of preset "
            f"{preset.name}, or damaged (first: {missing[0].name}); pass a store folder to compute them, or refresh "
            "the recorded results with `make record`"
        )
    return found


def _resolved(sources: "Sources", specs: list[RunSpec], runs: Store) -> list[RunConfig]:
    """The configurations; where encoder or rows are not at hand, those of the store, if it has every run."""
    try:
        return sources.resolve(specs)
    except FlatlingoError as error:
        found = [runs.find(spec) for spec in specs]
        if None in found:
            raise
        logger.warning("the stored runs are read without checking encoder and rows: %s", error)
        return found


def _prepare(runs: Store, missing: list[RunConfig]) -> None:
    refuse_unwritable(runs.folder, f"store {runs.folder}")
    for config in filter(runs.exists, missing):
        reason = runs.damage(config)
        logger.warning("run %s is damaged (%s): it is set aside and computed again", runs.path(config), reason)


def _compute(job: "Job", missing: list[RunConfig], launch: Callable[..., Iterator["Outcome"]], progress: bool) -> None:
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
