"""Whether the sizes of preset mini leave something to regularise, and a gap to transfer across."""

import pandas as pd

VARIANTS = ("none", "no label noise", "early stopping")


def regime(table: pd.DataFrame) -> pd.DataFrame:
    """What was asked of the unregularised model before the sizes were chosen: the means over seeds, and what holds.

    Args:
        table: one row per run, columns `plan, variant` (of `VARIANTS`), `english_accuracy`, `zero_shot_accuracy` and
            `noisy_fitted` (0..1), as in `data/recorded/mini-regimes.csv`.

    Returns:
        Indexed by plan and question: `value` (points; of the wrong labels a share), what it should be at `least`, and
        whether it `holds`.

    >>> runs = pd.DataFrame({"plan": ["nli"] * 3 + ["paraphrase"], "variant": [*VARIANTS, "none"], "noisy_fitted": 0.6})
    >>> runs = runs.assign(english_accuracy=[0.7, 0.8, 0.69, 0.8], zero_shot_accuracy=[0.6, 0.7, 0.6, 0.8])
    >>> regime(runs)["holds"].tolist()
    [True, True, True, True, False, False]
    """
    means = table.groupby(["plan", "variant"])[["english_accuracy", "zero_shot_accuracy", "noisy_fitted"]].mean()
    english, other = 100 * means["english_accuracy"], 100 * means["zero_shot_accuracy"]
    rows = {
        ("nli", "English"): (english["nli", "none"], 65),
        ("nli", "English less zero-shot"): (english["nli", "none"] - other["nli", "none"], 8),
        ("nli", "wrong labels reproduced"): (means.loc[("nli", "none"), "noisy_fitted"], 0.5),
        ("nli", "label noise costs"): (english["nli", "no label noise"] - english["nli", "none"], 3),
        ("nli", "early stopping gains"): (english["nli", "early stopping"] - english["nli", "none"], 1),
        ("paraphrase", "English less zero-shot"): (english["paraphrase", "none"] - other["paraphrase", "none"], 4),
    }
    index = pd.MultiIndex.from_tuples(rows, names=["plan", "what"])
    found = pd.DataFrame([*rows.values()], index=index, columns=["value", "least"])
    return found.assign(holds=found["value"] >= found["least"])
