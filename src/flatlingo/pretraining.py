"""Pre-training of a small multilingual BERT: masked pieces, and whether two segments belong together."""

import hashlib
import json
import math
import random
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import ModelOutput

from flatlingo import devices
from flatlingo.errors import FlatlingoError
from flatlingo.files import replacing
from flatlingo.models import load_tokenizer
from flatlingo.randomness import own_randomness
from flatlingo.rowfiles import LineError, read_text
from flatlingo.vocabulary import SPECIAL, train_tokenizer

SENTENCE_END = re.compile(r"[.!?]\s+(?=\S)|[。！？]\s*(?=\S)")


@dataclass(frozen=True)
class Pretraining:
    """Sizes and schedule. The defaults are those of the first round of the shipped encoder `data/mini-mbert`.

    `masked` is the share of pieces to predict, `strangers` the share of documents whose second half is another's.
    """

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    vocabulary: int = 1930
    max_length: int = 128
    epochs: float = 2.0
    batch_size: int = 32
    learning_rate: float = 1e-3
    masked: float = 0.2
    strangers: float = 0.5
    seed: int = 0
    threads: int = 1


SIZES = ("layers", "hidden", "heads", "vocabulary")  # which an encoder to go on from has already


def read_texts(paths: list[Path]) -> list[str]:
    """One document per line from UTF-8 text files; blank lines are skipped.

    Raises:
        FlatlingoError: if a file is missing, is not UTF-8 or holds no text.
    """
    documents = []
    for path in paths:
        try:
            lines = [line.strip() for line in read_text(path).split("\n")]
        except LineError as error:
            raise FlatlingoError(f"{path}, line {error.number}: {error}") from error
        if not any(lines):
            raise FlatlingoError(f"{path} holds no text")
        documents.extend(line for line in lines if line)
    return documents


