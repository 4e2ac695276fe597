"""A store of finished runs, and the sweep that computes what is missing from it."""

import json
import os
import shutil
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import joblib
import pandas as pd
import torch
from tqdm import tqdm

from flatlingo import experiment, study
from flatlingo.errors import FlatlingoError
from flatlingo.experiment import RunConfig
from flatlingo.paths import RECORDED, ROOT

PACKAGES = ("flatlingo", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


class Store:
    """A folder of finished runs, one folder a run.

    A run's folder holds `config.json`, `result.json` (both the same on every repetition), `environment.json`
    (versions, device, seconds) and, unless discarded, `model/` with the English fine-tuned weights and the tokenizer.
    It is written under a temporary name and renamed when complete, so a folder that exists is a finished run.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __contains__(self, config: RunConfig) -> bool:
        return self.path(config).is_dir()

    def path(self, config: RunConfig) -> Path:
        """Where the run lies, or will."""
        return self.folder / config.run_id

    def result(self, config: RunConfig) -> dict:
        """The result of a finished run.

        Raises:
            FlatlingoError: if the run's files are missing, unreadable or belong to another configuration.
        """
        path = self.path(config)
        try:
            stored = RunConfig.model_validate_json((path / "config.json").read_text(encoding="utf-8"))
            result = json.loads((path / "result.json").read_text(encoding="utf-8"))
            environment = json.loads((path / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FlatlingoError(f"run {path} is damaged ({error}); delete its folder and sweep again") from error
        if stored != config:
            raise FlatlingoError(f"run {path} holds another configuration than its name says; delete its folder")
        return result | {"seconds": environment["seconds"]}

    def write(self, config: RunConfig, result: dict, environment: dict, model=None, tokenizer=None) -> Path:
        """Add a finished run; if another process was faster, its folder stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{config.run_id}-", dir=self.folder))
        try:
            _dump(temporary / "config.json", config.model_dump(mode="json"))
            _dump(temporary / "result.json", result)
            _dump(temporary / "environment.json", environment)
            if model is not None:
                model.save_pretrained(temporary / "model")
                tokenizer.save_pretrained(temporary / "model")
            temporary.chmod(0o755)
            try:
                os.rename(temporary, self.path(config))
            except OSError:
                if config not in self:
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return self.path(config)


def _dump(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def open_store(store: str | Path | None, preset: str) -> Store:
    """`"recorded"`: the committed results of a preset; otherwise the folder named, relative to the checkout."""
    if store in (None, "recorded"):
        return Store(RECORDED / preset)
    return Store(ROOT / Path(store).expanduser())


def sweep(
    figure: str,
    *,
    preset: str = "mini",
    store: str | Path | None = "recorded",
    seeds: int | list[int] | None = None,
    data: str | Path | None = None,
    model: str | None = None,
    jobs: int | None = None,
    keep_weights: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Compute the runs of a figure that are missing from a store, and return the table of all of them.

    Args:
        figure: "figure1" or "figure2".
        preset: "smoke", "mini", "paper", or a path to a YAML file.
        store: folder of finished runs; "recorded" reads the committed results and never computes.
        seeds: how many, or which; the preset's number by default.
        data: folder of real rows in XTREME layout instead of the mini world (see `experiment.plan`), relative to the
            checkout.
        model: another pre-trained model than the preset's.
        jobs: runs at a time; one a core, or one a GPU, by default. Results do not depend on it: on CPU every run uses
            one thread.
        keep_weights: also store the fine-tuned weights of every run.
        progress: show a progress bar while runs are computed.

    Returns:
        One row a run for figure 1, one row a run and target language for figure 2 (columns: see `study.table`).

    Raises:
        FlatlingoError: for bad input; if the recorded results lack runs; or, after all runs were tried, if some failed:
            the message lists them with the log to read.
    """
    settings = experiment.load_preset(preset)
    data = None if data is None else ROOT / Path(data).expanduser()
    configs = experiment.plan(figure, settings, seeds=seeds, data=data, model=model)
    runs = open_store(store, settings.name)
    missing = [config for config in configs if config not in runs]
    if missing and store in (None, "recorded"):
        raise FlatlingoError(
            f"{len(missing)} of {len(configs)} runs of {figure} are not among the recorded results of preset "
            f"{settings.name} (first: {missing[0].run_id}); pass a store folder to compute them, "
            "or refresh the recorded results with `make record`"
        )
    if missing:
        study.check(missing[0], data)
        _compute(missing, runs, data, jobs or _default_jobs(), keep_weights, progress)
    return study.table(configs, [runs.result(config) for config in configs])


def _default_jobs() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else joblib.cpu_count(only_physical_cores=False)


def _compute(
    missing: list[RunConfig], runs: Store, data: Path | None, jobs: int, keep_weights: bool, progress: bool
) -> None:
    """Run what is missing in local processes, one torch thread each; a failing run does not stop the others."""
    parallel = joblib.Parallel(n_jobs=min(jobs, len(missing)), return_as="generator_unordered", batch_size=1)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        outcomes = parallel(
            joblib.delayed(_run_and_store)(config, runs, data, keep_weights, slot % jobs)
            for slot, config in enumerate(missing)
        )
        failed = {}
        with tqdm(total=len(missing), desc=missing[0].figure, unit="run", disable=not progress, ncols=100) as bar:
            for run_id, failure in outcomes:
                bar.set_postfix_str(run_id.split("-", 1)[1].rsplit("-", 1)[0])
                bar.update()
                if failure is not None:
                    failed[run_id] = failure
    if failed:
        lines = "\n".join(f"  {run_id}: {failure}" for run_id, failure in failed.items())
        raise FlatlingoError(f"{len(failed)} of {len(missing)} runs failed; the others are stored.\n{lines}")


def _run_and_store(
    config: RunConfig, runs: Store, data: Path | None, keep_weights: bool, slot: int
) -> tuple[str, str | None]:
    """Compute one run in a worker; returns its id and, if it failed, why and the log to read."""
    log = runs.folder / "failed" / f"{config.run_id}.log"
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(slot % torch.cuda.device_count())
        started = time.perf_counter()
        result, model, tokenizer = study.run(config, data)
        runs.write(
            config,
            result,
            {
                "versions": {name: version(name) for name in PACKAGES},
                "device": study.device_name(),
                "seconds": round(time.perf_counter() - started, 1),
            },
            *((model, tokenizer) if keep_weights else ()),
        )
        log.unlink(missing_ok=True)
    except Exception as error:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        return config.run_id, f"{error} (log: {log})"
    return config.run_id, None
