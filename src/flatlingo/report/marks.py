"""Conditions as marks: means of runs whose seeds are laid on each other, lines by weight, axes, labels beside marks."""

import itertools
import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import stats

from flatlingo.report.blocks import ENOUGH
from flatlingo.report.drawing import HALO, LINES, beside, in_order, marker_of, shades
from flatlingo.report.printing import rounded
from flatlingo.report.statistics import left_variance
from flatlingo.study.families import family

REACH = 0.35  # how much further than the competent conditions an axis goes for others, as a share of its length
POINTS = 6.5  # size of labels
MANY = 12  # families, above which only the last weight of each is named, and no line comes from no regulariser
DIRECTIONS = (0, 180, 90, 270, 45, 135, 225, 315)


def seeds_aligned(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The table with columns less what their seeds differ by, so that the seeds of a condition lie on each other.

    Each seed's mean is moved to the mean of all; it is taken over the conditions that are `able` in every seed (over
    all runs, where there are none). Means of such conditions stay as they are.

    >>> runs = pd.DataFrame({"label": ["a", "b", "a", "b"], "seed": [1, 1, 2, 2], "y": [1.0, 2.0, 3.0, 4.0]})
    >>> seeds_aligned(runs.assign(able=True), ["y"])["y"].tolist()
    [2.0, 3.0, 2.0, 3.0]
    """
    seeds = table["seed"].where(table["able"]).groupby(table["label"]).transform("nunique")
    everywhere = seeds == table["seed"].nunique()
    means = (table[everywhere] if everywhere.any() else table).groupby("seed")[columns].mean()
    return table.assign(**(table[columns] - means.loc[table["seed"]].to_numpy() + means.mean()))


def counting(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that a condition's mean is of: those that are able or, if none of it is, all."""
    return runs[runs["able"] | ~runs.groupby("label")["able"].transform("any")]


