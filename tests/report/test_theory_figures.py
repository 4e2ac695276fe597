"""The figures of equation (1) and of the estimators show their tables."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from flatlingo.report.theory_figures import theory_figure


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def markers(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_theory_figure_shows_its_tables():
    deviation = np.logspace(-5, 1, 13)
    expansion = pd.DataFrame({"model": "MLP", "deviation": deviation, "kl": deviation**2, "quadratic": deviation**2})
    expansion = expansion.assign(remainder=deviation**3, paired=deviation**4)
    two = pd.DataFrame({"direction": 0, "deviation": [0.1, 1.0], "quadratic": [1.0, 10.0]})
    directions = pd.concat([two.assign(sign=1, kl=[1.2, 8.0]), two.assign(sign=-1, kl=[0.8, 2.0])])
    independent = pd.DataFrame({"model": "MLP", "deviation": [0.1, 1.0], "ratio": [1.0, 0.8], "standard_error": 0.1})
    structured = pd.DataFrame({"noise": ["a", "b"], "predicted": [1, 20], "ratio": [1.1, 19], "standard_error": 0.1})
    fig = theory_figure(expansion, directions, independent, structured)
    growth, left_out, single, mean, correlated = fig.axes
    np.testing.assert_allclose(markers(growth)["MLP"].get_ydata(), deviation**2)
    assert [text.get_text() for text in left_out.texts] == ["slope 3", "slope 4"]
    drawn = [list(line.get_ydata()) for line in single.lines[:3]]
    assert drawn == [pytest.approx(one) for one in ([0.8, 0.2], [1.2, 0.8], [1.0, 0.5])]
    assert mean.containers[0].lines[0].get_ydata() == pytest.approx([1.0, 0.8])
    assert [tick.get_text() for tick in correlated.get_yticklabels()] == ["a", "b"]
