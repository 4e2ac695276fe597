"""The finished stages of a run in a folder: its trained weights and its measurements, which a killed run keeps."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from flatlingo.files import replacing
from flatlingo.study.measure import Measured

WEIGHTS, LOG = "trained.safetensors", "log.json"


class Stages:
    """Computes each stage of a run once.

    Args:
        folder: where they lie, for one configuration only; None to keep nothing.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def train(self, model: PreTrainedModel, stage: Callable[[], list[dict]]) -> list[dict]:
        """Train the model in place, or give it the weights that an earlier call has kept; the training log."""
        if self.folder is None:
            return stage()
        weights, log = self.folder / WEIGHTS, self.folder / LOG
        if not log.is_file():  # written last
            found = stage()
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(weights) as temporary:
                save_model(model, str(temporary))
            with replacing(log) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
            return found
        load_model(model, weights, device=str(model.device))
        return json.loads(log.read_text(encoding="utf-8"))

    def measure(self, name: str, stage: Callable[[], Measured]) -> Measured:
        """What the stage measures, or what an earlier call has kept of it."""
        if self.folder is None:
            return stage()
        numbers, arrays = self.folder / f"{name}.json", self.folder / f"{name}.npz"
        kept = _kept(numbers, arrays)
        if kept is None:
            found = stage()
            with replacing(arrays) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **found.arrays)
            with replacing(numbers) as temporary:
                temporary.write_text(json.dumps(found.numbers), encoding="utf-8")
            return found
        return kept


def _kept(numbers: Path, arrays: Path) -> Measured | None:
    """What was measured before; None if it was not, or not written to its end (power was lost)."""
    try:
        with np.load(arrays, allow_pickle=False) as stored:
            return Measured(json.loads(numbers.read_text(encoding="utf-8")), dict(stored))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
