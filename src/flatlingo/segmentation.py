"""Subword sampling: random segmentations of a text into the pieces of its own vocabulary."""

import random
import re
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from transformers import PreTrainedTokenizerBase

from flatlingo.errors import FlatlingoError

Mode = Literal["faithful", "clean"]


class WordPieceSampler:
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
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(getattr(backend, "model", None), WordPiece):
            raise FlatlingoError(
                f"{type(tokenizer).__name__} has no WordPiece model, so its longest matches cannot be sampled; "
                "use a BERT tokenizer (for example bert-base-multilingual-cased)"
            )
        if not 0 <= p <= 1:
            raise FlatlingoError(f"subword dropout p must lie in [0, 1], got {p}")
        if mode not in ("faithful", "clean"):
            raise FlatlingoError(f"unknown segmentation mode {mode!r}; use 'faithful' or 'clean'")
        self.p, self.mode = p, mode
        self._backend = backend
        self._vocabulary = frozenset(backend.get_vocab(with_added_tokens=False))
        self._longest = max(map(len, self._vocabulary))
        self._prefix = backend.model.continuing_subword_prefix
        self._unknown = backend.model.unk_token
        self._longest_word = backend.model.max_input_chars_per_word
        self._added = frozenset(tokenizer.get_added_vocab())
        self._split_added = re.compile("(" + "|".join(map(re.escape, sorted(self._added, key=len, reverse=True))) + ")")
        self._candidates: dict[str, list[list[int]]] = {}
        # Pieces are looked up as they are; template and truncation are the tokenizer's own.
        self._assembler = Tokenizer(WordLevel(tokenizer.get_vocab(), unk_token=self._unknown))
        self._assembler.post_processor = backend.post_processor
        self._truncation_side = tokenizer.truncation_side

    def words(self, text: str) -> list[str]:
        """The words of a text: its special tokens, and what the normalizer and the pre-tokenizer make of the rest."""
        words = []
        for part in self._split_added.split(text) if self._added else [text]:
            if part in self._added:
                words.append(part)
            else:
                normal = self._backend.normalizer.normalize_str(part) if self._backend.normalizer else part
                words.extend(word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(normal))
        return words

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

    def encode_pair(self, text_a: str, text_b: str, *, max_length: int, rng: random.Random) -> dict[str, list[int]]:
        """Encode a freshly drawn segmentation of a pair of texts.

        Special tokens and token types follow the tokenizer's template; longer pairs are truncated longest first, as
        `tokenizer([text_a], [text_b], truncation=True, max_length=max_length)` does, which is the result for p = 0.

        Args:
            text_a: first text.
            text_b: second text.
            max_length: largest number of tokens, special tokens included.
            rng: source of the randomness.

        Returns:
            `input_ids`, `token_type_ids` and `attention_mask`, equally long lists.
        """
        if (self._assembler.truncation or {}).get("max_length") != max_length:
            self._assembler.enable_truncation(max_length, direction=self._truncation_side)
        pieces_a, pieces_b = self.sample(text_a, rng), self.sample(text_b, rng)
        encoding = self._assembler.encode(pieces_a, pieces_b, is_pretokenized=True)
        return {
            "input_ids": encoding.ids,
            "token_type_ids": encoding.type_ids,
            "attention_mask": encoding.attention_mask,
        }

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
