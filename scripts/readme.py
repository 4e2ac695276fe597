"""The numbers in the README: results from `figures/*.json`, and a tour that is really taken. None is typed.

Run by `make record`; tests compare the README with both.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.files import ROOT, replacing
from flatlingo.report import statistics
from flatlingo.report.drawing import LANGUAGES
from flatlingo.report.statistics import Correlation
from flatlingo.study.families import family

TOUR = (
    "flatlingo train --output sharp",
    "flatlingo train --family consistency --weight 2 --output flat",
    "flatlingo rank sharp flat --task mini-nli",
)
NAMED = ("consistency", "fisher_penalty")


def results(figures: Path = ROOT / "figures") -> str:
    """Three sentences of numbers, from the data and headlines of figures 1 and 2."""
    first, second = (json.loads((figures / f"figure{n}.json").read_text(encoding="utf-8")) for n in (1, 2))
    runs, adapted = pd.DataFrame(first["data"]), pd.DataFrame(second["data"])
    means = statistics.condition_means(runs).set_index("label")
    traces = [f"{means.trace['none']:.3g} without a regulariser"]
    accuracies = [f"{100 * means.english_accuracy['none']:.1f} % without a regulariser"]
    for name in NAMED:
        title, part = family(name).title, means[means["family"] == name].sort_values("weight")
        ends = [f"{part.trace[label]:.3g} at `{label}`" for label in (part.index[0], part.index[-1])]
        traces.append(f"{title} from {' to '.join(ends)}")
        best = part["english_accuracy"].idxmax()
        accuracies.append(
            f"{100 * part.english_accuracy[best]:.1f} % with the best {title} weight (`{best}`, Tr(F) "
            f"{part.trace[best]:.3g})"
        )
    accuracy = Correlation(**first["headline"]["accuracy_against_trace"])
    start = adapted[adapted["family"] == "none"].groupby("language")["gain"].mean()
    gains = ", ".join(f"{100 * start[code]:.1f} points in {name}" for code, name in LANGUAGES.items() if code in start)
    found = {code: Correlation(**one) for code, one in second["headline"]["gain_against_trace"].items()}
    correlations = ", ".join(f"{one.interval} in {LANGUAGES.get(code, code)}" for code, one in found.items())
    return f"""\
* **Tr(F)**, mean over seeds: {"; ".join(traces)}.
* **English accuracy**: {"; ".join(accuracies)}. The paper claims that it falls as Tr(F) grows: over all runs,
  {accuracy}: {statistics.verdict(accuracy, sign=-1).partition(":")[0]}.
* **The gain from a second language**, without a regulariser: {gains}. The paper claims that it falls as Tr(F)
  grows: ρ = {correlations}.
"""


def tour(folder: Path) -> str:
    """The commands of the tour and what they print, as they do it now in an empty folder: about a minute."""
    lines = []
    for command in TOUR:
        done = subprocess.run(command.split(), cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        lines += [f"$ {command}", done.stdout.rstrip()]
    return "\n".join(["```console", *lines, "```", ""])


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
        for name, new in {"results": results(), "tour": tour(Path(folder))}.items():
            before, _, after = parts(text, name)
            text = before + new + after
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
