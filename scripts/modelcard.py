"""The model card of the shipped encoder, written from its pre-training record, its vocabulary and recorded results.

Run by `make record`.
"""

import json
import math
from pathlib import Path

import pandas as pd

from flatlingo.errors import FlatlingoError
from flatlingo.files import MINI_MBERT, RECORDED, replacing
from flatlingo.hub import provenance
from flatlingo.miniencoder import split_words
from flatlingo.miniworld.corpus import CLAIMS, RESTATED
from flatlingo.models import load_tokenizer
from flatlingo.pretraining import Masking


def zero_shot() -> pd.DataFrame:
    """Accuracy in % of preset mini's unregularised model in each language, one row per plan and seed.

    Raises:
        FlatlingoError: if they are of another encoder than the shipped one.
    """
    runs = pd.read_csv(RECORDED / "mini-regimes.csv").query("variant == 'none'")
    if set(runs["encoder"]) != {provenance(MINI_MBERT)["sha256"]}:
        raise FlatlingoError("mini-regimes.csv is of another encoder; run: python scripts/regimes.py")
    runs = runs.rename(columns={"english_accuracy": "en"}).rename(columns=lambda name: name.removeprefix("accuracy_"))
    return runs.set_index(["plan", "seed"])[["en", "de", "es", "zh"]].mul(100)


def card(folder: Path, accuracies: pd.DataFrame) -> str:
    """The card's text.

    Args:
        folder: the encoder, with `pretraining.json`.
        accuracies: as `zero_shot` gives them.
    """
    words = split_words(load_tokenizer(str(folder)))
    splits = "\n".join(
        f"| {language} | {'–' if math.isnan(row.pieces_per_word) else f'{row.pieces_per_word:.2f}'} "
        f"| {row.several:.0%} | {row.loses_a_word:.0%} | {row.longest:.0f} |"
        for language, row in words.iterrows()
    )
    facts = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    s = facts["settings"]
    size = (folder / "model.safetensors").stat().st_size
    rounds = [facts]
    while "start" in rounds[0]:
        rounds.insert(0, rounds[0]["start"])
    stages = "\n".join(
        f"| {number} | {one['documents']:,}: {one['data']} | {one['settings']['epochs']:g} | {one['steps']:,} "
        f"| {[*one['training_loss'].values()][-1]} | {one['held_out_loss']} |"
        for number, one in enumerate(rounds, start=1)
    )
    rows = "\n".join(
        f"| mini-{plan} | {seed} | " + " | ".join(f"{value:.1f}" for value in values) + " |"
        for (plan, seed), values in zip(accuracies.index, accuracies.to_numpy(), strict=True)
    )
    return f"""---
license: apache-2.0
language: [en, de, es, zh]
library_name: transformers
---
# mini-mbert

A BERT of {s["layers"]} layers, hidden size {s["hidden"]} and {s["heads"]} heads for the mini world of flatlingo:
English, German, Spanish and Chinese in one cased WordPiece vocabulary of {facts["pieces"]} pieces. It knows the mini
world's few hundred words and nothing else; it is of no use on real text.

* **Size**: {facts["parameters"]:,} parameters without the masked-LM head, {size / 1e6:.1f} MB (safetensors, float32).
* **Data**: generated documents, each with fresh masks whenever it is shown. {CLAIMS:.0%} (where nothing else is said)
  are single claims said twice, the others sentences about a scene, {RESTATED:.0%} of these said twice too; the second
  time in other words and often in another language.
* **Training**: masked LM ({s["masked"]:.0%} of the pieces; {Masking.MASKED:.0%} of them masked, {Masking.REPLACED:.0%}
  replaced by another piece of the same document) and next-sentence prediction (in {s["strangers"]:.0%} of the documents
  the second half is another's), {s["batch_size"]} documents a step, AdamW, peak learning rate {s["learning_rate"]:g}
  with linear warm-up and decay in each stage, no dropout, {facts["precision"]} products.
* **What it has seen of the tasks**: never a label of theirs, and no claim whose meaning they keep for validation. But
  half of the second halves that are another document's resemble the right one: another scene of the same cast, or a
  claim of nearly the same words and another meaning, made by the operations that also make the paraphrase task's
  negative pairs. So next-sentence prediction teaches much of what that task asks. A larger encoder would have to learn
  it from plain text.

| stage | documents | epochs | steps | training loss at its end | held out |
|---|---|---|---|---|---|
{stages}

Losses in nats, masked pieces and next sentence together; all along the way in `pretraining.json`.
`make pretrain` makes it again, the same bytes every time on one machine.

## How words split

Over 1,000 validation pairs of the tasks. Chinese characters that stand side by side are one "word" for the tokenizer;
there the words counted are those of the lexicon with two characters, which may be one piece or two. `faithful`
segmentations (p = 0.2) are those of the code of Wang et al. (2021), which lose words to [UNK] (in Chinese all the
characters that stand side by side); preset mini draws `clean` ones, which lose none.

| language | pieces a word | words with several segmentations | pairs that lose a word if `faithful` | longest pair |
|---|---|---|---|---|
{splits}

## Accuracy after fine-tuning on English, %

No regularisation, preset mini (noisy training labels as in its file), whole clean validation set; the other languages
are zero-shot. From `data/recorded/mini-regimes.csv`.

| task | seed | en | de | es | zh |
|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Write `data/mini-mbert/README.md`."""
    path = MINI_MBERT / "README.md"
    with replacing(path) as temporary:
        temporary.write_text(card(MINI_MBERT, zero_shot()), encoding="utf-8")


if __name__ == "__main__":
    main()
