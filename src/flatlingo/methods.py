"""The method behind a condition of a study: the term it adds to the loss, or what it changes in training."""

from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError
from flatlingo.experiment import Condition, RunConfig
from flatlingo.miniworld.lexicon import FORMS
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
