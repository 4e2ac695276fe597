"""Sampling from SentencePiece unigram vocabularies, those of XLM-R's kind."""

import io
import itertools
import math
import random
from collections import Counter

import pytest
import sentencepiece
from scipy.stats import chi2_contingency, chisquare
from tiny import make_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import (
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizer,
)

from flatlingo.errors import FlatlingoError
from flatlingo.models import load_tokenizer
from flatlingo.regularizers import SubwordConsistency
from flatlingo.segmentation import UnigramSampler, WordPieceSampler
from flatlingo.training import finetune

SCORES = {"▁": -3.0, "▁the": -2.0, "▁cat": -3.5, "▁un": -3.2, "▁under": -4.0, "▁stand": -4.5, "stand": -4.2}
SCORES |= {"der": -4.4, "st": -3.9, "and": -3.7, "s": -3.1, "▁über": -5.0, "▁大猫": -5.5, "大猫": -5.0, ",": -3.3}
SCORES |= {letter: -4.8 - 0.05 * i for i, letter in enumerate("abcdehnrtuü大猫吃")}
TEXTS = {
    "english": "the cat understands, the cat stands",
    "unknown letters": "the xyz cat understandsq ~",
    "chinese": "大猫吃大猫,大猫",
    "full width and spaces": "ｔｈｅ　cat \t und\n",
    "special tokens": "the <mask> understands</s> cat",
    "empty": "",
}


def make_unigram(scores: dict[str, float] = SCORES) -> XLMRobertaTokenizer:
    special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    return XLMRobertaTokenizer(vocab=[*special, *scores.items(), ("<mask>", 0.0)])


def exact(word: str, alpha: float, nbest: int = -1) -> dict[tuple[str, ...], float]:
    """All segmentations of a normalised word and their probabilities, by enumerating every way to cut it."""
    unknown = min(SCORES.values()) - 10  # as sentencepiece and tokenizers have it
    scores = {}
    for cuts in itertools.product([False, True], repeat=len(word) - 1):
        places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(word)]
        pieces = tuple(word[a:b] for a, b in itertools.pairwise(places))
        if all(piece in SCORES or len(piece) == 1 for piece in pieces):
            scores[pieces] = sum(SCORES.get(piece, unknown) for piece in pieces)
    if nbest > 0:
        scores = dict(sorted(scores.items(), key=lambda item: -item[1])[:nbest])
    weights = {pieces: math.exp(alpha * score) for pieces, score in scores.items()}
    return {tuple(_fused(pieces)): weight / sum(weights.values()) for pieces, weight in weights.items()}


