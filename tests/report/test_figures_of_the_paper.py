"""The paper's two figures and the panels of what decides, on studies that were made up."""

import re

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from flatlingo.errors import FlatlingoError
from flatlingo.report import answers, competence, marks, matched
from flatlingo.report.figures import figure1, figure2
from flatlingo.report.panels import families_figure, slopes_figure
from flatlingo.report.shapes import per_run
from flatlingo.report.simulation import simulated_study
from flatlingo.study.families import FAMILIES


def study(seeds=3, *, weak=()):
    """A study of 14 conditions in three languages; `weak` are labels of conditions that have learnt nothing."""
    table = simulated_study(1, seeds=seeds, slope=0.3)
    shares = table["label"].str.partition("=")[2].replace("", "1").astype(float)
    weights = (1 / shares).where(~table["family"].isin(matched.CONTROLS), 0.0)
    table = table.assign(weight=weights, run_id=table["label"] + "-" + table["seed"].astype(str), classes=3)
    learnt = np.where(table["label"].isin(weak), 0.4, 0.95)
    lost = np.where(table["label"].isin(weak), 0.3, 0.0)
    table = table.assign(clean_train_accuracy=learnt, train_accuracy=learnt, zero_shot=table["zero_shot"] - lost)
    return table.assign(english_accuracy=table["english_accuracy"] - lost)


