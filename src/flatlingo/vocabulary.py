"""A WordPiece vocabulary learned from texts, in which Chinese words split, too."""

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer

PRIVATE = 0xF0000  # first code point of the private plane that marks letters inside a word
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
CHINESE_PIECES = 0.3  # share of the pieces of several characters that is learned from Chinese text
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PRINTABLE = [chr(c) for c in range(33, 127)] + list("äöüßÄÖÜáéíóúüñÁÉÍÓÚÑ¿¡«»“”„…–，。！？：；")


def train_tokenizer(documents: Iterable[str], vocabulary: int) -> BertTokenizer:
    """A cased WordPiece tokenizer: `##` marks continuations.

    Unlike multilingual BERT's it does not make a word of every Chinese character, but of all that stand side by side,
    so that Chinese words too have several segmentations.

    Printable ASCII, the letters of German and Spanish and all characters of the documents are in the vocabulary, with
    `##` and without, so that no word made of them is [UNK]. Of the pieces of several characters, a share
    `CHINESE_PIECES` is learned from Chinese text, where there is any, and has two characters, as most words have. (Of
    one list for all languages, hardly a piece would be a Chinese word: particles are more frequent.)

    Args:
        documents: the texts to learn pieces from.
        vocabulary: number of pieces with the five special ones; the characters are kept even where they are more.
    """
    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False, handle_chinese_chars=False)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in documents for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    )
    chinese = {word: count for word, count in words.items() if CHINESE.search(word)}
    other = {word: count for word, count in words.items() if word not in chinese}
    alphabets = sorted(set(PRINTABLE).union(*other)), sorted(set().union(*chinese))
    characters = len(set().union(*alphabets))
    merges = max(0, vocabulary - len(SPECIAL) - 2 * characters)
    of_chinese = round(CHINESE_PIECES * merges) if chinese else 0
    pieces = [
        *SPECIAL,
        *_learned(other, alphabets[0], merges - of_chinese),
        *_learned(chinese, alphabets[1], of_chinese, max_token_length=2),
    ]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.WordPiece()
    ids = {piece: backend.token_to_id(piece) for piece in SPECIAL}
    backend.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return BertTokenizer(tokenizer_object=backend, do_lower_case=False, tokenize_chinese_chars=False)


def _learned(words: dict[str, int], alphabet: list[str], merges: int, **limits: int) -> list[str]:
    """The characters, with `##` and without, and `merges` longer pieces of some words and their counts.

    The library's own WordPiece trainer numbers the `##` letters in random order and so breaks ties at random. Byte-pair
    training of words whose letters after the first are marked learns such pieces in a definite order.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(
        (_mark(word) for word, count in words.items() for _ in range(count)),
        trainers.BpeTrainer(
            vocab_size=2 * len(alphabet) + merges,
            initial_alphabet=alphabet + [_mark(" " + letter)[1] for letter in alphabet],
            show_progress=False,
            **limits,
        ),
    )
    return [_unmark(piece) for piece in sorted(learner.get_vocab(), key=learner.token_to_id)]


def _mark(word: str) -> str:
    """Move all letters but the first to a private plane of Unicode; letters beyond the basic plane become U+FFFD."""
    return word[0] + "".join(chr(min(ord(letter), 0xFFFD) + PRIVATE) for letter in word[1:])


def _unmark(piece: str) -> str:
    text = "".join(chr(ord(letter) - PRIVATE) if ord(letter) >= PRIVATE else letter for letter in piece)
    return f"##{text}" if ord(piece[0]) >= PRIVATE else text
