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
    TraceTarget,
    XTune,
)
from flatlingo.segmentation import UnigramSampler, subword_sampler
from flatlingo.study.condition import Condition
from flatlingo.study.families import Family
from flatlingo.study.runspec import RunSpec
from flatlingo.study.setup import Setup
from flatlingo.tasks import MINI


def terms(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> list[Regularizer]:
    """The terms of a run's loss, none for a method that is not a term.

    Raises:
        FlatlingoError: for xTune outside the mini world, which has the only lexicon; for consistency that loses pieces
            as WordPiece does, of a tokenizer of another kind.
    """
    return [_term(row, weight, spec, tokenizer) for row, weight in spec.condition.parts if row.changes == "term"]


def settings(condition: Condition) -> dict:
    """What methods that are not terms change in `training.finetune`.

    >>> settings(Condition(family="weight_decay", weight=0.01)), settings(Condition(family="l2", weight=0.01))
    ({'weight_decay': 0.01}, {})
    """
    return {row.how: _setting(row, weight) for row, weight in condition.parts if row.changes == "setting"}


def _term(row: Family, weight: float, spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> Regularizer:
    setup = spec.setup
    if row.name == "both_views":
        return BothViews(tokenizer, **dict(setup.segmentation))
    if row.name in ("consistency", "consistency_faithful"):
        if row.name == "consistency_faithful" and isinstance(subword_sampler(tokenizer), UnigramSampler):
            raise FlatlingoError(
                f"consistency_faithful loses pieces as WordPiece tokenizers do, and that of {spec.encoder} is none; "
                "leave it out"
            )
        mode = "faithful" if row.name == "consistency_faithful" else setup.segmentation.mode
        return SubwordConsistency(tokenizer, weight=weight, **dict(setup.segmentation) | {"mode": mode})
    if row.name == "xtune":
        if setup.task not in MINI:
            raise FlatlingoError(
                f"xtune switches words by a bilingual lexicon, and there is none for {setup.task}; leave it out"
            )
        return XTune(CodeSwitching(tokenizer, mini_lexicon()), weight=weight, formula="code")  # of which 5 is
    if row.name == "trace_target":
        return TraceTarget(weight, every=spec.every(row.name), after=setup.trace_target_after)
    if row.name in ("trace_penalty", "fisher_penalty"):
        return getattr(regularizers, row.how)(weight, every=spec.every(row.name), parameters=spec.condition.parameters)
    return getattr(regularizers, row.how)(weight)


def segmentation(setup: Setup, tokenizer: PreTrainedTokenizerBase) -> SampledSegmentation:
    """The second segmentation of a text as the consistency loss of a study draws it."""
    return SampledSegmentation(tokenizer, **setup.segmentation.model_dump(include={"p", "alpha", "mode"}))


def _setting(row: Family, weight: float) -> object:
    if row.how == "sam":
        return SAM(weight, adaptive=row.name == "asam")
    return int(weight) if row.how == "patience" else weight


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
