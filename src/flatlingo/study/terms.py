"""From a condition to what its method adds to the loss or changes in training."""

from transformers import PreTrainedTokenizerBase

from flatlingo import regularizers
from flatlingo.errors import FlatlingoError
from flatlingo.miniworld.lexicon import FORMS
from flatlingo.regularizers import (
    SAM,
    BothViews,
    CodeSwitching,
    Regularizer,
    SampledSegmentation,
    SubwordConsistency,
    TracePenalty,
    XTune,
)
from flatlingo.study.families import family
from flatlingo.study.presets import Condition, RunSpec, Setup
from flatlingo.tasks import MINI


def terms(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> list[Regularizer]:
    """The terms of a run's loss: one, or none for a method that is not a term.

    Raises:
        FlatlingoError: for xTune outside the mini world, which has the only lexicon.
    """
    row, weight, setup = family(spec.condition.family), spec.condition.weight, spec.setup
    if row.changes != "term":
        return []
    if row.name == "both_views":
        return [BothViews(tokenizer, **dict(setup.segmentation))]
    if row.name == "consistency":
        return [SubwordConsistency(tokenizer, weight=weight, **dict(setup.segmentation))]
    if row.name == "xtune":
        if setup.task not in MINI:
            raise FlatlingoError(
                f"xtune switches words by a bilingual lexicon, and there is none for {setup.task}; leave it out"
            )
        return [XTune(CodeSwitching(tokenizer, mini_lexicon()), weight=weight)]
    if row.name == "trace_penalty":
        return [TracePenalty(weight, every=setup.trace_penalty_every)]
    return [getattr(regularizers, row.how)(weight)]


def segmentation(setup: Setup, tokenizer: PreTrainedTokenizerBase) -> SampledSegmentation:
    """The second segmentation of a text as the consistency loss of a study draws it."""
    return SampledSegmentation(tokenizer, **setup.segmentation.model_dump(include={"p", "alpha", "mode"}))


def settings(condition: Condition) -> dict:
    """What a method that is not a term changes in `training.finetune`.

    >>> settings(Condition(family="weight_decay", weight=0.01)), settings(Condition(family="l2", weight=0.01))
    ({'weight_decay': 0.01}, {})
    """
    row, weight = family(condition.family), condition.weight
    if row.changes != "setting":
        return {}
    if row.how == "sam":
        return {"sam": SAM(weight, adaptive=row.name == "asam")}
    return {row.how: int(weight) if row.how == "patience" else weight}


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
