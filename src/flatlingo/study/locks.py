"""Locks that end with their process, also on a file system that has no `flock`."""

import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path

import filelock


def lock(path: Path) -> filelock.BaseFileLock:
    """A lock that is taken at once or raises `filelock.Timeout`.

    Where the file system has no `flock` (ENOSYS: Lustre mounted without it, some FUSE), filelock makes a file that
    names its process instead. A killed process of this machine then leaves a file that is removed here; one of another
    machine cannot be told from a living one, and its file has to be removed by hand.
    """
    if _is_left(path):
        # One contender at a time, so that none removes the file that another has just made.
        with suppress(filelock.Timeout), filelock.SoftFileLock(path.with_name(f"{path.name}.left"), timeout=0):
            if _is_left(path):
                path.unlink(missing_ok=True)
    warnings.filterwarnings("ignore", "flock not supported on this filesystem")
    return filelock.FileLock(path, timeout=0)


def _is_left(path: Path) -> bool:
    """Whether a process of this machine that has ended is named in the file; a lock of `flock` names none."""
    try:
        pid, host, *_ = path.read_text(encoding="utf-8").splitlines()
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return host == socket.gethostname()
    except (OSError, ValueError):  # no such file, no such text, or a process of another user
        return False
    return False
