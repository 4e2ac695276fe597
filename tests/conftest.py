"""What holds for all tests."""

import gc
import os
import sys

import pytest

from flatlingo import cli

LONGEST = "test_reproduction.py"


def pytest_configure():
    """Compute on the CPU: results are compared between processes, some of which would have no GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """The longest file goes first: of two workers one would else wait for the other that has it at the end."""
    items.sort(key=lambda item: item.path.name != LONGEST)


def pytest_collection_finish():
    """Spare the collector what has been imported: every Trainer calls it, and it would walk through all of that."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def flatlingo(capsys, monkeypatch):
    """Run a command line in this process; returns its exit code and what it wrote to both streams."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flatlingo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return ended.value.code or 0, written.out, written.err

    return run
