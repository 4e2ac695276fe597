"""Subword sampling: random segmentations of a text into the pieces of its own vocabulary."""

import json
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, groupby
from typing import Literal

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram, WordLevel, WordPiece
from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError

Mode = Literal["faithful", "clean"]
PIECES = ModelProto.SentencePiece
UNKNOWN_PENALTY = 10  # of an unknown character below the lowest score, in sentencepiece and tokenizers
CACHED_LENGTH = 32  # the longest word whose segmentations are kept: longer ones (Chinese sentences) hardly come again


def subword_sampler(
    tokenizer: PreTrainedTokenizerBase, *, p: float = 0.2, mode: Mode = "faithful", alpha: float = 0.2, nbest: int = -1
) -> "SubwordSampler":
    """The sampler for a tokenizer's kind: `UnigramSampler(alpha, nbest)` or `WordPieceSampler(p, mode)`.

    Raises:
        FlatlingoError: if the tokenizer is of neither kind, or an argument that its sampler uses is not as there.
    """
    if isinstance(_model(tokenizer), Unigram):
        _check_mode(mode)
        return UnigramSampler(tokenizer, alpha, nbest)
    return WordPieceSampler(tokenizer, p, mode)


def share_that_loses_a_word(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[str]], *, p: float = 0.2, seed: int = 0
) -> float:
    """The share of rows in whose `faithful` segmentation a word is unknown that the tokenizer knows.

    A word with a single candidate at some place is lost with probability p, be it the quantifier or the negation that
    the label hangs on; punctuation does not count. In `clean` mode none is.

    Args:
        tokenizer: with a WordPiece model.
        rows: one text or more each.
        p: probability of rejecting a match.
        seed: of the draws.
    """
    plain, sampler, rng = WordPieceSampler(tokenizer, 0.0), WordPieceSampler(tokenizer, p), random.Random(seed)
    unknown = [tokenizer.unk_token]

    def lost(word: str) -> bool:
        return sampler.sample_word(word, rng) == unknown != plain.sample_word(word, rng)

    words = ([word for text in texts for word in plain.words(text) if word[0].isalnum()] for texts in rows)
    rows_that_lose = [sum(map(lost, row)) > 0 for row in words]
    return sum(rows_that_lose) / len(rows_that_lose)


def _splitter(tokens: dict[str, AddedToken]) -> Callable[[str], list[tuple[str, str | None]]]:
    """What splits a text at tokens that were added to a vocabulary: parts, each with the token that it is or None.

    Args:
        tokens: by the text that stands for them.
    """
    patterns = {
        text: rf"(?<!\w){re.escape(text)}(?!\w)" if token.single_word else re.escape(text)
        for text, token in tokens.items()
    }
    longest_first = sorted(patterns, key=len, reverse=True)
    found = re.compile(f"({'|'.join(patterns[text] for text in longest_first)})")

    def split(text: str) -> list[tuple[str, str | None]]:
        parts = found.split(text) if tokens else [text]
        return [(part, tokens[part].content if i % 2 else None) for i, part in enumerate(parts) if part]

    return split


