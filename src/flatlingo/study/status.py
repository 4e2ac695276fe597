"""What a sweep has done, what it is doing and how long it will take: a table of a store, a bar, a line per minute."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from flatlingo.progress import LINE_SECONDS, duration
from flatlingo.study.outcome import FAILED, Outcome
from flatlingo.study.runspec import RunConfig
from flatlingo.study.store import Store

STATES = ("finished", "running", "failed", "killed", "damaged", "missing")


def status(configs: list[RunConfig], runs: Store) -> pd.DataFrame:
    """Say of every run how it stands.

    Returns:
        One row per run: `run_id`, `family`, `state` (one of `STATES`), `seconds` that it took (finished) or has taken
        (running), and `detail`: where it runs, why it failed and the log to read, what is damaged.
    """
    rows = ((config.run_id, config.condition.family, *_state(config, runs)) for config in configs)
    return pd.DataFrame(rows, columns=["run_id", "family", "state", "seconds", "detail"])


def summary(table: pd.DataFrame) -> str:
    """Count the runs by state and tell the time left, in one line."""
    counts = table["state"].value_counts()
    parts = [f"{counts[state]} {state}" for state in STATES[1:] if state in counts]
    left = time_left(table)
    about = "" if left == 0 else ", time left unknown" if left is None else f", about {duration(left)} left"
    return ", ".join([f"{counts.get('finished', 0)} of {len(table)} runs finished", *parts]) + about


def time_left(table: pd.DataFrame) -> float | None:
    """Estimate the seconds until all runs are finished; None while no run is.

    A run is taken to last as long as finished ones of its family do on average (of any family, if none is finished),
    and as many to be computed at a time as are running now.

    >>> columns = ["run_id", "family", "state", "seconds", "detail"]
    >>> rows = [("a", "l2", "finished", 60, ""), ("b", "l2", "running", 20, ""), ("c", "none", "missing", 0, "")]
    >>> time_left(pd.DataFrame(rows, columns=columns))
    100.0
    """
    finished = table[table["state"] == "finished"]
    unfinished = table[table["state"] != "finished"]
    if unfinished.empty:
        return 0.0
    if finished.empty:
        return None
    expected = unfinished["family"].map(finished.groupby("family")["seconds"].mean()).fillna(finished["seconds"].mean())
    running = unfinished["state"] == "running"
    remaining = (expected - unfinished["seconds"].where(running, 0)).clip(lower=0)
    return float(remaining.sum() / max(1, running.sum()))


@contextmanager
def progress(configs: list[RunConfig], runs: Store, *, shown: bool) -> Iterator:
    """Show how runs proceed: a bar in terminals and notebooks, elsewhere one line per minute on standard error.

    `FLATLINGO_PROGRESS=lines` in the environment asks for lines in notebooks too, `none` for nothing at all.

    Yields:
        A function to call with the outcome of each run that has ended.
    """
    wanted = os.environ.get("FLATLINGO_PROGRESS")
    if not shown or wanted == "none":
        yield lambda outcome: None
    elif wanted != "lines" and (sys.stderr.isatty() or _in_notebook()):
        with tqdm(total=len(configs), desc=configs[0].plan, unit="run", ncols=100) as bar:
            yield lambda outcome: _advance(bar, outcome)
    else:
        with _lines(configs, runs):
            yield lambda outcome: None


def _in_notebook() -> bool:
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)() is not None


def _advance(bar: tqdm, outcome: Outcome) -> None:
    bar.set_postfix_str(f"{outcome.config.condition.label} s{outcome.config.seed} {outcome.state}")
    bar.update()


@contextmanager
def _lines(configs: list[RunConfig], runs: Store) -> Iterator[None]:
    over, stream = threading.Event(), sys.stderr

    def write() -> None:
        while not over.wait(LINE_SECONDS):
            with suppress(OSError):  # a store that cannot be read for a moment is no reason to be silent for good
                line = f"{time.strftime('%H:%M:%S')} {configs[0].plan}: {summary(status(configs, runs))}"
                print(line, file=stream, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _state(config: RunConfig, runs: Store) -> tuple[str, float, str]:
    owner = runs.owner(config)
    if owner and owner["alive"]:
        where = f"on {owner['host']}, process {owner['pid'] or '?'}"
        last = _last_line(runs.log(config))
        return "running", time.time() - owner["since"], f"{where}; {last}" if last else where
    if runs.exists(config):
        if reason := runs.damage(config):
            return "damaged", 0.0, reason
        result = runs.result(config)
        return "finished", result["seconds"], result.get("diverged") or runs.lost_weights(config) or ""
    log = runs.log(config)
    last = _last_line(log)
    if last and last.startswith(FAILED):
        return "failed", 0.0, f"{last.removeprefix(FAILED)} (log: {log})"
    if last is not None or owner:
        goes_on = ", it goes on from where it was" if runs.work(config).is_dir() else ""
        return "killed", 0.0, f"its process ended without a word{goes_on} (log: {log})"
    return "missing", 0.0, ""


def _last_line(log: Path) -> str | None:
    """The last line of a run's log; None if there is none."""
    try:
        return log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return None
