"""The encoder of the mini world: what it is pre-trained on, and how its vocabulary splits words."""

import hashlib
import math
import random
import statistics
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from flatlingo import devices, miniworld
from flatlingo.miniworld.corpus import CLAIMS
from flatlingo.miniworld.lexicon import FORMS
from flatlingo.pretraining import Pretraining, pretrain
from flatlingo.segmentation import WordPieceSampler, share_that_loses_a_word

MINI_WORLD_DOCUMENTS = 192_000


def pretrain_mini_world(
    output: Path,
    settings: Pretraining,
    *,
    start: Path | None = None,
    claims: float = CLAIMS,
    documents: int = MINI_WORLD_DOCUMENTS,
) -> dict:
    """Pre-train on the mini world's corpus, as the shipped encoder was (see `pretrain` and `miniworld.corpus`)."""
    devices.refuse_several_processes("pre-training")  # before half a minute of corpus
    texts = list(miniworld.corpus(documents, seed=settings.seed, claims=claims))
    return pretrain(texts, output, settings, description=mini_world_corpus(settings.seed, claims), start=start)


def mini_world_corpus(seed: int, claims: float = CLAIMS) -> str:
    """What a model card says of the corpus, and a digest that changes when the mini world does."""
    sample = "\n".join(miniworld.corpus(1000, seed=seed, claims=claims))
    share = "" if claims == CLAIMS else f"{claims:.0%} claims, "
    return (
        f"mini world, seed {seed}, {share}SHA-256 of the first 1000: {hashlib.sha256(sample.encode()).hexdigest()[:16]}"
    )


def split_words(tokenizer: PreTrainedTokenizerBase, rows: int = 500) -> pd.DataFrame:
    """How the words of the mini world split: over validation rows of both tasks, a line a language.

    Args:
        tokenizer: with a WordPiece model.
        rows: of each task.

    Returns:
        `pieces_per_word`: of the words between spaces and punctuation, which Chinese has not (NaN);
        `several`: the share of running words that have two segmentations or more without losing a piece, in Chinese of
        the lexicon's words of two characters, which may be one piece or two; `loses_a_word`: the share of pairs, in a
        draw of `faithful` segmentations (p = 0.2), of which a word is lost to the unknown piece; `longest`: pieces of
        the longest pair.
    """
    examples = [e for task in miniworld.LABELS for e in miniworld.examples(task, rows, split="validation", seed=0)]
    plain, sampler = WordPieceSampler(tokenizer, 0.0), WordPieceSampler(tokenizer, mode="clean")
    rng = random.Random(0)  # what it draws does not matter at p = 0
    table = {}
    for language in miniworld.LANGUAGES:
        pairs = [example.texts[language] for example in examples]
        texts = [text for pair in pairs for text in pair]
        if language == "zh":
            words = [word for word in _CHINESE_PAIRS for text in texts for _ in range(text.count(word))]
            several, pieces = [f"##{word}" in tokenizer.get_vocab() for word in words], [math.nan]
        else:
            words = [word for text in texts for word in sampler.words(text) if word.isalpha()]
            several = [sampler.count(word) > 1 for word in words]
            pieces = [len(plain.sample_word(word, rng)) for word in words]
        table[language] = {
            "pieces_per_word": statistics.fmean(pieces),
            "several": statistics.fmean(several),
            "loses_a_word": share_that_loses_a_word(tokenizer, pairs),
            "longest": max(len(tokenizer(*pair)["input_ids"]) for pair in pairs),
        }
    return pd.DataFrame.from_dict(table, orient="index")


_CHINESE_PAIRS = sorted({form["word"] for form in FORMS["zh"].values() if len(form["word"]) == 2})