class SubwordSampler:
    """What samplers share: they cut a text into words as the tokenizer does, and put pieces into its template.

    Args:
        tokenizer: a tokenizer with a fast backend.
        unknown: its unknown piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, unknown: str):
        self._backend = tokenizer.backend_tokenizer
        self._unknown = unknown
        added = tokenizer.added_tokens_decoder.values()
        self._added = frozenset(token.content for token in added)
        # As the tokenizer finds them: some in the text as it is, some in what the normalizer makes of it.
        self._split_text = _splitter({token.content: token for token in added if not token.normalized})
        self._split_normal = _splitter({self._normal(token.content): token for token in added if token.normalized})
        # Pieces are looked up as they are; template and truncation are the tokenizer's own.
        self._assembler = Tokenizer(WordLevel(tokenizer.get_vocab(), unk_token=self._unknown))
        self._assembler.post_processor = self._backend.post_processor
        self._truncation_side = tokenizer.truncation_side
        self._columns = tokenizer.model_input_names

    def words(self, text: str) -> list[str]:
        """The words of a text: its special tokens, and what the normalizer and the pre-tokenizer make of the rest."""
        words = []
        for part, token in self._split_text(text):
            if token:
                words.append(token)
                continue
            for piece, added in self._split_normal(self._normal(part)):
                words += [added] if added else [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(piece)]
        return words

    def _normal(self, text: str) -> str:
        return self._backend.normalizer.normalize_str(text) if self._backend.normalizer else text

    def sample(self, text: str, rng: random.Random) -> list[str]:
        """Draw the pieces of a text."""
        raise NotImplementedError

    def encode(
        self, text_a: str, text_b: str | None = None, *, max_length: int, rng: random.Random
    ) -> dict[str, list[int]]:
        """Encode a freshly drawn segmentation of a text or a pair of texts.

        Special tokens and token types follow the tokenizer's template; longer pairs are truncated longest first, as
        `tokenizer([text_a], [text_b], truncation=True, max_length=max_length)` does, which is the result where nothing
        is random (`p=0`, `nbest=1`).

        Args:
            text_a: first text.
            text_b: second text of a pair.
            max_length: largest number of tokens, special tokens included.
            rng: source of the randomness.

        Returns:
            The tokenizer's columns (`input_ids`, `attention_mask` and, for BERT, `token_type_ids`), equally long lists.
        """
        if (self._assembler.truncation or {}).get("max_length") != max_length:
            self._assembler.enable_truncation(max_length, direction=self._truncation_side)
        pieces = [self.sample(text, rng) for text in (text_a, text_b) if text is not None]
        encoding = self._assembler.encode(*pieces, is_pretokenized=True)
        columns = {
            "input_ids": encoding.ids,
            "token_type_ids": encoding.type_ids,
            "attention_mask": encoding.attention_mask,
        }
        return {column: columns[column] for column in self._columns if column in columns}


class WordPieceSampler(SubwordSampler):
    """Longest-match-first WordPiece in which every match is rejected with probability p.

    At each position of a word the substrings found in the vocabulary (`##` in front of all but the first) are
    candidates, longest first. A candidate is accepted with probability 1 - p, otherwise the next shorter one is tried.
    So a segmentation into pieces s_1 … s_m has probability

        P(s_1 … s_m) = ∏_k (1 - p) p^r_k,    r_k = number of candidates at the start of s_k that are longer than s_k.

    With p = 0 this is the tokenizer itself. Words are what the tokenizer's own normalizer and pre-tokenizer make of
    the text, and special tokens in the text stay whole. Two modes:

    * `faithful`: as in the code of Wang et al. (2021), "Multi-view Subword Regularization". Where all candidates are
      rejected the whole word becomes the unknown token, so a word with a single candidate (punctuation, a Chinese
      character) is lost with probability p. With p = 1 a word falls into its characters.
    * `clean`: nothing is lost that the tokenizer itself keeps. Candidates from which the rest of the word cannot be
      completed are left out and the last candidate of a position is never rejected (its factor is p^r_k). Words
      unknown to the tokenizer stay unknown in every sample.

    Args:
        tokenizer: a tokenizer with a WordPiece model and a fast backend, such as BERT's.
        p: probability of rejecting a match, in [0, 1].
        mode: `"faithful"` or `"clean"`.

    Raises:
        FlatlingoError: if the tokenizer has no WordPiece model, or `p` or `mode` is not as above.

    >>> from transformers import BertTokenizer
    >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "u", "##n", "##do", "##d", "##o"]
    >>> tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    >>> sampler = WordPieceSampler(tokenizer, p=0.5, mode="clean")
    >>> rng = random.Random(0)
    >>> [" ".join(sampler.sample_word("undo", rng)) for _ in range(4)]
    ['un ##do', 'u ##n ##d ##o', 'u ##n ##do', 'u ##n ##d ##o']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, p: float = 0.2, mode: Mode = "faithful"):
        if not isinstance(_model(tokenizer), WordPiece):
            raise FlatlingoError(
                f"{type(tokenizer).__name__} has no WordPiece model, so its longest matches cannot be sampled; use a "
                "BERT tokenizer (for example bert-base-multilingual-cased); for XLM-R's there is UnigramSampler"
            )
        if not 0 <= p <= 1:
            raise FlatlingoError(f"subword dropout p must lie in [0, 1], got {p}")
        _check_mode(mode)
        self.p, self.mode = p, mode
        model = _model(tokenizer)
        super().__init__(tokenizer, model.unk_token)
        self._vocabulary = frozenset(self._backend.get_vocab(with_added_tokens=False))
        self._longest = max(map(len, self._vocabulary))
        self._prefix = model.continuing_subword_prefix
        self._longest_word = model.max_input_chars_per_word
        self._candidates: dict[str, list[list[int]]] = {}

    def sample_word(self, word: str, rng: random.Random) -> list[str]:
        """Draw the pieces of one word; one number is drawn from `rng` for every candidate considered."""
        if word in self._added:
            return [word]
        if len(word) > self._longest_word:
            return [self._unknown]
        if self.p == 1 and self.mode == "faithful":
            return [self._piece(word, start, start + 1) for start in range(len(word))]
        pieces, start = [], 0
        candidates = self._ends(word)
        while start < len(word):
            end = self._accept(candidates[start], rng)
            if end is None:
                return [self._unknown]
            pieces.append(self._piece(word, start, end))
            start = end
        return pieces

    def sample(self, text: str, rng: random.Random) -> list[str]:
        """Draw the pieces of a text, word by word."""
        return [piece for word in self.words(text) for piece in self.sample_word(word, rng)]

    def count(self, word: str) -> int:
        """The number of segmentations of a word that the vocabulary has, for p strictly between 0 and 1.

        >>> from transformers import BertTokenizer
        >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "u", "##n", "##do", "##d", "##o"]
        >>> tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
        >>> WordPieceSampler(tokenizer, mode="clean").count("undo")
        4
        """
        ways = [0] * len(word) + [1]
        for start, ends in reversed(list(enumerate(self._ends(word)))):
            ways[start] = sum(ways[end] for end in ends)
        return ways[0]

    def _piece(self, word: str, start: int, end: int) -> str:
        return (self._prefix if start else "") + word[start:end]

    def _accept(self, ends: list[int], rng: random.Random) -> int | None:
        for end in ends:
            if rng.random() >= self.p:
                return end
        return ends[-1] if ends and self.mode == "clean" else None

    def _ends(self, word: str) -> list[list[int]]:
        """For each position of the word, where the candidates that start there end; longest first."""
        if word not in self._candidates:
            length = len(word)
            ends = [
                [
                    end
                    for end in range(min(length, start + self._longest), start, -1)
                    if self._piece(word, start, end) in self._vocabulary
                ]
                for start in range(length)
            ]
            self._candidates[word] = _completable(ends) if self.mode == "clean" else ends
        return self._candidates[word]