def condition_marks(table: pd.DataFrame, y: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs and their conditions as they are drawn against Tr(F): y in per cent, seeds laid on each other.

    Args:
        table: one row per run, with column `able` (`with_competence`).
        y: name of the outcome, in 0..1.

    Returns:
        The runs and the conditions (in order), both with `x` (nats²), `y` and `able`; a condition's x is the geometric
        mean of its `n` runs', its y the mean: of those that are able or, if none is, which makes it not able, of all.
    """
    runs = table.dropna(subset=[y]).assign(x=lambda t: np.log(t["trace"]), y=lambda t: 100 * t[y])
    runs = seeds_aligned(runs, ["x", "y"])
    counted = counting(runs).groupby("label")
    means = counted[["x", "y"]].mean().assign(able=counted["able"].any(), n=counted.size())
    conditions = in_order(runs).join(means, on="label").reset_index(drop=True)
    return runs.assign(x=np.exp(runs["x"])), conditions.assign(x=np.exp(conditions["x"]))


def half_widths(runs: pd.DataFrame, conditions: pd.DataFrame) -> pd.Series:
    """Half the 95 % interval of each condition's mean, by what conditions and seeds leave of y (Loftus & Masson 1994).

    t · s / √n_c with s² = Σ (y - condition - seed)² / (n - C - S + 1), over the runs that are able, n_c of a condition.

    Args:
        runs: as `condition_marks` gives them.
        conditions: likewise.

    Returns:
        In the units of y, one for each condition; NaN with fewer than two seeds or six conditions.
    """
    runs = runs[runs["able"]]
    variance, freedom = left_variance(runs, "y")
    if runs["seed"].nunique() < 2 or runs["label"].nunique() < ENOUGH or freedom < 1:
        return conditions["n"] * math.nan
    return stats.t.ppf(0.975, freedom) * np.sqrt(variance / conditions["n"])


def draw_marks(ax: Axes, runs: pd.DataFrame, conditions: pd.DataFrame, *, size: float = 1.0) -> None:
    """Every run as its family's mark, small, every condition as a large one, joined by weight; hollow if not competent.

    A line starts at no regulariser (the one of consistency at both views without the divergence, where it was run),
    of `MANY` families at each one's first weight. One artist per condition has its label.
    """
    colours, many = shades(conditions), conditions["family"].nunique() > MANY
    for (name, label, able), part in runs.groupby(["family", "label", "able"], sort=False):
        ax.plot(part["x"], part["y"], zorder=2, label=f"_{label}", **_small(name, colours[label], able))
    for name, part in conditions.groupby("family", sort=False):
        start = conditions[(conditions["family"] == _start(name, conditions)) & (not many)]
        line = pd.concat([start, part])
        ax.plot(line["x"], line["y"], color=family(name).drawn.colour, linewidth=0.8, alpha=0.7, zorder=1.5, label="_")
    for row in conditions.itertuples():
        marker = marker_of(row.family, colours[row.label])
        marker["markersize"] *= size * (1.6 if row.family == "none" else 1.3)  # others often lie upon it
        if not row.able:
            marker |= {"markerfacecolor": "none", "markeredgecolor": colours[row.label], "markeredgewidth": 0.9}
        hides = row.able and marker["marker"] not in LINES
        order = 3 if row.family == "none" else 4 if hides else 4.5
        ax.plot(row.x, row.y, label=row.label, zorder=order, **marker)


def _small(name: str, colour: tuple, able: bool) -> dict:
    """Line2D settings of the mark of one run; a family whose marker has no face to leave out gets a ring."""
    marker = marker_of(name, colour) | {"markeredgecolor": colour, "markeredgewidth": 0.6, "alpha": 0.55}
    marker["markersize"] *= 0.45
    if able:
        return marker
    return marker | {"markerfacecolor": "none"} | ({"marker": "o"} if marker["marker"] in LINES else {})


def _start(name: str, conditions: pd.DataFrame) -> str | None:
    """The family that the line of a family starts at."""
    if name == "none":
        return None
    return "both_views" if name == "consistency" and (conditions["family"] == "both_views").any() else "none"


def limits(able: np.ndarray, others: np.ndarray, *, spare: float = 0.06) -> tuple[float, float]:
    """Ends of an axis that shows all competent values, and of the others those that are near them.

    >>> limits(np.array([50.0, 60.0]), np.array([48.0, 33.0]), spare=0)
    (48.0, 60.0)
    """
    able = able if len(able) else others
    low, high = able.min(), able.max()
    length = (high - low) or max(abs(high), 1) * 0.05
    near = others[(others >= low - REACH * length) & (others <= high + REACH * length)]
    low, high = min(low, *near, low), max(high, *near, high)
    return float(low - spare * length), float(high + spare * length)


def off_the_axes(ax: Axes, conditions: pd.DataFrame, *, names: bool = True) -> pd.DataFrame:
    """Marks beyond the axes as hollow ones at their border, with an arrow and their values, none upon another.

    Args:
        ax: with its limits set.
        conditions: as `condition_marks` gives them.
        names: whether the values are written.

    Returns:
        The conditions where they are drawn now, with `text`, the values to write.
    """
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    colours, taken = shades(conditions), []
    moved = conditions.assign(x=conditions["x"].clip(left, right), y=conditions["y"].clip(bottom, top), text="")
    for i, row in conditions.iterrows():
        x, y = moved.loc[i, ["x", "y"]]
        if (x, y) == (row["x"], row["y"]):
            continue
        out = np.sign([row["x"] - x, row["y"] - y])
        step = (0.07 if y < (bottom + top) / 2 else -0.07) * (top - bottom)
        while (x, y) in taken:
            y += step
        taken.append((x, y))
        moved.loc[i, "y"] = y
        arrow = {"arrowstyle": "-|>", "color": colours[row["label"]], "linewidth": 0.7, "mutation_scale": 5}
        beside(ax, "", (x, y), tuple(-12 * out), "data", annotation_clip=False, arrowprops=arrow)
        marker = marker_of(row["family"], colours[row["label"]]) | {"markerfacecolor": "none", "clip_on": False}
        ax.plot(x, y, zorder=4, label="_", **marker | {"markeredgecolor": colours[row["label"]]})
        moved.loc[i, "text"] = f" ({row['y']:.1f} at {rounded(row['x'], 2)})" if names else ""
    return moved


def names_of(conditions: pd.DataFrame) -> list[str]:
    """What stands beside each mark: its weight (not of `MANY` families), for the last of a family after its title."""
    last, many = ~conditions["family"].duplicated(keep="last"), conditions["family"].nunique() > MANY
    return [
        f"{family(row.family).title} {weight_text(row.weight)}".strip()
        if closes
        else weight_text(0 if many else row.weight)
        for row, closes in zip(conditions.itertuples(), last, strict=True)
    ]


def weight_text(weight: float) -> str:
    """A weight as labels and run ids have it; "" for none.

    >>> weight_text(0.0003), weight_text(0.25), weight_text(0)
    ('0.0003', '0.25', '')
    """
    return f"{weight:g}" if weight else ""


def label_marks(ax: Axes, conditions: pd.DataFrame, texts: list[str], dots: pd.DataFrame) -> None:
    """Write beside each mark, where it hides least, of a figure that was laid out (`Figure.draw_without_rendering`).

    Args:
        ax: with its marks drawn and its limits set.
        conditions: with `x`, `y`, `family`.
        texts: one for each.
        dots: other points that labels should not hide, with `x` and `y`.
    """
    scale = 72 / ax.figure.dpi
    at = scale * ax.transData.transform(conditions[["x", "y"]].to_numpy(dtype=float))
    taken = [_box(x, y, 8, 8) for x, y in at]
    light = [_box(x, y, 3, 3) for x, y in scale * ax.transData.transform(dots[["x", "y"]])]
    lines = [_box(x, y, 2, 2) for x, y in scale * _along_lines(ax)]
    inside = scale * ax.get_window_extent().get_points()
    for (x, y), text, row in zip(at, texts, conditions.itertuples(), strict=True):
        if not text:
            continue
        width, height = 0.58 * POINTS * len(text), 1.1 * POINTS
        best = None
        for distance, angle in itertools.product((3, 10, 18, 28), np.radians(DIRECTIONS)):
            dx, dy = (distance + 4 + width / 2) * np.cos(angle), (distance + 4 + height / 2) * np.sin(angle)
            box = _box(x + dx, y + dy, width, height)
            hidden = sum(_overlap(box, other) for other in taken) + 0.3 * sum(_overlap(box, dot) for dot in light)
            hidden += 0.8 * sum(_overlap(box, point) for point in lines)
            cost = hidden + 20 * _beyond(box, inside) + 1.5 * distance
            if best is None or cost < best[0]:
                best = cost, distance, (dx, dy), box
        _, distance, offset, box = best
        taken.append((box[0] - 2, box[1] - 3, box[2] + 2, box[3] + 3))  # two that touch read as one
        leader = {"arrowprops": {"arrowstyle": "-", "color": "0.6", "linewidth": 0.4}} if distance > 3 else {}
        beside(
            ax, text, (row.x, row.y), offset, "data", color=family(row.family).drawn.colour, ha="center", va="center",
            zorder=5, annotation_clip=False, in_layout=False, path_effects=HALO, **leader,
        )  # fmt: skip


def _along_lines(ax: Axes) -> np.ndarray:
    """Points on the lines that join marks (`draw_marks`) and on a slope, in pixels."""
    joined = [ax.transData.transform(line.get_xydata()) for line in ax.lines if line.get_label() in ("_", "_slope")]
    parts = [np.linspace(a, b, 30) for line in joined for a, b in itertools.pairwise(line)]
    return np.concatenate(parts) if parts else np.empty((0, 2))


def _beyond(box: tuple, inside: np.ndarray) -> float:
    """How far a box reaches out of another, in points."""
    (left, bottom), (right, top) = inside
    return max(0, left - box[0], box[2] - right) + max(0, bottom - box[1], box[3] - top)


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: tuple, other: tuple) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)