WEAK = "fisher_penalty=0.1"


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def drawn(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def said(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


class TestFigure1:
    def test_a_mark_is_the_mean_over_seeds_and_every_run_is_a_dot(self):
        table = study()
        runs = per_run(table)
        ax = figure1(table).axes[0]
        assert sorted(drawn(ax)) == sorted(runs["label"].unique())
        for label, part in runs.groupby("label"):
            mark = drawn(ax)[label]
            assert mark.get_xdata()[0] == pytest.approx(np.exp(np.log(part["trace"]).mean()))
            assert mark.get_ydata()[0] == pytest.approx(100 * part["english_accuracy"].mean())
            (dots,) = (line for line in ax.lines if line.get_label() == f"_{label}")
            assert len(dots.get_xdata()) == len(part)

    def test_what_seeds_differ_by_is_taken_out(self):
        table = per_run(study())
        shifted = table.assign(english_accuracy=table["english_accuracy"] + 0.1 * (table["seed"] == 2))
        for one, other in zip(figure1(table).axes[0].lines, figure1(shifted).axes[0].lines, strict=True):
            if one.get_label().startswith("_l2="):
                found = one.get_ydata() - other.get_ydata()
                assert found == pytest.approx([found[0]] * 3)

    def test_marker_says_the_family_and_darkness_the_weight(self):
        marks_drawn = drawn(figure1(study()).axes[0])
        for label, line in marks_drawn.items():
            assert line.get_marker() == FAMILIES[label.partition("=")[0]].drawn.marker
        consistency = [marks_drawn[f"consistency={share:g}"] for share in (0.75, 0.5, 0.25, 0.1)]
        luminance = [sum(to_rgb(line.get_markeredgecolor())) for line in consistency]
        assert luminance == sorted(luminance, reverse=True)

    def test_families_are_named_beside_their_marks_and_there_is_no_legend(self):
        fig = figure1(study())
        names = " ".join(said(fig.axes[0]))
        for name in ("no regulariser", "both views", "consistency", "Fisher penalty", "L2 to zero", "dropout"):
            assert name in names
        assert not fig.legends

    def test_each_family_has_an_axis_of_its_own_unit(self):
        _, *below = figure1(study()).axes
        assert [ax.get_title() for ax in below] == ["consistency", "Fisher penalty", "L2 to zero", "dropout"]
        assert [ax.get_xlabel() for ax in below] == ["λ", "λ", "λ", "probability"]

    def test_a_mark_has_the_same_trace_in_both_panels(self):
        table = per_run(study())
        table.loc[(table["label"] == "l2=0.5") & (table["seed"] == 2), "clean_train_accuracy"] = 0.4
        large, *below = figure1(table).axes
        marks_drawn = drawn(large)
        weights = table.drop_duplicates("label").set_index("label")["weight"]
        for ax, name in zip(below, ("consistency", "fisher_penalty", "l2", "dropout"), strict=True):
            traces = dict(zip(*drawn(ax)[name].get_data(), strict=True))
            labels = [label for label in marks_drawn if label.startswith(f"{name}=")]
            assert traces == {weights[label]: marks_drawn[label].get_xdata()[0] for label in labels}
            (dashed,) = (line for line in ax.lines if line.get_color() == "0.3")
            assert dashed.get_ydata()[0] == marks_drawn["none"].get_xdata()[0]

    def test_a_model_that_has_learnt_nothing_is_hollow_named_and_does_not_set_the_axes(self):
        ax = figure1(study(weak=[WEAK])).axes[0]
        low, high = ax.get_ylim()
        accuracy = 100 * per_run(study(weak=[WEAK])).groupby("label")["english_accuracy"].mean()
        assert accuracy[WEAK] < low < accuracy.drop(WEAK).min() < accuracy.max() < high
        assert drawn(ax)[WEAK].get_markerfacecolor() == "none"
        (text,) = (text for text in said(ax) if text.startswith("Fisher penalty 10 ("))
        assert float(text.partition("(")[2].partition(" at ")[0]) == pytest.approx(accuracy[WEAK], abs=0.051)

    @pytest.mark.parametrize(("classes", "shown"), [(3, False), (1.28, True), (np.nan, False)])
    def test_chance_is_drawn_where_it_is_in_range(self, classes, shown):
        ax = figure1(study().assign(classes=classes)).axes[0]
        assert ("chance" in said(ax)) is shown


class TestFigure2:
    def test_has_the_gain_its_start_and_its_end_for_each_language(self):
        table = study()
        axes = np.array(figure2(table).axes).reshape(3, 3)
        assert [ax.get_title() for ax in axes[0]] == ["German", "Spanish", "Chinese"]
        assert [ax.get_ylabel() for ax in axes[:, 0]] == [
            "gain (points)", "before: zero-shot (%)", "after adaptation (%)",
        ]  # fmt: skip
        for column, language in zip(axes.T, ("de", "es", "zh"), strict=True):
            part = table[table["language"] == language]
            for ax, y in zip(column, ("gain", "zero_shot", "adapted"), strict=True):
                one = 100 * part.loc[part["label"] == "l2=0.5", y].mean()
                assert drawn(ax)["l2=0.5"].get_ydata()[0] == pytest.approx(one)

    @pytest.mark.parametrize("control", [True, False])
    def test_the_english_control_stands_beside_gain_and_end_where_it_was_run(self, control):
        table = study() if control else study().assign(control=np.nan, control_gain=np.nan)
        axes = np.array(figure2(table).axes).reshape(3, 3)
        found = [any(line.get_label() == "_control" for line in ax.lines) for ax in axes[:, 0]]
        assert found == [control, False, control]

    @pytest.mark.parametrize(
        ("table", "bars"),
        [(study(), True), (study(seeds=1), False), (study()[lambda t: t["family"].isin(["none", "l2"])], False)],
        ids=["three seeds", "one seed", "three conditions"],
    )
    def test_intervals_need_seeds_and_six_conditions(self, table, bars):
        ax = figure2(table).axes[0]
        assert any(found.get_label() == "_bars" for found in ax.collections) is bars

    def test_a_condition_that_is_not_competent_does_not_set_the_axes(self):
        ax = figure2(study(weak=[WEAK])).axes[3]
        low, _ = ax.get_ylim()
        start = study(weak=[WEAK])[lambda t: (t["language"] == "de") & (t["label"] == WEAK)]["zero_shot"].mean()
        assert 100 * start < low
        assert WEAK in said(ax)


def test_the_pooled_interval_is_that_of_a_two_way_analysis_of_variance():
    runs, conditions = marks.condition_marks(competence.with_competence(per_run(study())), "english_accuracy")
    grid = runs.pivot(index="label", columns="seed", values="y").to_numpy()
    left = grid - grid.mean(axis=1, keepdims=True) - grid.mean(axis=0) + grid.mean()
    freedom = (grid.shape[0] - 1) * (grid.shape[1] - 1)
    expected = 2.0555 * np.sqrt((left**2).sum() / freedom / 3)  # t of 26 degrees of freedom
    assert freedom == 26
    assert marks.half_widths(runs, conditions).tolist() == pytest.approx([expected] * len(conditions), rel=1e-4)
    runs = runs.drop(index=runs.index[(runs["label"] == "none") & (runs["seed"] == 1)])
    found = marks.half_widths(runs, conditions.assign(n=np.where(conditions["label"] == "none", 2, 3)))
    ratio = found[conditions["label"] == "none"].iloc[0] / found[conditions["label"] != "none"].iloc[0]
    assert ratio == pytest.approx((3 / 2) ** 0.5), "a condition with two runs of three"


@pytest.mark.parametrize(
    ("scale", "ends", "beyond"),
    [("linear", (-2.0, -0.5), (-4.0, 3.0)), ("linear", (0.0, 2.0), (-1.0, 5.0)), ("log", (0.5, 2.0), (0.1, 30.0))],
    ids=["negative ends", "an end at 0", "logarithms"],
)
def test_the_arrow_of_a_mark_beyond_an_axis_points_to_where_it_is(scale, ends, beyond):
    _, ax = plt.subplots()
    ax.set(xscale=scale, xlim=ends, ylim=(0, 10))
    conditions = pd.DataFrame({"family": ["l2", "l2"], "weight": [0.1, 0.2], "label": ["l2=0.1", "l2=0.2"]})
    marks.off_the_axes(ax, conditions.assign(x=beyond, y=[4.0, 12.0]))
    left, right = ax.texts  # each an arrow from where its text would stand to the mark
    assert (left.xy, left.xyann) == ((ends[0], 4.0), (12, 0))
    assert (right.xy, right.xyann) == ((ends[1], 10.0), (-12, -12))


class TestPanels:
    def test_the_slope_drawn_and_said_is_the_one_that_decides(self):
        table = study()
        found = answers.decided(table, n_permutations=99)
        ax = slopes_figure(table, found, answers.ENGLISH).axes[0]
        row = found[(found["question"] == "slope") & (found["outcome"] == "English accuracy")].iloc[0]
        (line,) = (line for line in ax.lines if line.get_label() == "_slope")
        (x, y) = line.get_data()
        assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(row["value"])
        assert said(ax)[0].startswith(f"per halving {row['value']:+.2f} [".replace("-", "−"))
        assert f": {row['verdict']}\nwithin families" in said(ax)[0]

    def test_of_many_families_the_last_weight_is_named_and_lines_join_weights_only(self):
        once = study()
        parts = [once]
        for name in [name for name in FAMILIES if name not in set(once["family"])][: marks.MANY]:
            one = once[once["family"] == "l2"].assign(family=name)
            label = name + "=" + one["label"].str.partition("=")[2]
            parts.append(one.assign(label=label, run_id=label + one["run_id"], trace=one["trace"] * 1.01))
        table = pd.concat(parts)
        fig = slopes_figure(table, answers.decided(table, n_permutations=9), answers.ENGLISH)
        names = said(fig.axes[0])[1:]
        assert len(names) == table["family"].nunique()
        assert not [text for text in names if re.fullmatch(r"[\d.]+", text)]
        words = [text.get_text() for text in fig.legends[0].get_texts()]
        assert {"slope", "consistency of two passes", "on the weights"} < set(words)
        lines = [line.get_xdata() for line in fig.axes[0].lines if line.get_label() == "_"]
        assert not [x for x in lines if 0.0 in x and len(x) > 1]

    def test_pairs_at_equal_trace_are_drawn_with_what_decides(self):
        table = study()
        found = answers.decided(table, n_permutations=99)
        upper, _, lower, _ = families_figure(table, found, answers.ENGLISH).axes
        for question, ax in (("consistency minus L2 to zero at equal Tr(F)", upper), ("both views minus none", lower)):
            row = found[(found["question"] == question) & (found["outcome"] == "English accuracy")].iloc[0]
            (text,) = (t for t in said(ax) if t.startswith(f"{row['value']:+.2f}".replace("-", "−")))
            assert text.endswith(row["verdict"])
        runs = per_run(table)
        pairs = matched.pairs_at_equal_trace(runs, "consistency", "l2")
        expected = matched.compare(runs, "english_accuracy", pairs)
        for name, (first, second) in pairs.items():
            assert drawn(upper)[f"{first} − {second}"].get_xdata()[0] == pytest.approx(expected.loc[name, "value"])

    def test_a_pair_with_a_condition_that_is_not_competent_is_hollow_and_does_not_count(self):
        table = study(weak=[WEAK])
        found = answers.decided(table, n_permutations=99)
        ax = families_figure(table, found, answers.ENGLISH).axes[0]
        assert any(text.startswith("not competent") for text in said(ax))
        assert not [label for label in drawn(ax) if WEAK in label]
        assert WEAK in competence.left_out(table)
        assert any("Fisher penalty 10" in text for text in said(slopes_figure(table, found, answers.ENGLISH).axes[0]))

    @pytest.mark.parametrize(
        ("table", "reason"),
        [
            (study()[lambda t: t["family"] != "none"], "no run of condition none"),
            (study().assign(classes=np.nan), "classes is not known of every run"),
            (per_run(study()), "no second stage"),
        ],
        ids=["no baseline", "competence unknown", "no second stage"],
    )
    def test_what_cannot_be_decided_is_said_in_every_panel(self, table, reason):
        found = answers.decided(table, n_permutations=9)
        for draw in (slopes_figure, families_figure):
            for ax in draw(table, found, answers.ADAPTED).axes:
                assert reason in " ".join(said(ax)).replace("\n", " ")
        assert answers.verdict_text(table, found, answers.ADAPTED)

    @pytest.mark.parametrize(
        ("families", "reasons", "seeds"),
        [
            (["none", "consistency", "fisher_penalty"], ["no run of L2 to zero", "no run of both views"], 1),
            (["none"], ["no run of consistency and of dropout", "too few conditions"], 3),
        ],
        ids=["two families, one seed", "baseline only"],
    )
    def test_families_that_were_not_run_are_named(self, families, reasons, seeds):
        table = study(seeds)[lambda t: t["family"].isin(families)]
        found = answers.decided(table, n_permutations=9)
        asked = table, found, answers.ENGLISH
        figures = [slopes_figure(*asked), families_figure(*asked), figure1(table), figure2(table)]
        text = " ".join(line for fig in figures for ax in fig.axes for line in said(ax))
        for reason in reasons:
            assert reason in text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (study().drop(columns="trace"), "the table has no column trace; it has run_id"),
        (study().head(0), "the table has no rows"),
        (study().replace({"family": {"dropout": "dropuot"}}), "unknown family 'dropuot'; did you mean 'dropout'"),
    ],
    ids=["column", "empty", "family"],
)
@pytest.mark.parametrize(
    "draw",
    [
        figure1,
        figure2,
        lambda t: slopes_figure(t, pd.DataFrame(), answers.ENGLISH),
        lambda t: families_figure(t, pd.DataFrame(), answers.ENGLISH),
    ],
    ids=["figure 1", "figure 2", "slopes", "families"],
)
def test_bad_tables_are_one_clear_message(draw, table, message):
    with pytest.raises(FlatlingoError, match=message):
        draw(table)


def test_labels_lie_apart_and_off_the_marks():
    ax = figure1(study()).axes[0]
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts[1:] if text.get_text()]  # the first is the correlation
    hidden = sum(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert len(boxes) == 14
    assert hidden <= 1
