"""What holds for all tests."""

import gc

LONGEST = "test_reproduction.py"


def pytest_collection_modifyitems(items):
    """The longest file goes first: of two workers one would else wait for the other that has it at the end."""
    items.sort(key=lambda item: item.path.name != LONGEST)


def pytest_collection_finish():
    """Spare the collector what has been imported: every Trainer calls it, and it would walk through all of that."""
    gc.collect()
    gc.freeze()
