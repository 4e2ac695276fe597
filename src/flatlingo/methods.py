"""The method behind a condition of a study: the term it adds to the loss, or what it changes in training."""

import json
import math

import pandas as pd
from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError
from flatlingo.experiment import Condition, RunConfig
from flatlingo.miniworld.lexicon import FORMS
from flatlingo.paths import ROOT
from flatlingo.regularizers import (
    L2,
    L2SP,
    LNSR,
    R3F,
    R4F,
    SAM,
    SMART,
    VAT,
    CodeSwitching,
    FisherPenalty,
    GradientNormPenalty,
    Mixout,
    RDrop,
    Regularizer,
    SubwordConsistency,
    TracePenalty,
    WeightNoise,
    XTune,
)
from flatlingo.tasks import MINI

TERMS = {  # called with the condition's weight
    "fisher_penalty": FisherPenalty,
    "l2": L2,
    "l2_sp": L2SP,
    "r3f": R3F,
    "r4f": R4F,
    "r_drop": RDrop,
    "smart": SMART,
    "vat": VAT,
    "lnsr": LNSR,
    "weight_noise": WeightNoise,
    "gradient_norm": GradientNormPenalty,
    "mixout": Mixout,
}
SETTINGS = {
    "sam": lambda rho: {"sam": SAM(rho)},
    "asam": lambda rho: {"sam": SAM(rho, adaptive=True)},
    "weight_decay": lambda decay: {"weight_decay": decay},
    "label_smoothing": lambda share: {"label_smoothing": share},
    "early_stopping": lambda patience: {"patience": int(patience)},
}


def terms(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[Regularizer]:
    """The terms of a run's loss: one, or none for a method that is not a term.

    Raises:
        FlatlingoError: for xTune outside the mini world, which has the only lexicon.
    """
    family, weight = config.condition.family, config.condition.weight
    if family == "consistency":
        return [SubwordConsistency(tokenizer, weight=weight, **config.study.segmentation.model_dump())]
    if family == "xtune":
        if config.study.task not in MINI:
            raise FlatlingoError(
                f"xtune switches words by a bilingual lexicon, and there is none for {config.study.task}; leave it out"
            )
        return [XTune(CodeSwitching(tokenizer, mini_lexicon()), weight=weight)]
    if family == "trace_penalty":
        return [TracePenalty(weight, every=config.study.trace_penalty_every)]
    return [TERMS[family](weight)] if family in TERMS else []


def settings(condition: Condition) -> dict:
    """What a method that is not a term changes in `training.finetune`."""
    return SETTINGS[condition.family](condition.weight) if condition.family in SETTINGS else {}


LINES = {  # one line of code, and the paper it is from
    "consistency": ("SubwordConsistency(tokenizer, weight=0.6)", "Wang, Ruder & Neubig 2021"),
    "r3f": ("R3F(weight=1.0)", "Aghajanyan et al. 2021"),
    "r4f": ("R4F(weight=1.0)", "Aghajanyan et al. 2021"),
    "r_drop": ("RDrop(weight=1.0)", "Liang et al. 2021"),
    "smart": ("SMART(weight=1.0)", "Jiang et al. 2020"),
    "vat": ("VAT(weight=1.0)", "Miyato, Dai & Goodfellow 2017"),
    "lnsr": ("LNSR(weight=1.0, layer=1)", "Hua et al. 2021"),
    "xtune": ("XTune(CodeSwitching(tokenizer, lexicon), weight=5)", "Zheng et al. 2021"),
    "weight_noise": ("WeightNoise(weight=1.0, sigma=1e-3)", "Stickland & Murray 2021, eq. (1)"),
    "fisher_penalty": ("FisherPenalty(weight=0.0003)", "Jastrzebski et al. 2021"),
    "trace_penalty": ("TracePenalty(weight=0.0003)", ""),
    "gradient_norm": ("GradientNormPenalty(weight=0.01)", "Jastrzebski et al. 2021"),
    "l2": ("L2(weight=0.01)", ""),
    "l2_sp": ("L2SP(weight=0.01)", "Li, Grandvalet & Davoine 2018"),
    "mixout": ("Mixout(p=0.1)", "Lee, Cho & Kang 2020"),
    "sam": ("finetune(…, sam=SAM(rho=0.05))", "Foret et al. 2021"),
    "asam": ("finetune(…, sam=SAM(rho=0.5, adaptive=True))", "Kwon et al. 2021"),
    "weight_decay": ("finetune(…, weight_decay=0.01)", "Loshchilov & Hutter 2019"),
    "label_smoothing": ("finetune(…, label_smoothing=0.1)", "Szegedy et al. 2016"),
    "dropout": ("load_model(…, dropout=0.3)", "Srivastava et al. 2014"),
    "early_stopping": ("finetune(…, patience=3, eval_rows=rows)", ""),
}
BENCHMARK = ROOT / "benchmarks" / "results" / "steps.json"


def catalogue(table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every named method: how to ask for it, whose it is, what a step costs and what it does to Tr(F).

    Args:
        table: runs of plan `methods`, for the last two columns.

    Returns:
        Indexed by family: `one line`, `paper`; `passes` that a step needs and the `time` measured, both as a ratio to a
        plain step (benchmarks/results/steps.json; 1 for what is no pass of its own); and means over seeds compared
        with no regulariser: `Tr(F)` as a ratio, `English` as points of accuracy gained. NaN where there are no runs.
    """
    page = pd.DataFrame.from_dict(LINES, orient="index", columns=["one line", "paper"])
    measured = json.loads(BENCHMARK.read_text(encoding="utf-8"))["rows"] if BENCHMARK.exists() else []
    costs = {row["family"]: row for row in measured if row["family"]}
    for column, key in (("passes", "floor"), ("time", "time")):
        page[column] = [costs[family][key] if family in costs else 1.0 if costs else math.nan for family in page.index]
    if table is None:
        return page.assign(**{"Tr(F)": math.nan, "English": math.nan})
    means = table.groupby("family")[["trace", "english_accuracy"]].mean()
    page["Tr(F)"] = means["trace"] / means.loc["none", "trace"]
    page["English"] = 100 * (means["english_accuracy"] - means.loc["none", "english_accuracy"])
    return page


def mini_lexicon() -> dict[str, list[str]]:
    """English words of the mini world and their German, Spanish and Chinese ones; without expressions of several words.

    >>> mini_lexicon()["dog"], mini_lexicon()["dogs"]
    (['Hund', 'perro', '狗'], ['Hunde', 'perros', '狗'])
    """
    lexicon = {}
    for concept, english in FORMS["en"].items():
        for number in ("word", "plural"):
            others = [FORMS[language][concept] for language in ("de", "es", "zh")]
            found = [forms.get(number) or forms["word"] for forms in others]
            if english[number] and " " not in english[number]:
                lexicon[english[number]] = [word for word in found if " " not in word]
    return lexicon
