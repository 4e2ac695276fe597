import random
from collections import Counter
from functools import cache

import pytest
from scipy.stats import binomtest, chisquare
from tiny import CHINESE, LETTERS, PUNCTUATION, SPECIAL, VOCABULARY, make_tokenizer
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import BertTokenizer, PreTrainedTokenizerFast

from flatlingo.errors import FlatlingoError
from flatlingo.segmentation import WordPieceSampler

TEXTS = {
    "english": "the cat understands, the dog sleeps!",
    "german": "Der Hund schläft über grünen Vögeln.",
    "spanish with unknown letters": "¿Dónde está el niño?",
    "chinese": "大猫吃鱼,小狗吃红鱼。",
    "special tokens": "the [MASK] eats[SEP] fish",
    "word too long": "a" * 101 + " cat " + "b" * 100,
    "control characters": "the\u0000 cat\tdog\u200b",
    "empty": "",
}
DEAD_END = [*SPECIAL, "ab", "a", "##d", "##bdx"]  # a longest match of "abd" is fine; after "a" there is no way on


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def exact(word: str, p: float, mode: str, vocabulary=VOCABULARY) -> dict[tuple[str, ...], float]:
    """All segmentations of a word and their probabilities, by walking every path of accepted and rejected matches."""
    pieces = set(vocabulary)

    def matches(start: int) -> list[int]:
        return [e for e in range(len(word), start, -1) if ("##" if start else "") + word[start:e] in pieces]

    @cache
    def completes(start: int) -> bool:
        return start == len(word) or any(completes(end) for end in matches(start))

    probabilities = Counter()

    def walk(start: int, sofar: tuple[str, ...], probability: float) -> None:
        if start == len(word):
            probabilities[sofar] += probability
            return
        ends = [e for e in matches(start) if mode == "faithful" or completes(e)]
        for end in ends:
            accept = 1.0 if mode == "clean" and end == ends[-1] else 1 - p
            walk(end, (*sofar, ("##" if start else "") + word[start:end]), probability * accept)
            probability *= 1 - accept
        if probability:
            probabilities[("[UNK]",)] += probability

    walk(0, (), 1.0)
    return dict(probabilities)


@pytest.mark.parametrize("mode", ["faithful", "clean"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_without_rejections_it_is_the_tokenizer(tokenizer, text, mode):
    assert WordPieceSampler(tokenizer, 0.0, mode).sample(text, random.Random(0)) == tokenizer.tokenize(text)


@pytest.mark.parametrize("max_length", [8, 15, 64])
@pytest.mark.parametrize("pair", [("english", "chinese"), ("german", "empty"), ("chinese", "special tokens")])
def test_pairs_are_encoded_and_truncated_like_the_tokenizer(tokenizer, pair, max_length):
    texts = [TEXTS[name] for name in pair]
    sampled = WordPieceSampler(tokenizer, p=0.0).encode(*texts, max_length=max_length, rng=random.Random(0))
    # as a batch of one: called on single texts, the tokenizer drops an empty second text and its [SEP]
    batch = tokenizer(*([text] for text in texts), truncation=True, max_length=max_length)
    assert sampled == {column: values[0] for column, values in batch.items()}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_single_texts_are_encoded_like_the_tokenizer(tokenizer, text):
    sampled = WordPieceSampler(tokenizer, p=0.0).encode(text, max_length=15, rng=random.Random(0))
    assert sampled == {name: values[0] for name, values in tokenizer([text], truncation=True, max_length=15).items()}


@pytest.mark.parametrize("mode", ["faithful", "clean"])
@pytest.mark.parametrize("p", [0.2, 0.7])
@pytest.mark.parametrize("word", ["cat", "understand", "über", "猫", "sleeps", "."])
def test_segmentations_have_their_exact_probabilities(tokenizer, word, p, mode):
    probabilities = exact(word, p, mode)
    assert sum(probabilities.values()) == pytest.approx(1, rel=1e-12)
    sampler, rng, n = WordPieceSampler(tokenizer, p, mode), random.Random(1), 4000
    counts = Counter(tuple(sampler.sample_word(word, rng)) for _ in range(n))
    assert set(counts) <= set(probabilities)
    common = [pieces for pieces, probability in probabilities.items() if n * probability >= 5]
    rest = n - sum(counts[pieces] for pieces in common), n * (1 - sum(probabilities[pieces] for pieces in common))
    observed, expected = [counts[pieces] for pieces in common], [n * probabilities[pieces] for pieces in common]
    if rest[1] >= 5:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    assert len(observed) == 1 or chisquare(observed, expected, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize(("mode", "rate"), [("faithful", 0.2), ("clean", 0.0)])
def test_single_piece_words_are_lost_at_rate_p_in_faithful_mode_only(tokenizer, mode, rate):
    sampler, rng = WordPieceSampler(tokenizer, 0.2, mode), random.Random(2)
    lost = sum(sampler.sample_word(word, rng) == ["[UNK]"] for word in [*PUNCTUATION, *CHINESE] * 200)
    assert binomtest(lost, 200 * len(PUNCTUATION + CHINESE), rate).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.2, 0.9, 1.0])
def test_nothing_is_lost_in_clean_mode(tokenizer, p):
    sampler, rng = WordPieceSampler(tokenizer, p, "clean"), random.Random(3)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 12))) for _ in range(300)]
    words += ["Hund", "Vögel", "understandings", *CHINESE, *PUNCTUATION]
    assert ["".join(sampler.sample_word(word, rng)).replace("##", "") for word in words] == words


