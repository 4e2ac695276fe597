"""A store of finished runs: a folder that several processes may add to, each of which may be killed at any moment."""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from flatlingo.digests import SUMS, read_sums, sha256, write_sums
from flatlingo.errors import FlatlingoError
from flatlingo.experiment import RunConfig
from flatlingo.paths import RECORDED, ROOT

RECORDS = ("config.json", "result.json", "environment.json")
# Folders of a store that are no runs.
OWN = LOCKS, LOGS, WORK, DAMAGED = "locks", "logs", "work", "damaged"


class Store:
    """A folder of finished runs, one folder a run.

    A run's folder holds `config.json`, `result.json` (both the same on every repetition), `environment.json`
    (versions, device, seconds), unless discarded `model/` with the English fine-tuned weights and the tokenizer, and
    `SHA256SUMS` over all of these, as `sha256sum -c` reads it. It is written under a temporary name and renamed when
    complete.

    Beside the runs lie `locks/` (one file for each run that a process is computing, telling which), `logs/` (one file
    for each run that did not finish: running, killed or failed), `work/` (the checkpoints of such runs, from which they
    go on) and `damaged/` (runs that were found damaged and computed again).
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
        """Where a run that did not finish has its checkpoints."""
        return self.folder / WORK / config.run_id

    def result(self, config: RunConfig) -> dict:
        """The result of a finished run, with the `seconds` that it took.

        Raises:
            FlatlingoError: if the run is not there or damaged, see `damage`.
        """
        if reason := self.damage(config):
            raise FlatlingoError(f"run {self.path(config)} is damaged: {reason}; delete its folder and sweep again")
        result, environment = (_load(self.path(config) / name) for name in ("result.json", "environment.json"))
        return result | {"seconds": environment["seconds"]}

    def damage(self, config: RunConfig) -> str | None:
        """Why a run that lies in the store cannot be used: a file absent, or not as it was stored; None if it can."""
        path = self.path(config)
        try:
            sums = read_sums(path)
            for name in RECORDS:
                if sha256(path / name) != sums.get(name):
                    return f"{name} is not as it was stored (its SHA-256 is not the one in {SUMS})"
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
                    with safe_open(path / name, "pt"):
                        pass
                except (SafetensorError, OSError) as error:
                    return f"{name} cannot be read ({error})"
        return None

    def write(self, config: RunConfig, result: dict, environment: dict, model=None, tokenizer=None) -> Path:
        """Add a finished run. Whoever calls owns it (see `own`), or knows that nobody else writes it.

        Raises:
            OSError: if it cannot be written (the disk is full, …); nothing of it is then left in the store.
        """
        temporary = self._temporary(config)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for name, value in zip(RECORDS, (config.model_dump(mode="json"), result, environment), strict=True):
                _dump(temporary / name, value)
            if model is not None:
                model.save_pretrained(temporary / "model")
                tokenizer.save_pretrained(temporary / "model")
            write_sums(temporary)
            temporary.rename(self.path(config))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
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
        where the file system carries `flock` (NFS 4, Lustre mounted with `flock`, GPFS).

        Raises:
            filelock.Timeout: at once, if another process owns the run.
            OSError: if the store cannot be written.
        """
        path = self._lock(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path, timeout=0):
            try:
                shutil.rmtree(self._temporary(config), ignore_errors=True)  # of an owner that was killed
                _dump(path, {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()})
                yield
            finally:
                with suppress(OSError):  # a file of a lock that nobody holds says "killed", and does not block
                    path.unlink()

    def owner(self, config: RunConfig) -> dict | None:
        """Who computes a run, or did until it was killed: `host`, `pid`, `since` and whether `alive`; None: nobody.

        An owner that has not yet written who it is has the host "?" and the pid None (not 0, which for `os.kill` is the
        caller's own process group).
        """
        try:
            with self._lock(config).open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    alive = False
                except BlockingIOError:
                    alive = True
                return {**json.load(file), "alive": alive}
        except FileNotFoundError:
            return None
        except ValueError:  # between the locking of the file and its first line
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
                self.log(config).unlink(missing_ok=True)

    def refuse_unless_writable(self) -> None:
        """Find out before hours of computing whether the store takes files.

        Raises:
            FlatlingoError: if it does not.
        """
        probe = self.folder / f".write-test-{socket.gethostname()}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_text("a line\n", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            with suppress(OSError):
                probe.unlink()
            raise FlatlingoError(
                f"store {self.folder} cannot be written: {error.strerror}; make room or give another folder"
            ) from error

    def foreign(self) -> list[str]:
        """Names in the store that are neither runs nor the store's own; they are left alone and never read."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if path.name not in (LOCKS, LOGS, WORK, DAMAGED)
            and not path.name.startswith(".")
            and not (path / SUMS).is_file()
        )

    def _lock(self, config: RunConfig) -> Path:
        return self.folder / LOCKS / f"{config.run_id}.lock"

    def _temporary(self, config: RunConfig) -> Path:
        return self.folder / f".{config.run_id}.part"


def open_store(store: str | Path | None, preset: str) -> Store:
    """`"recorded"`: the committed results of a preset; otherwise the folder named, relative to the checkout."""
    if store in (None, "recorded"):
        return Store(RECORDED / preset)
    return Store(ROOT / Path(store).expanduser())


def _load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _dump(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
