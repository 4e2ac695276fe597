"""The vocabulary of the shipped encoder: words of every language split, in several ways, and nothing is lost or cut."""

import random

import pytest

from flatlingo import miniworld, models
from flatlingo.miniencoder import split_words
from flatlingo.segmentation import WordPieceSampler, share_that_loses_a_word
from flatlingo.study.presets import load_preset


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer("mini-mbert")


@pytest.fixture(scope="module")
def pairs():
    examples = [e for task in miniworld.LABELS for e in miniworld.examples(task, 400, split="train", seed=7)]
    return {language: [e.texts[language] for e in examples] for language in miniworld.LANGUAGES}


def test_words_split_in_several_ways(tokenizer):
    table = split_words(tokenizer)
    assert (table.loc[["en", "de", "es"], "pieces_per_word"] >= 1.6).all()
    assert (table["several"] >= 0.3).all()


@pytest.mark.parametrize("word", ["dog", "are", "impolite"])
def test_the_segmentations_that_are_counted_are_those_that_are_drawn(tokenizer, word):
    sampler, rng = WordPieceSampler(tokenizer, 0.5, "clean"), random.Random(0)
    drawn = {tuple(sampler.sample_word(word, rng)) for _ in range(4000)}
    assert len(drawn) == sampler.count(word) > 1


def test_chinese_words_of_two_characters_are_one_piece_or_two(tokenizer):
    sampler, rng = WordPieceSampler(tokenizer, 0.5, "clean"), random.Random(0)
    drawn = {tuple(sampler.sample("一名医生正在跳舞。", rng)) for _ in range(400)}
    for whole, split in (("##医生", ("##医", "##生")), ("##跳舞", ("##跳", "##舞"))):
        assert any(whole in pieces for pieces in drawn)
        assert any(set(split) <= set(pieces) for pieces in drawn)


@pytest.mark.parametrize("language", miniworld.LANGUAGES)
def test_no_word_is_unknown(tokenizer, pairs, language):
    assert not any(tokenizer.unk_token in tokenizer.tokenize(text) for pair in pairs[language] for text in pair)


SETUPS = [plan.setup for plan in load_preset("mini").plans.values()]
HOWS = sorted({(setup.segmentation.p, setup.segmentation.mode, setup.training.max_length) for setup in SETUPS})


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("language", miniworld.LANGUAGES)
def test_no_pair_is_cut_however_it_is_segmented(tokenizer, pairs, language, how):
    p, mode, longest = how
    sampler, rng = WordPieceSampler(tokenizer, p, mode), random.Random(0)
    for pair in pairs[language]:
        views = (tokenizer(*pair), sampler.encode(*pair, max_length=10_000, rng=rng))
        assert max(len(view["input_ids"]) for view in views) <= longest


def test_faithful_segmentations_lose_words_and_clean_ones_do_not(tokenizer, pairs):
    assert share_that_loses_a_word(tokenizer, pairs["en"]) > 0.5
    assert share_that_loses_a_word(tokenizer, pairs["en"], p=0.0) == 0
    sampler, rng = WordPieceSampler(tokenizer, 0.2, "clean"), random.Random(0)
    assert not any(tokenizer.unk_token in sampler.sample(text, rng) for pair in pairs["en"] for text in pair)


def test_a_share_of_words_lost_is_that_of_single_candidates(tokenizer):
    """A Chinese character that is no word's beginning has one candidate, and is rejected with probability p."""
    rows = [("的",)] * 4000
    assert share_that_loses_a_word(tokenizer, rows, p=0.25) == pytest.approx(0.25, abs=0.03)
    assert share_that_loses_a_word(tokenizer, [("的", "的")] * 4000, p=0.25) == pytest.approx(1 - 0.75**2, abs=0.03)
