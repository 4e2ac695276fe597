"""Questions asked of each language, and claims held against what is found. (`test_decisions` has the correlations.)"""

import numpy as np
import pandas as pd
import pytest

from flatlingo.report.correlations import Correlation, Question, ask, rank_correlation, verdict


@pytest.mark.parametrize(
    ("low", "high", "p_value", "sign", "word"),
    [
        (-0.9, -0.2, 0.01, -1, "agrees"),
        (-0.9, -0.2, 0.01, 1, "contradicts"),
        (0.1, 0.9, 0.01, 1, "agrees"),
        (-0.9, 0.1, 0.01, -1, "undecided"),
        (-1.0, -1.0, 0.33, -1, "undecided"),
    ],
)
def test_verdict_needs_an_interval_without_zero_and_a_small_p(low, high, p_value, sign, word):
    found = Correlation((low + high) / 2, low, high, p_value, 30, 10)
    assert verdict(found, sign=sign).startswith(f"{word}: Spearman")


def test_questions_are_asked_of_each_language():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"label": [f"w{i}" for i in range(8)], "trace": np.exp(rng.normal(size=8)), "seed": 1})
    table["family"] = ["l2", "dropout"] * 4
    table["english_accuracy"] = rng.normal(size=8)
    table = pd.concat([table.assign(language=code, zero_shot=rng.normal(size=8)) for code in ("de", "zh")])
    plain, within = (Question(f"{on}", "trace", "zero_shot", within_families=on) for on in (False, True))
    partial = Question("partial", "trace", "zero_shot", given=("english_accuracy",))
    answers = ask(table, [plain, within, partial])
    assert [(one.language, one.question.words) for one in answers] == [
        (language, words) for language in ("de", "zh") for words in ("False", "True", "partial")
    ]
    chinese = table[table["language"] == "zh"]
    ranks = rank_correlation(chinese, "zero_shot"), rank_correlation(chinese, "zero_shot", within_families=True)
    assert tuple(one.found for one in answers[3:5]) == ranks
    assert answers[5].found == rank_correlation(chinese, "zero_shot", given=("english_accuracy",))
