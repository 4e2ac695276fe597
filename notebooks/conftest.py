"""Compare the numbers that checked cells print with a tolerance, where nbval alone compares text.

Decimals may differ by `TOLERANCE` of the larger one (another CPU rounds otherwise), whole numbers and words not at all.
"""

import math
import os
import re
from decimal import Decimal

TOLERANCE = 1e-3
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
WHOLE = re.compile(r"[-+−]?\d+")


def same(reference: str, found: str) -> bool:
    """Whether two texts are the same but for the last digits of their decimals."""
    if _words(reference) != _words(found):
        return False
    pairs = zip(NUMBER.findall(reference), NUMBER.findall(found), strict=True)
    return all(a == b if WHOLE.fullmatch(a) or WHOLE.fullmatch(b) else _close(a, b) for a, b in pairs)


def _words(text: str) -> list[str]:
    # Columns are padded to the width of their numbers: only the words between the blanks count.
    return [" ".join(part.split()) for part in NUMBER.split(text)]


def _close(a: str, b: str) -> bool:
    a, b = (Decimal(text.replace("−", "-")) for text in (a, b))
    # Printed numbers are rounded: one unit of the last digit may differ, however small the number.
    unit = Decimal(1).scaleb(min(a.as_tuple().exponent, b.as_tuple().exponent))
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=unit)


def pytest_collection_modifyitems(items):
    """Let nbval see a cell's own reference text wherever what it printed is the same."""
    os.environ.setdefault("FLATLINGO_PROGRESS", "none")  # the kernels inherit it
    for item in items:
        if type(item).__name__ != "IPyNbCell":
            continue
        references = [
            item.sanitize(text)
            for output in item.cell.get("outputs", [])
            for text in (output.get("text"), *output.get("data", {}).values())
            if isinstance(text, str)
        ]

        def sanitize(text, plain=item.sanitize, references=references):
            if not isinstance(text, str):
                return text
            text = plain(text)
            return next((reference for reference in references if same(reference, text)), text)

        item.sanitize = sanitize