class UnigramSampler(SubwordSampler):
    """Segmentations drawn from the unigram language model of a SentencePiece vocabulary (Kudo 2018), such as XLM-R's.

    A segmentation of a text into pieces s_1 … s_m with log probabilities ℓ has probability

        P(s_1 … s_m) = exp(α Σ_k ℓ(s_k)) / Z,

    with Z the sum over all segmentations of its words (`nbest=-1`) or over the n most probable ones of the text. α = 0
    draws them uniformly, a large α the most probable one alone; `nbest=1` is the tokenizer itself. A character that is
    no piece is unknown, as in the tokenizer, at 10 below the lowest ℓ; nothing else is lost.

    The n best come from the `sentencepiece` library, from a model made of the tokenizer's own vocabulary and scores: a
    `tokenizer.json` is enough, and ids need no offset. Over all segmentations pieces are drawn from left to right, by
    the sums over the ways on; the library's own sampler has the same distribution, but is seeded anew in every process.
    Words are what the tokenizer's normalizer and pre-tokenizer make of the text, and special tokens stay whole.

    Args:
        tokenizer: a tokenizer with a Unigram model and a fast backend, such as XLM-R's.
        alpha: α, at least 0. Wang et al. (2021) use 0.2.
        nbest: -1, or n at least 1. Wang et al. use -1.

    Raises:
        FlatlingoError: if the tokenizer has no Unigram model or one that falls back to bytes, or an argument is not as
            above.

    >>> from transformers import XLMRobertaTokenizer
    >>> pieces = {"<s>": 0, "<pad>": 0, "</s>": 0, "<unk>": 0, "▁un": -2, "▁": -4, "u": -4, "n": -4, "do": -3, "d": -5}
    >>> tokenizer = XLMRobertaTokenizer(vocab=[*pieces.items(), ("o", -5.0), ("<mask>", 0.0)])
    >>> sampler, rng = UnigramSampler(tokenizer, alpha=0.1), random.Random(0)
    >>> [" ".join(sampler.sample("undo", rng)) for _ in range(4)]
    ['▁un do', '▁un d o', '▁un do', '▁un do']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, alpha: float = 0.2, nbest: int = -1):
        if not isinstance(_model(tokenizer), Unigram):
            raise FlatlingoError(
                f"{type(tokenizer).__name__} has no Unigram model to sample from; use a SentencePiece unigram "
                "tokenizer (for example xlm-roberta-base); for BERT's there is WordPieceSampler"
            )
        if not (math.isfinite(alpha) and alpha >= 0):
            raise FlatlingoError(
                f"alpha must be a finite number of at least 0, got {alpha}; nbest=1 is the tokenizer itself"
            )
        if isinstance(nbest, bool) or not isinstance(nbest, int) or (nbest < 1 and nbest != -1):
            raise FlatlingoError(f"nbest must be -1 (all segmentations) or a number of at least 1, got {nbest!r}")
        self.alpha, self.nbest = alpha, nbest
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        if model["unk_id"] is None or model["byte_fallback"]:
            raise FlatlingoError(
                f"the Unigram model of {type(tokenizer).__name__} has no unknown piece or falls back to bytes, which "
                "is not supported; use a tokenizer of XLM-R's kind"
            )
        unknown = model["vocab"][model["unk_id"]][0]
        super().__init__(tokenizer, unknown)
        proto = _proto(model, self._added)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._scores = {entry.piece: entry.score for entry in proto.pieces if entry.type == PIECES.NORMAL}
        self._unknown_score = min(self._scores.values()) - UNKNOWN_PENALTY
        self._longest = max(map(len, self._scores))
        self._ways: dict[str, list[tuple[list[int], list[float]]]] = {}

    def sample(self, text: str, rng: random.Random) -> list[str]:
        """Draw the pieces of a text."""
        pieces = []
        for special, words in groupby(self.words(text), self._added.__contains__):
            if special:
                pieces += words
            elif self.nbest == -1:
                pieces += (piece for word in words for piece in self.sample_word(word, rng))
            else:
                pieces += self._one_of_the_best("".join(words), rng)
        return pieces

    def sample_word(self, word: str, rng: random.Random) -> list[str]:
        """Draw the pieces of a normalised word from all segmentations; one number is drawn from `rng` for each."""
        ways = self._ways.get(word) or self._ways_on(word)
        if len(word) <= CACHED_LENGTH:
            self._ways[word] = ways
        pieces, start = [], 0
        while start < len(word):
            (end,) = rng.choices(ways[start][0], cum_weights=ways[start][1])
            pieces.append(word[start:end])
            start = end
        return self._fused(pieces)

    def _one_of_the_best(self, text: str, rng: random.Random) -> list[str]:
        best = self._processor.nbest_encode(text, nbest_size=self.nbest, out_type="proto").nbests
        weights = [math.exp(self.alpha * (segmentation.score - best[0].score)) for segmentation in best]
        (drawn,) = rng.choices(best, weights)
        unknown = self._processor.unk_id()
        return self._fused([self._unknown if entry.id == unknown else entry.piece for entry in drawn.pieces])

    def _ways_on(self, word: str) -> list[tuple[list[int], list[float]]]:
        """For each position: where the pieces that start there end, and their cumulative probabilities."""
        ways, totals = [], [0.0] * (len(word) + 1)  # totals: log of the sum over all ways from a position to the end
        for start in reversed(range(len(word))):
            ends = [
                end
                for end in range(start + 1, min(len(word), start + self._longest) + 1)
                if word[start:end] in self._scores
            ]
            if start + 1 not in ends:
                ends.insert(0, start + 1)
            logs = [self.alpha * self._scores.get(word[start:end], self._unknown_score) + totals[end] for end in ends]
            highest = max(logs)
            weights = [math.exp(value - highest) for value in logs]
            totals[start] = highest + math.log(sum(weights))
            ways.append((ends, list(accumulate(weights))))
        return ways[::-1]

    def _fused(self, pieces: list[str]) -> list[str]:
        """The pieces, and unknown ones in a row as one."""
        fused = []
        for known, group in groupby(pieces, self._scores.__contains__):
            fused += group if known else [self._unknown]
        return fused


def _proto(model: dict, added: frozenset[str]) -> ModelProto:
    """The SentencePiece model with the pieces and scores of a Unigram model of `tokenizers`, for normalised text."""
    proto = ModelProto()
    for number, (piece, score) in enumerate(model["vocab"]):
        kind = PIECES.UNKNOWN if number == model["unk_id"] else PIECES.CONTROL if piece in added else PIECES.NORMAL
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
    proto.normalizer_spec.name = "identity"
    for step in ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        setattr(proto.normalizer_spec, step, False)
    return proto


def _model(tokenizer: PreTrainedTokenizerBase):
    return getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)


def _check_mode(mode: str) -> None:
    if mode not in ("faithful", "clean"):
        raise FlatlingoError(f"unknown segmentation mode {mode!r}; use 'faithful' or 'clean'")


def _completable(ends: list[list[int]]) -> list[list[int]]:
    """Keep the candidates from which the end can be reached; none at all if longest match runs into a dead end."""
    length, start = len(ends), 0
    while start < length:
        if not ends[start]:
            return [[] for _ in ends]
        start = ends[start][0]
    kept: list[list[int]] = [[] for _ in ends]
    for start in reversed(range(length)):
        kept[start] = [end for end in ends[start] if end == length or kept[end]]
    return kept
