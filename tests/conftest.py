"""What holds for all tests."""

import gc


def pytest_collection_finish():
    """Spare the collector what has been imported: every Trainer calls it, and it would walk through all of that."""
    gc.collect()
    gc.freeze()