@own_randomness()
def pretrain(
    documents: list[str],
    output: Path,
    settings: Pretraining,
    *,
    description: str,
    start: Path | None = None,
    progress: bool = True,
) -> dict:
    """Train tokenizer and encoder by masked language modelling and write them as one checkpoint folder.

    A document is shown as two segments (`split_document`). The loss is that of the masked pieces plus that of telling
    whether the second segment belongs to the first, which trains [CLS] and the pooler to compare segments. Half of the
    strangers come from the document's neighbour (i XOR 4, in the mini world a similar document), half from farther
    away. What is predicted is chosen and hidden by `Masking`.

    There is no dropout, which only slows a small model that sees a document a few times; the checkpoint's configuration
    asks for BERT's 0.1 in fine-tuning. Matrix products are in bfloat16 where the processor has it (`precision` in the
    facts), weights in float32.

    A checkpoint after each epoch, in a hidden folder beside `output`, lets a killed call go on from there when it is
    repeated. On one machine the same call gives the same bytes, killed or not.

    Args:
        documents: one text each; longer ones are cut at `settings.max_length` pieces.
        output: the folder to write; replaced as a whole at the end.
        settings: sizes and schedule.
        description: one line that says what the documents are, for the model card.
        start: an encoder that this function wrote, to go on from with a new learning-rate schedule: vocabulary, sizes
            (not those of `settings`) and weights are its; the heads that pre-training needs begin anew.
        progress: show the Trainer's progress bar.

    Returns:
        What the model card tells: settings, steps, losses, parameters; those of `start` under `start`.

    Raises:
        FlatlingoError: if there are too few documents to make one batch, the sizes do not go together, `start` is no
            encoder of this function or too small for `settings.max_length`, `output` is a folder of something else, or
            the training diverges.
    """
    before = {} if start is None else {"start": _facts(start)}
    if start is not None:
        settings = replace(settings, **{name: before["start"]["settings"][name] for name in SIZES})
    _check(documents, output, settings)
    work = output.with_name(f".{output.name}.work")
    checkpoints = work / _digest([description, asdict(settings), before, documents])
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(start) if start else train_tokenizer(documents, settings.vocabulary)
    tokenizer.model_max_length = settings.max_length
    held_out = max(1, min(2000, len(documents) // 50))
    rows = _encode(documents, tokenizer, settings)
    model = _begin(settings, len(tokenizer)) if start is None else _go_on(start, settings)
    args = _arguments(settings, checkpoints, progress=progress)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows.select(range(held_out, len(rows))),
        eval_dataset=rows.select(range(held_out)),
        data_collator=Masking(tokenizer, mlm_probability=settings.masked),
        callbacks=[_LossLog(checkpoints / "losses.jsonl")],
    )
    started = time.perf_counter()
    with devices.threads(settings.threads):
        trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
        held_out_loss = trainer.evaluate()["eval_loss"]
    if not math.isfinite(held_out_loss):
        shutil.rmtree(checkpoints)
        raise FlatlingoError(
            f"the loss has become no number: give a learning rate smaller than {settings.learning_rate:g}"
        )
    history = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    facts = {
        "data": description,
        "documents": len(documents),
        "settings": asdict(settings),
        "precision": "bfloat16" if args.bf16 else "float32",
        "steps": trainer.state.global_step,
        "training_loss": {str(step): round(loss, 3) for step, loss in _thin(history, 12)},
        "held_out_loss": round(held_out_loss, 3),
        "parameters": model.bert.num_parameters(),
        "pieces": len(tokenizer),
        **before,
    }
    _write(output, model, tokenizer, facts)
    shutil.rmtree(work)
    return facts | {"seconds": round(time.perf_counter() - started)}


def _check(documents: list[str], output: Path, settings: Pretraining) -> None:
    devices.refuse_several_processes("pre-training")
    if settings.hidden % settings.heads:
        raise FlatlingoError(f"hidden {settings.hidden} is no multiple of {settings.heads} heads; give one that is")
    if len(documents) < settings.batch_size:
        raise FlatlingoError(f"{len(documents)} documents do not fill one batch of {settings.batch_size}")
    if output.exists() and not (output / "pretraining.json").is_file() and not _is_empty(output):
        raise FlatlingoError(f"{output} exists and is no encoder of this command, which would replace it; give another")


def _arguments(settings: Pretraining, checkpoints: Path, *, progress: bool) -> TrainingArguments:
    args = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=0.01,
        warmup_steps=0.06,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length",
        seed=settings.seed,
        logging_steps=0.02,
        logging_nan_inf_filter=False,
        # not within an epoch: what a resumed training drew there would not be what the killed one had drawn
        save_strategy="epoch",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=not progress,
        bf16=devices.has_bf16(),
        use_cpu=not torch.cuda.is_available(),
        prediction_loss_only=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    args._n_gpu = min(args.n_gpu, 1)  # DataParallel would multiply the batch
    return args


def split_document(text: str) -> tuple[str, str]:
    """Cut a document after half of its sentences, so that pre-training sees pairs as the tasks do.

    >>> split_document("A dog runs. It is big. It barks.")
    ('A dog runs. It is big.', 'It barks.')
    >>> split_document("狗在跑。狗很大。")
    ('狗在跑。', '狗很大。')
    >>> split_document("No end in sight")
    ('No end in sight', '')
    """
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    cut = ends[len(ends) // 2] if ends else len(text)
    return text[:cut].rstrip(), text[cut:].lstrip()


class _PretrainedBert(BertForPreTraining):
    """BERT with the vocabulary scored at the masked places only: the same loss as of all places, in less time."""

    def forward(self, input_ids, attention_mask, token_type_ids, labels, next_sentence_label) -> ModelOutput:
        hidden = self.bert(input_ids, attention_mask, token_type_ids)
        masked = labels != -100
        pieces = self.cls.predictions(hidden.last_hidden_state[masked])
        follows = self.cls.seq_relationship(hidden.pooler_output)
        loss = F.cross_entropy(pieces.float(), labels[masked]) + F.cross_entropy(follows.float(), next_sentence_label)
        return ModelOutput(loss=loss)


class Masking(DataCollatorForLanguageModeling):
    """Of the pieces to predict, half are masked, three in ten are another piece of the same document, two in ten stay.

    BERT replaces one in ten by any piece of the vocabulary, which is out of place wherever it stands. To see that a
    piece of the same document does not belong, an encoder has to compare who does what in the two segments, and so
    learns to at pieces that are not masked, where the tasks need it.
    """

    MASKED, REPLACED = 0.5, 0.3

    def torch_mask_tokens(
        self, inputs: Tensor, special_tokens_mask: Any = None, offset_mapping: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Corrupt a batch of ids (B, T); the labels are the ids where something is to be predicted, else -100."""
        normal = inputs >= len(SPECIAL)
        chosen = normal & (torch.rand(inputs.shape) < self.mlm_probability)
        fate = torch.rand(inputs.shape)
        weights = normal.float().clamp_min(1e-30)  # a document may have no normal piece, but weights may not all be 0
        others = inputs.gather(1, torch.multinomial(weights, inputs.shape[1], replacement=True))
        corrupted = torch.where(chosen & (fate >= self.MASKED) & (fate < self.MASKED + self.REPLACED), others, inputs)
        corrupted = corrupted.masked_fill(chosen & (fate < self.MASKED), self.tokenizer.mask_token_id)
        return corrupted, inputs.masked_fill(~chosen, -100)


def _encode(documents: list[str], tokenizer: BertTokenizer, settings: Pretraining) -> Dataset:
    """Pairs of segments; `next_sentence_label` is 1 where the second is a stranger's.

    Encoded a thousand at a time: what the tokenizer returns takes 50 times the memory of the ids.
    """
    rng = random.Random(settings.seed)
    halves = [split_document(document) for document in documents]
    seconds, labels = [], []
    for i, (_, second) in enumerate(halves):
        # A stranger a multiple of four documents away begins in the same language where, as in the mini world,
        # languages take turns, and comes from the same file elsewhere; so the language does not give it away.
        j = (i ^ 4 if rng.random() < 0.5 else i + 4 * rng.randint(2, 50)) % len(halves)
        stranger = halves[j][1]
        # of few documents, that many steps away may be the document itself
        strange = bool(rng.random() < settings.strangers and j != i and second and stranger)
        seconds.append(stranger if strange else second)
        labels.append(int(strange))

    def encode(batch: dict) -> dict:
        encoded = tokenizer(
            batch["first"],
            batch["second"],
            truncation=True,
            max_length=settings.max_length,
            return_attention_mask=False,
        )
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    pairs = Dataset.from_dict(
        {"first": [first for first, _ in halves], "second": seconds, "next_sentence_label": labels}
    )
    return pairs.map(encode, batched=True, remove_columns=["first", "second"], desc="encoding")


# No dropout; attention is eager because on CPU in bfloat16 that is twice as fast as the fused kernel.
_TRAINING = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "eager"}


def _begin(settings: Pretraining, vocabulary: int) -> _PretrainedBert:
    return _PretrainedBert(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.hidden,
            max_position_embeddings=settings.max_length,
            **_TRAINING,
        )
    )


def _go_on(start: Path, settings: Pretraining) -> _PretrainedBert:
    config = BertConfig.from_pretrained(start, **_TRAINING)
    if settings.max_length > (positions := config.max_position_embeddings):
        raise FlatlingoError(
            f"max_length {settings.max_length}, but {start} has {positions} positions for pieces; give {positions} or "
            "less"
        )
    model = _PretrainedBert(config)
    model.bert.load_state_dict(load_file(start / "model.safetensors"))
    return model


def _facts(start: Path) -> dict:
    """What `pretrain` wrote down of an encoder."""
    try:
        facts = json.loads((start / "pretraining.json").read_text(encoding="utf-8"))
        Pretraining(**facts["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlatlingoError(f"{start} is no encoder to go on from: it has no readable pretraining.json") from error
    return facts


def _digest(of: list) -> str:
    """Tells a call from others, whose checkpoints it must not go on from."""
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was written to its end and has an epoch left.

    `trainer_state.json` is its last file. After the last epoch, what evaluation draws would be drawn otherwise.
    """
    states = {path: path.read_text() for path in work.glob("checkpoint-*/trainer_state.json")}
    whole = {path.parent: json.loads(text) for path, text in states.items() if text.endswith("}\n")}
    going = [path for path, state in whole.items() if state["global_step"] < state["max_steps"]]
    newest = max(going, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return newest and str(newest)


class _LossLog(TrainerCallback):
    """One JSON line a log step, so that a long pre-training can be watched from outside."""

    def __init__(self, path: Path):
        self.path = path

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, "of": state.max_steps, **(logs or {})}) + "\n")


def _thin(history: list[tuple[int, float]], n: int) -> list[tuple[int, float]]:
    stride = max(1, math.ceil(len(history) / n))
    return history[:-1:stride] + history[-1:]


def _write(output: Path, model: _PretrainedBert, tokenizer: BertTokenizer, facts: dict) -> None:
    """Write the encoder without its pre-training heads, beside the old folder, then put it in its place."""
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1
    with replacing(output) as temporary:
        model.bert.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(output, ignore_errors=True)
