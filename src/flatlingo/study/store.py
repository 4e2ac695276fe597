"""A store of finished runs: a folder that several processes may add to, each of which may be killed at any moment.

Reading it needs neither the encoder nor the rows of its runs: a stored run carries its configuration.
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import numpy as np
from safetensors import SafetensorError, safe_open

from flatlingo.errors import FlatlingoError
from flatlingo.files import RECORDED, ROOT, SUMS, changed, read_sums, replacing, write_sums
from flatlingo.study.locks import lock
from flatlingo.study.runspec import RunConfig, RunSpec

RECORDS = ("config.json", "result.json", "environment.json")
ARRAYS = "rows.npz"
NOTES = ("README.md", "calibration-*.csv")  # what may lie beside recorded runs
# Folders of a store that are no runs.
OWN = LOCKS, LOGS, WORK, DAMAGED = "locks", "logs", "work", "damaged"


class Store:
    """A folder of finished runs, one folder per run.

    A run's folder holds `config.json`, `result.json` and `rows.npz` (the same on every repetition; the last holds
    arrays, see `study.measure`), `environment.json` (versions, device, seconds), unless discarded `model/` with the
    English fine-tuned weights and the tokenizer, and `SHA256SUMS` over all of these, as `sha256sum -c` reads it. It is
    written under a temporary name and renamed when complete.

    Beside the runs lie `locks/` (one file for each run that a process is computing, telling which), `logs/` (one file
    for each run that did not finish: running, killed or failed), `work/` (checkpoints and finished stages of such runs,
    from which they go on) and `damaged/` (runs that were found damaged and computed again).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __contains__(self, config: RunConfig) -> bool:
        """Whether a run is finished and undamaged."""
        return self.exists(config) and self.damage(config) is None

    def exists(self, config: RunConfig) -> bool:
        """Whether anything lies where the run belongs."""
        return os.path.lexists(self.path(config))

    def path(self, config: RunConfig) -> Path:
        """Where the run lies, or will."""
        return self.folder / config.run_id

    def log(self, config: RunConfig) -> Path:
        """Where a run that did not finish tells why."""
        return self.folder / LOGS / f"{config.run_id}.log"

    def work(self, config: RunConfig) -> Path:
        """Where a run that did not finish has its checkpoints and finished stages."""
        return self.folder / WORK / config.run_id

    def find(self, spec: RunSpec) -> RunConfig | None:
        """The undamaged run of a plan, condition, seed, encoder and setup, whatever the files of encoder and rows.

        Raises:
            FlatlingoError: if there are several, from other files.
        """
        found = []
        for path in sorted(self.folder.glob(f"{spec.name}-*/config.json")):
            with suppress(OSError, ValueError):
                config = RunConfig.model_validate(_load(path))
                if config.spec == spec and config in self:
                    found.append(config)
        if len(found) > 1:
            raise FlatlingoError(
                f"store {self.folder} has {len(found)} runs {spec.name} from other encoder files or rows "
                f"({', '.join(config.run_id for config in found)}); give the encoder (--model) or the rows (--data) "
                "that are meant"
            )
        return found[0] if found else None

    def result(self, config: RunConfig) -> dict:
        """The result of a finished run, with the `seconds` of the process that finished it.

        Of a run that went on from where another process was killed, that is only what was left of it.

        Raises:
            FlatlingoError: if the run is not there or damaged, see `damage`.
        """
        self._refuse_damaged(config)
        result, environment = (_load(self.path(config) / name) for name in ("result.json", "environment.json"))
        return result | {"seconds": environment["seconds"]}

    def rows(self, config: RunConfig) -> dict[str, np.ndarray]:
        """The arrays of a finished run by name, see `study.measure`; none for a run that has none.

        Raises:
            FlatlingoError: if the run is not there or damaged, see `damage`.
        """
        self._refuse_damaged(config)
        path = self.path(config) / ARRAYS
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def damage(self, config: RunConfig) -> str | None:
        """Why a run that lies in the store cannot be used: a file absent, or not as it was stored; None if it can."""
        path = self.path(config)
        try:
            arrays = (ARRAYS,) if ARRAYS in read_sums(path) else ()
            if reason := changed(path, (*RECORDS, *arrays)):
                return reason
            if RunConfig.model_validate(_load(path / "config.json")) != config:
                return "it holds another configuration than its name says"
        except OSError as error:
            return f"{Path(error.filename).name if error.filename else path.name}: {error.strerror}"
        except ValueError as error:
            return str(error).partition("\n")[0]
        return None

    def lost_weights(self, config: RunConfig) -> str | None:
        """What is wrong with the weights that were stored with a finished run: absent or truncated; None if nothing.

        Weights that were edited but have kept their size are found by `sha256sum -c SHA256SUMS` only.
        """
        path = self.path(config)
        for name in read_sums(path):
            if not (path / name).is_file():
                return f"{name} is missing"
            if name.endswith(".safetensors"):
                try:
                    with safe_open(path / name, "np"):
                        pass
                except (SafetensorError, OSError) as error:
                    return f"{name} cannot be read ({error})"
        return None

    def write(
        self,
        config: RunConfig,
        result: dict,
        environment: dict,
        rows: dict[str, np.ndarray] | None = None,
        model=None,
        tokenizer=None,
    ) -> Path:
        """Add a finished run. Whoever calls owns it (see `own`), or knows that nobody else writes it.

        Raises:
            OSError: if it cannot be written (the disk is full, …); nothing of it is then left in the store.
        """
        with replacing(self.path(config)) as temporary:
            temporary.mkdir(parents=True)
            for name, value in zip(RECORDS, (config.model_dump(mode="json"), result, environment), strict=True):
                _dump(temporary / name, value)
            if rows:
                np.savez_compressed(temporary / ARRAYS, allow_pickle=False, **rows)
            if model is not None:
                model.save_pretrained(temporary / "model")
                tokenizer.save_pretrained(temporary / "model")
            write_sums(temporary)
        shutil.rmtree(self.work(config), ignore_errors=True)
        return self.path(config)

    def set_aside(self, config: RunConfig) -> Path:
        """Move what lies where a run belongs into `damaged/`, so that the run can be computed again."""
        folder = self.folder / DAMAGED
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{config.run_id}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        self.path(config).rename(target)
        return target

    @contextmanager
    def own(self, config: RunConfig) -> Iterator[None]:
        """Own a run while it is computed, so that no other process computes it.

        The lock is the operating system's, so it ends with the process, however that ends. It holds between machines
        where the file system carries `flock` (NFS 4, Lustre mounted with `flock`, GPFS); see `study.locks` for others.

        Raises:
            filelock.Timeout: at once, if another process owns the run.
            OSError: if the store cannot be written.
        """
        path, card = self._lock(config), self._card(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path):
            try:
                _dump(card, {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
                yield
            finally:
                with suppress(OSError):  # files of a lock that nobody holds say "killed", and do not block
                    card.unlink()
                    path.unlink()

    def owner(self, config: RunConfig) -> dict | None:
        """Who computes a run, or did until it was killed: `host`, `pid`, `since` and whether `alive`; None: nobody.

        An owner that has not yet written who it is has the host "?" and the pid None (not 0, which for `os.kill` is the
        caller's own process group).
        """
        if not self._lock(config).is_file():
            return None
        alive = False
        try:
            with lock(self._lock(config)):
                pass
        except filelock.Timeout:
            alive = True
        except OSError:  # a store that is only read, where nobody computes
            pass
        try:
            return {**_load(self._card(config)), "alive": alive}
        except (FileNotFoundError, ValueError):  # before its owner has written who it is, or just after the end
            return {"host": "?", "pid": None, "since": time.time(), "alive": alive} if alive else None

    def is_owned(self, config: RunConfig) -> bool:
        """Whether a living process computes the run."""
        owner = self.owner(config)
        return owner is not None and owner["alive"]

    def tidy(self, config: RunConfig) -> None:
        """Remove log, lock and checkpoints of a finished run whose owner was killed before it could do so."""
        if not self.is_owned(config):
            shutil.rmtree(self.work(config), ignore_errors=True)
            with suppress(OSError):  # of a store that is only read
                self._lock(config).unlink(missing_ok=True)
                self._card(config).unlink(missing_ok=True)
                self.log(config).unlink(missing_ok=True)

    def seeds(self, plan: str) -> list[int]:
        """The seeds of which a run of a plan lies here, is being computed, or failed, ascending."""
        paths = [path for folder in ("", LOCKS, LOGS, WORK) for path in (self.folder / folder).glob(f"{plan}-*")]
        found = filter(None, (re.search(r"-s(\d+)-[0-9a-f]+(\.\w+)?$", path.name) for path in paths))
        return sorted({int(name[1]) for name in found})

    def foreign(self) -> list[str]:
        """Names in the store that are neither runs nor the store's own; they are left alone and never read."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if path.name not in OWN
            and not path.name.startswith(".")
            and not (path / SUMS).is_file()
            and not any(path.match(pattern) for pattern in NOTES)
        )

    def _lock(self, config: RunConfig) -> Path:
        return self.folder / LOCKS / f"{config.run_id}.lock"

    def _card(self, config: RunConfig) -> Path:
        """Where the owner of a run writes who it is."""
        return self.folder / LOCKS / f"{config.run_id}.json"

    def _refuse_damaged(self, config: RunConfig) -> None:
        if reason := self.damage(config):
            raise FlatlingoError(f"run {self.path(config)} is damaged: {reason}; delete its folder and sweep again")


def open_store(store: str | Path, preset: str) -> Store:
    """`"recorded"`: the committed results of a preset; otherwise the folder named, relative to the checkout.

    Raises:
        FlatlingoError: for the recorded results where flatlingo is installed without its repository.
    """
    if store == "recorded":
        if RECORDED is None:
            raise FlatlingoError(
                "the recorded results lie in flatlingo's repository, and this flatlingo was installed without it: "
                "clone the repository and `make setup` there, or pass a store folder to compute the runs"
            )
        return Store(RECORDED / preset)
    return Store(ROOT / Path(store).expanduser())


def _load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _dump(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