def _fused(pieces):
    """Unknown characters in a row are one unknown piece."""
    for known, group in itertools.groupby(pieces, SCORES.__contains__):
        yield from group if known else ["<unk>"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_unigram()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as XLM-R's authors ship it: a trained sentencepiece.bpe.model with its own order of ids."""
    folder, rng, model = tmp_path_factory.mktemp("xlm-r"), random.Random(0), io.BytesIO()
    words = ["the", "cats", "cat", "understand", "understanding", "stands", "Vögel", "grün", "大猫吃", "大猫"]
    texts = (" ".join(rng.choices(words, k=5)) for _ in range(300))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    XLMRobertaConfig(vocab_size=35).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("settings", [{"nbest": 1}, {"alpha": 1e6}, {"alpha": 1e6, "nbest": 5}], ids=str)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_without_randomness_it_is_the_tokenizer(tokenizer, text, settings):
    sampled = UnigramSampler(tokenizer, **settings).encode(text, "cat", max_length=64, rng=random.Random(0))
    batch = tokenizer([text], ["cat"])  # as a batch of one: called on single texts, a tokenizer drops an empty text
    assert sampled == {column: values[0] for column, values in batch.items()}


@pytest.mark.parametrize("max_length", [9, 15])
@pytest.mark.parametrize("pair", [("english", "chinese"), ("chinese", "empty"), ("special tokens", "english")])
def test_pairs_are_truncated_like_the_tokenizer(tokenizer, pair, max_length):
    texts = [TEXTS[name] for name in pair]
    sampled = UnigramSampler(tokenizer, nbest=1).encode(*texts, max_length=max_length, rng=random.Random(0))
    batch = tokenizer(*([text] for text in texts), truncation=True, max_length=max_length)
    assert sampled == {column: values[0] for column, values in batch.items()}
    assert len(sampled["input_ids"]) <= max_length


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_single_texts_are_encoded_like_the_tokenizer(tokenizer, text):
    sampled = UnigramSampler(tokenizer, nbest=1).encode(text, max_length=9, rng=random.Random(0))
    assert sampled == {name: values[0] for name, values in tokenizer([text], truncation=True, max_length=9).items()}


@pytest.mark.parametrize("nbest", [-1, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("word", ["understands", "大猫", "cat", "unxd"])
def test_segmentations_have_their_exact_probabilities(tokenizer, word, alpha, nbest):
    probabilities = Counter()
    for pieces, probability in exact("▁" + word, alpha, nbest).items():
        probabilities[pieces] += probability
    sampler, rng, n = UnigramSampler(tokenizer, alpha, nbest), random.Random(1), 4000
    counts = Counter(tuple(sampler.sample(word, rng)) for _ in range(n))
    assert set(counts) <= set(probabilities)
    common = [pieces for pieces, probability in probabilities.items() if n * probability >= 5]
    rest = n - sum(counts[pieces] for pieces in common), n * (1 - sum(probabilities[pieces] for pieces in common))
    observed, expected = [counts[pieces] for pieces in common], [n * probabilities[pieces] for pieces in common]
    if rest[1] >= 5:
        observed, expected = [*observed, rest[0]], [*expected, rest[1]]
    assert len(observed) == 1 or chisquare(observed, expected, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_decoding_a_sample_gives_the_text_back(tokenizer, alpha):
    sampler, rng = UnigramSampler(tokenizer, alpha), random.Random(4)
    for _ in range(20):
        encoded = sampler.encode("the cat understands", "大猫, über", max_length=64, rng=rng)
        assert tokenizer.unk_token_id not in encoded["input_ids"]
        assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == "the cat understands 大猫, über"


def test_ids_are_those_of_the_sentencepiece_model_with_xlm_rs_offset_of_one(trained):
    original = sentencepiece.SentencePieceProcessor(model_file=str(trained / "sentencepiece.bpe.model"))
    sampler, text, rng = (
        UnigramSampler(load_tokenizer(trained), alpha=0.2, nbest=3),
        "understanding cats",
        random.Random(0),
    )
    drawn = {tuple(sampler.encode(text, "cat", max_length=64, rng=rng)["input_ids"]) for _ in range(60)}
    cat = [i + 1 for i in original.nbest_encode("cat", nbest_size=3)[0]]
    best = original.nbest_encode(text, nbest_size=3)
    assert {ids[1 : ids.index(2)] for ids in drawn} == {tuple(i + 1 for i in ids) for ids in best}
    assert (0, *(i + 1 for i in best[0]), 2, 2, *cat, 2) in drawn


def test_the_distribution_is_that_of_the_librarys_own_sampler(trained):
    original = sentencepiece.SentencePieceProcessor(model_file=str(trained / "sentencepiece.bpe.model"))
    sampler, rng, text, n = UnigramSampler(load_tokenizer(trained), 0.1), random.Random(2), "cats 大猫", 4000
    ours = Counter(" ".join(sampler.sample(text, rng)) for _ in range(n))
    settings = {"enable_sampling": True, "alpha": 0.1, "nbest_size": -1, "out_type": str}
    theirs = Counter(" ".join(original.encode(text, **settings)) for _ in range(n))
    common = [pieces for pieces in ours | theirs if ours[pieces] + theirs[pieces] >= 20]
    assert len(common) >= 5
    assert (
        chi2_contingency([[counts[pieces] for pieces in common] for counts in (ours, theirs)]).pvalue > 1e-6
    )  # theirs is not seeded


def test_a_folder_with_only_a_tokenizer_json_gives_the_same_samples(trained, tmp_path):
    before = load_tokenizer(trained)
    before.save_pretrained(tmp_path)
    XLMRobertaConfig(vocab_size=35).save_pretrained(tmp_path)
    assert not (tmp_path / "sentencepiece.bpe.model").exists()
    views = [
        [UnigramSampler(tokenizer, 0.1).sample("understanding cats", rng) for _ in range(20)]
        for tokenizer, rng in ((before, random.Random(3)), (load_tokenizer(tmp_path), random.Random(3)))
    ]
    assert views[0] == views[1]


def test_the_consistency_loss_takes_the_sampler_of_the_tokenizers_kind(tokenizer):
    assert isinstance(SubwordConsistency(make_tokenizer()).perturbation.sampler, WordPieceSampler)
    terms = [SubwordConsistency(tokenizer, 0.6, alpha=0.1, nbest=8, mode=mode) for mode in ("faithful", "clean")]
    sampler = terms[0].perturbation.sampler
    assert (type(sampler), sampler.alpha, sampler.nbest) == (UnigramSampler, 0.1, 8)
    row = {"row_id": 3, "text_a": TEXTS["english"], "text_b": "understands stands"}
    for term, redrawn in zip(terms, (False, True), strict=True):
        views = [term.features(row, seed=1, epoch=epoch, max_length=64) for epoch in range(4)]
        assert any(view != views[0] for view in views) == redrawn


def test_an_xlm_r_is_trained_with_sampled_segmentations(tokenizer):
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        type_vocab_size=1,
        num_labels=3,
    )
    rows = [{"text_a": "the cat understands", "text_b": "cat stands", "label": i % 3} for i in range(8)]
    log = finetune(
        XLMRobertaForSequenceClassification(config),
        tokenizer,
        rows,
        regularizers=[SubwordConsistency(tokenizer)],
        seed=1,
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
        max_length=32,
    )
    assert log[0]["consistency/kl"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnigramSampler(make_unigram(), alpha=-0.1), "alpha"),
        (lambda: UnigramSampler(make_unigram(), alpha=float("inf")), "alpha.*nbest=1"),
        (lambda: UnigramSampler(make_unigram(), alpha=float("nan")), "alpha"),
        (lambda: UnigramSampler(make_unigram(), nbest=0), "nbest"),
        (lambda: UnigramSampler(make_unigram(), nbest=2.5), "nbest"),
        (lambda: UnigramSampler(make_tokenizer()), "BertTokenizer.*no Unigram model"),
        (lambda: UnigramSampler(_raw(Unigram([("<unk>", 0.0), ("a", -1.0)], None, False))), "no unknown piece"),
        (lambda: WordPieceSampler(make_unigram()), "XLMRobertaTokenizer.*no WordPiece"),
        (lambda: SubwordConsistency(make_unigram(), mode="careful"), "careful"),
        (lambda: SubwordConsistency(make_unigram(), nbest=-2), "nbest"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(FlatlingoError, match=message):
        make()


def _raw(model) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
