"""Where the files of the checkout lie, whatever the working directory."""

import os
from pathlib import Path

PRESETS = Path(__file__).parent / "presets"
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
MINI_MBERT = DATA / "mini-mbert"
RECORDED = DATA / "recorded"
FIGURES = Path(os.environ.get("FLATLINGO_FIGURES", ROOT / "figures"))
