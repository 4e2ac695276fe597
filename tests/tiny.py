"""A tokenizer, a classifier, rows and presets small enough for any test."""

import random
from pathlib import Path

import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from flatlingo.study.presets import load_preset
from flatlingo.study.runspec import RunConfig
from flatlingo.study.sources import Sources

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß"
WORDS = "the cat dog sleeps eats fish bird big small red Hund über grün isst schläft Vögel".split()  # noqa: SIM905
PARTS = "##s ##at ##og ##leep ##ish ##ng ##ber ##ün ##und ##ögel ##st un under ##stand ##der stand".split()  # noqa: SIM905
CHINESE = "猫狗吃鱼大小红"
PUNCTUATION = ".,!?'-"
VOCABULARY = [*SPECIAL, *LETTERS, *("##" + c for c in LETTERS), *"HV", *CHINESE, *PUNCTUATION, *WORDS, *PARTS]


def make_tokenizer(vocabulary: list[str] = VOCABULARY) -> BertTokenizer:
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, do_lower_case=False)


def make_model(
    *, dropout: float = 0.0, labels: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0, **config
) -> BertForSequenceClassification:
    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "num_labels": labels,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(**settings | config)).to(dtype).eval()


def make_rows(n: int, *, labels: int = 3, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(2, 6))) + rng.choice(PUNCTUATION[:4])

    return [{"row_id": i, "text_a": text(), "text_b": text(), "label": rng.randrange(labels)} for i in range(n)]


SIZES = {"validation_size": 16, "measurement": {"trace_examples": 8}, "languages": ["en", "de"]}


def write_preset(
    folder: Path,
    *,
    nli: dict | None = None,
    paraphrase: dict | None = None,
    setup: dict | None = None,
    training: dict | None = None,
) -> str:
    """Path of a copy of preset smoke with other conditions and, for plan nli, another setup."""
    settings = load_preset("smoke").model_dump(mode="json")
    plans = settings["plans"]
    for plan, conditions in {"nli": nli, "paraphrase": paraphrase}.items():
        plans[plan]["conditions"] = conditions or plans[plan]["conditions"]
    plans["nli"]["setup"] |= setup or {}
    plans["nli"]["setup"]["training"] |= training or {}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def resolved(plan: str, preset: str, seeds: int | list[int] | None = None, **where) -> list[RunConfig]:
    """The configurations of a plan's runs, with the provenance of encoder and rows."""
    settings = load_preset(preset)
    sources = Sources.of(settings, plan, **where)
    return sources.resolve(sources.specs(plan, settings, seeds))


def sources_of(plan: str, preset: str, **where) -> Sources:
    """Where encoder and rows of a preset's plan lie."""
    return Sources.of(load_preset(preset), plan, **where)
