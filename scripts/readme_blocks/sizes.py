"""What was asked of the sizes of preset mini beforehand, and what of it the README says."""

import pandas as pd

from flatlingo.files import RECORDED
from flatlingo.report.regimes import regime

UNITS = {"wrong labels reproduced": ""}  # of the regimes; the others are in points


def without_gap(plan: str) -> str:
    """Said of a plan of preset mini whose unregularised model is not as far ahead in English as was asked."""
    found = _regime(plan)
    return "" if found.loc["English less zero-shot", "holds"] else "; no transfer gap, English is not ahead"


def missed_sizes(plan: str) -> str:
    """What was asked of the sizes of preset mini before the runs and was not reached."""
    found = _regime(plan)
    missed = [
        f"{what} {row.value:.1f}{UNITS.get(what, ' points')} (at least {row.least:g} was asked)".replace(" -", " −")
        for what, row in found[~found["holds"]].iterrows()
    ]
    return f"Asked of these sizes beforehand, and not reached: {', '.join(missed)}." if missed else ""


def _regime(plan: str) -> pd.DataFrame:
    """What was asked of the sizes of preset mini before the runs, and what holds."""
    return regime(pd.read_csv(RECORDED / "mini-regimes.csv")).loc[plan]
