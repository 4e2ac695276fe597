"""The numbers in the README: results from `figures/*.json`, calibrations, a tour that is really taken. None is typed.

Run by `make record`; tests compare the README with both.
"""

import json
import subprocess
import tempfile
from pathlib import Path

from flatlingo.errors import FlatlingoError
from flatlingo.files import ROOT, replacing
from readme_blocks.calibration import calibration
from readme_blocks.figuredata import FIGURES, filled, preset_folders
from readme_blocks.lead import lead
from readme_blocks.results import results

TOUR = (
    "flatlingo train --plan paraphrase --output sharp",
    "flatlingo train --plan paraphrase --family consistency --weight 2.7 --output flat",
    "flatlingo rank sharp flat --task mini-paraphrase",
)


def tour(folder: Path) -> str:
    """The commands of the tour and what they print, as they do it now in an empty folder: about two minutes."""
    lines = []
    for command in TOUR:
        done = subprocess.run(command.split(), cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        lines += [f"$ {command}", *map(str.rstrip, done.stdout.splitlines())]
    return "\n".join(["```console", *lines, "```", ""])


def captions(folder: Path) -> str:
    """The README of a folder of figures: each with its caption, from its JSON file."""
    texts = {path.stem: json.loads(path.read_text(encoding="utf-8"))["caption"] for path in folder.glob("*.json")}
    shown = [f"## {name}\n\n![{name}]({name}.png)\n\n{filled(texts[name])}\n" for name in sorted(texts)]
    head = "Written by `make record` from the JSON file beside each figure, which has its data and where they are from."
    return "\n".join([f"# Figures\n\n{head}\n", *shown])


def parts(text: str, name: str) -> list[str]:
    """The README's text up to a block that is written here, the block, and the rest.

    Raises:
        FlatlingoError: if the lines that mark the block are missing.
    """
    start, end = f"<!-- {name}: written by `make record` -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(start)
    block, also_found, after = rest.partition(end)
    if not found or not also_found:
        raise FlatlingoError(f"README.md lacks the lines {start.strip()!r} and {end!r} around its {name}")
    return [before + start, block, end + after]


if __name__ == "__main__":
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        blocks = {"lead": lead(), "results": results(), "calibration": calibration(), "tour": tour(Path(folder))}
        for name, new in blocks.items():
            before, _, after = parts(text, name)
            text = before + new + after
    pages = {path: text} | {figures / "README.md": captions(figures) for figures in preset_folders(FIGURES).values()}
    for page, content in pages.items():
        with replacing(page) as temporary:
            temporary.write_text(content, encoding="utf-8")
