"""The results in the README, written from `figures/*.json`, so that no number there is typed.

Run by `make record` as `python -m flatlingo.readme`; a test compares the README with it.
"""

import json
import os
from pathlib import Path

import pandas as pd

from flatlingo import analysis
from flatlingo.analysis import Correlation
from flatlingo.errors import FlatlingoError
from flatlingo.figures import FAMILIES, LANGUAGES
from flatlingo.paths import ROOT

START, END = "<!-- results: written by `make record` -->", "<!-- end of results -->"
NAMED = ("consistency", "fisher_penalty")


def results(figures: Path = ROOT / "figures") -> str:
    """Three sentences of numbers, from the data and headlines of figures 1 and 2."""
    first, second = (json.loads((figures / f"figure{n}.json").read_text(encoding="utf-8")) for n in (1, 2))
    runs, adapted = pd.DataFrame(first["data"]), pd.DataFrame(second["data"])
    means = analysis.condition_means(runs).set_index("label")
    traces = [f"{means.trace['none']:.3g} without a regulariser"]
    accuracies = [f"{100 * means.english_accuracy['none']:.1f} % without a regulariser"]
    for family in NAMED:
        part = means[means["family"] == family].sort_values("weight")
        ends = [f"{part.trace[label]:.3g} at `{label}`" for label in (part.index[0], part.index[-1])]
        traces.append(f"{FAMILIES[family].name} from {' to '.join(ends)}")
        best = part["english_accuracy"].idxmax()
        accuracies.append(
            f"{100 * part.english_accuracy[best]:.1f} % with the best {FAMILIES[family].name} weight (`{best}`, Tr(F) "
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
  {accuracy}: {analysis.verdict(accuracy, sign=-1).partition(":")[0]}.
* **The gain from a second language**, without a regulariser: {gains}. The paper claims that it falls as Tr(F)
  grows: ρ = {correlations}.
"""


def written(text: str, block: str) -> str:
    """The README's text with the results replaced.

    Raises:
        FlatlingoError: if the marks around them are missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise FlatlingoError(f"README.md lacks the lines {START!r} and {END!r} around its results")
    return f"{before}{START}\n{block}{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    temporary = path.with_name(".README.md.part")
    temporary.write_text(written(path.read_text(encoding="utf-8"), results()), encoding="utf-8")
    os.replace(temporary, path)
