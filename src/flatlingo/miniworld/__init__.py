"""A small world in four languages: exactly labelled inference and paraphrase tasks, and a corpus to pretrain on."""

from flatlingo.miniworld.corpus import corpus
from flatlingo.miniworld.examples import LABELS, Example, examples
from flatlingo.miniworld.frame import NP, Frame
from flatlingo.miniworld.grammar import render
from flatlingo.miniworld.lexicon import LANGUAGES

__all__ = ["LABELS", "LANGUAGES", "NP", "Example", "Frame", "corpus", "examples", "render"]