def test_decoding_a_clean_sample_gives_the_text_back(tokenizer):
    sampler = WordPieceSampler(tokenizer, 0.5, "clean")
    encoded = sampler.encode("the bird understands", "schläft grün", max_length=64, rng=random.Random(4))
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "the bird understands schläft grün"


def test_clean_mode_never_enters_a_dead_end():
    sampler, rng = WordPieceSampler(make_tokenizer(DEAD_END), 0.5, "clean"), random.Random(5)
    assert {tuple(sampler.sample_word("abd", rng)) for _ in range(50)} == {("ab", "##d")}


def test_faithful_mode_loses_the_word_in_a_dead_end():
    sampler, rng = WordPieceSampler(make_tokenizer(DEAD_END), 0.5), random.Random(5)
    assert {tuple(sampler.sample_word("abd", rng)) for _ in range(50)} == {("ab", "##d"), ("[UNK]",)}


def test_words_unknown_to_the_tokenizer_stay_unknown_in_clean_mode():
    # longest match "ab" leads nowhere in "abdx", though "a ##bdx" exists
    tokenizer = make_tokenizer(DEAD_END)
    sampler, rng = WordPieceSampler(tokenizer, 0.5, "clean"), random.Random(6)
    assert tokenizer.tokenize("abdx") == ["[UNK]"]
    assert {tuple(sampler.sample_word("abdx", rng)) for _ in range(50)} == {("[UNK]",)}


def test_rejecting_everything_gives_characters(tokenizer):
    assert WordPieceSampler(tokenizer, p=1).sample_word("cat", random.Random(0)) == ["c", "##a", "##t"]


def test_equal_generators_give_equal_samples_and_the_global_one_is_left_alone(tokenizer):
    sampler, state = WordPieceSampler(tokenizer, p=0.5), random.getstate()
    first, second = (sampler.sample(TEXTS["german"], random.Random("7/0/3")) for _ in range(2))
    assert first == second
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"p": -0.1}, "0, 1"), ({"p": 1.5}, "0, 1"), ({"p": float("nan")}, "0, 1"), ({"mode": "careful"}, "careful")],
    ids=str,
)
def test_bad_settings_are_refused(tokenizer, settings, message):
    with pytest.raises(FlatlingoError, match=message):
        WordPieceSampler(tokenizer, **settings)


def test_other_kinds_of_tokenizer_are_refused():
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")))
    with pytest.raises(FlatlingoError, match="WordPiece"):
        WordPieceSampler(other)


ADDED = {
    "normalised": (True, ["COVID"], ["the covid cat", "the COVID cat", "Covid!"]),
    "whole words only": (False, [AddedToken("cat", single_word=True)], ["cats", "the cat", "cat cats."]),
    "anywhere": (False, ["at"], ["cats at", "the cat"]),
    "special": (False, [AddedToken("[NUM]", special=True)], ["[NUM] cats", "[num]", "a[NUM]b"]),
}


@pytest.mark.parametrize(("lower", "added", "texts"), ADDED.values(), ids=ADDED)
def test_tokens_that_were_added_are_found_as_the_tokenizer_finds_them(lower, added, texts):
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(VOCABULARY)}, do_lower_case=lower)
    tokenizer.add_tokens(added)
    for mode in ("faithful", "clean"):
        sampler = WordPieceSampler(tokenizer, p=0.0, mode=mode)
        for text in texts:
            found = sampler.encode(text, max_length=30, rng=random.Random(0))
            assert found["input_ids"] == tokenizer([text])["input_ids"][0], text
