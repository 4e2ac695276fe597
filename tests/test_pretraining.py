"""Pre-training: the encoder learns, a repetition gives the same bytes, a killed call resumes to them."""

import inspect
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import islice

import psutil
import pytest
import torch
from transformers import Trainer

from flatlingo import cli, devices, miniencoder, miniworld, models, pretraining, vocabulary
from flatlingo.errors import FlatlingoError
from flatlingo.files import ROOT
from flatlingo.pretraining import Pretraining, pretrain, read_texts
from flatlingo.vocabulary import train_tokenizer

SMALL = Pretraining(layers=1, hidden=32, heads=2, vocabulary=1100, epochs=4, batch_size=16, threads=1)


@pytest.fixture(scope="module")
def documents():
    return list(islice(miniworld.corpus(400, seed=5), 400))


@pytest.fixture(scope="module")
def encoder(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "small"
    before = torch.random.get_rng_state()
    with devices.threads(2):
        facts = pretrain(documents, folder, SMALL, description="test", progress=False)
        assert torch.get_num_threads() == 2, "as before"
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"
    return folder, facts


def test_the_loss_falls_and_the_facts_are_kept(encoder):
    folder, facts = encoder
    losses = list(facts["training_loss"].values())
    assert losses[-1] < losses[0]
    kept = json.loads((folder / "pretraining.json").read_text())
    assert kept["steps"] == facts["steps"] == 4 * -(-(400 - 8) // 16)


def test_a_training_that_diverges_leaves_no_encoder(documents, tmp_path):
    with pytest.raises(
        FlatlingoError, match="the loss has become no number: give a learning rate smaller than 1e\\+09"
    ):
        pretrain(documents, tmp_path / "o", replace(SMALL, learning_rate=1e9), description="test", progress=False)
    assert not (tmp_path / "o").exists()


def test_the_facts_are_all_that_is_printed(tmp_path):
    (tmp_path / "docs.txt").write_text("\n".join(islice(miniworld.corpus(60, seed=5), 60)))
    sizes = "--layers 1 --hidden 16 --heads 2 --vocabulary 400 --epochs 1"
    command = [sys.executable, "-m", "flatlingo", "pretrain", "docs.txt", "--output", "o", *sizes.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout)["documents"] == 60


def test_the_encoder_loads_as_a_classifier_with_its_tokenizer(encoder):
    folder, _ = encoder
    model = models.load_model(str(folder), 3, seed=0)
    tokenizer = models.load_tokenizer(str(folder))
    encoded = tokenizer("Anna sees a dog.", "Ein Hund schläft.", return_tensors="pt")
    assert model(**encoded).logits.shape == (1, 3)
    assert set(encoded["token_type_ids"][0].tolist()) == {0, 1}


@pytest.mark.parametrize("number", [4, 32, 200])
def test_no_document_is_a_stranger_to_itself(number):
    documents = [f"It is {i}. No, it is {i + 1}." for i in range(number)]
    tokenizer = train_tokenizer(documents, 200)
    rows = pretraining._encode(documents, tokenizer, replace(SMALL, strangers=1.0))
    own = [tokenizer(*pretraining.split_document(document))["input_ids"] for document in documents]
    for row, ids in zip(rows, own, strict=True):
        assert row["next_sentence_label"] == int(row["input_ids"] != ids)
    assert any(rows["next_sentence_label"]) is (number > 4)


def test_the_vocabulary_does_not_depend_on_chance(documents):
    first, second = (train_tokenizer(documents, 1200).get_vocab() for _ in range(2))
    assert first == second


def test_a_large_corpus_takes_little_more_memory_than_its_ids(documents, encoder):
    """Eight bytes per number, two numbers per piece; all that the tokenizer returns takes hundreds."""
    tokenizer, process = models.load_tokenizer(str(encoder[0])), psutil.Process()
    pretraining._encode(documents, tokenizer, SMALL)
    before = process.memory_info().rss
    rows = pretraining._encode(documents * 40, tokenizer, SMALL)
    assert (process.memory_info().rss - before) / sum(rows["length"]) < 80


def test_pieces_are_masked_replaced_from_their_own_document_or_kept(documents, encoder):
    tokenizer = models.load_tokenizer(str(encoder[0]))
    rows = [{"input_ids": tokenizer(document)["input_ids"]} for document in documents]
    torch.manual_seed(0)
    batch = pretraining.Masking(tokenizer, mlm_probability=0.4)(rows)
    whole = tokenizer.pad(rows, return_tensors="pt")["input_ids"]
    predicted = batch["labels"] != -100
    assert (batch["labels"][predicted] == whole[predicted]).all()
    assert (batch["input_ids"][~predicted] == whole[~predicted]).all()
    assert (whole[predicted] >= len(pretraining.SPECIAL)).all()
    masked = batch["input_ids"] == tokenizer.mask_token_id
    changed = ~masked & (batch["input_ids"] != whole)
    assert predicted.sum() / (whole >= len(pretraining.SPECIAL)).sum() == pytest.approx(0.4, abs=0.02)
    assert masked.sum() / predicted.sum() == pytest.approx(0.5, abs=0.02)
    assert changed.sum() / predicted.sum() == pytest.approx(0.3, abs=0.04)  # some are replaced by themselves
    own = (batch["input_ids"][:, :, None] == whole[:, None, :]).any(2)
    assert own[changed].all()


def test_documents_of_one_sentence_have_a_finite_loss(tmp_path):
    facts = pretrain(
        ["a dog runs through the garden today", "狗"] * 200,
        tmp_path / "encoder",
        replace(SMALL, epochs=0.3),
        description="test",
        progress=False,
    )
    assert 0 < facts["held_out_loss"] < 20


def test_pre_training_goes_on_from_an_encoder(documents, encoder, tmp_path):
    folder, before = encoder
    settings = replace(SMALL, hidden=64, epochs=2, seed=1)
    facts = pretrain(documents, tmp_path / "on", settings, description="on", start=folder, progress=False)
    assert facts["held_out_loss"] < before["held_out_loss"]
    assert facts["parameters"] == before["parameters"]  # the sizes are the encoder's own
    kept = json.loads((tmp_path / "on" / "pretraining.json").read_text())
    assert kept["settings"] == asdict(replace(settings, hidden=32)), "and told so"
    assert kept["start"] == json.loads((folder / "pretraining.json").read_text())
    first, second = (models.load_tokenizer(path).get_vocab() for path in (folder, tmp_path / "on"))
    assert first == second
    (folder / "pretraining.json").rename(tmp_path / "pretraining.json")
    try:
        with pytest.raises(FlatlingoError, match="no encoder to go on from"):
            pretrain(documents, tmp_path / "off", settings, description="off", start=folder, progress=False)
    finally:
        (tmp_path / "pretraining.json").rename(folder / "pretraining.json")


def test_the_same_call_gives_the_same_bytes(documents, encoder, tmp_path):
    folder, _ = encoder
    pretrain(documents, tmp_path / "again", SMALL, description="test", progress=False)
    for name in ("model.safetensors", "tokenizer.json", "pretraining.json"):
        same = (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert same, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU decides where there is no GPU")
@pytest.mark.parametrize("capabilities", [{"bf16": True}, {"avx512_bf16": True}, {"avx2": True}], ids="-".join)
def test_products_are_in_bfloat16_where_the_processor_has_it(documents, tmp_path, monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    few = replace(SMALL, epochs=1, batch_size=8)
    facts = pretrain(documents[:16], tmp_path / "made", few, description="test", progress=False)
    assert facts["precision"] == ("float32" if "avx2" in capabilities else "bfloat16")


def test_a_killed_call_resumes_to_the_same_weights(documents, encoder, tmp_path):
    folder, _ = encoder
    (tmp_path / "texts.txt").write_text("\n".join(documents))
    script = (
        "import sys; from pathlib import Path; from flatlingo.pretraining import *\n"
        "pretrain(read_texts([Path('texts.txt')]), Path('killed'), Pretraining(layers=1, hidden=32, heads=2,"
        " vocabulary=1100, epochs=4, batch_size=16, threads=1), description='test', progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    work, per_epoch = tmp_path / ".killed.work", -(-(len(documents) - 8) // 16)
    while not any(step > per_epoch + 4 for step in steps_logged(work)):
        assert process.poll() is None, "ended before its second epoch"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    (checkpoints,) = work.iterdir()
    assert pretraining._last_checkpoint(checkpoints).endswith(f"checkpoint-{per_epoch}")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    same = (tmp_path / "killed" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert same
    assert not work.exists()


def steps_logged(work):
    return [json.loads(line)["step"] for path in work.glob("*/losses.jsonl") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("changed", [{}, {"seed": 2}], ids=["the same call", "another seed"])
def test_a_call_that_failed_in_its_evaluation_leaves_nothing_to_other_calls(documents, tmp_path, monkeypatch, changed):
    settings = replace(SMALL, epochs=1, **changed)

    def full_disk(_trainer):
        raise OSError("disk")

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "evaluate", full_disk)
        with pytest.raises(OSError, match="disk"):
            pretrain(documents, tmp_path / "encoder", replace(SMALL, epochs=1), description="test", progress=False)
    for folder in ("encoder", "undisturbed"):
        pretrain(documents, tmp_path / folder, settings, description="test", progress=False)
    for name in ("model.safetensors", "pretraining.json"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("encoder", "undisturbed"))
        assert first == second, name


@pytest.mark.parametrize(
    ("changed", "started", "says"),
    [({"hidden": 100, "heads": 3}, False, "no multiple of 3"), ({"max_length": 256}, True, "has 128 positions")],
    ids=["heads", "positions"],
)
def test_sizes_that_do_not_go_together_are_named(documents, encoder, tmp_path, changed, started, says):
    start = encoder[0] if started else None
    with pytest.raises(FlatlingoError, match=says):
        pretrain(documents, tmp_path / "out", replace(SMALL, **changed), description="", start=start)


def test_words_are_never_unknown_and_chinese_ones_have_several_segmentations(documents):
    tokenizer = train_tokenizer(documents, 1100)
    assert len(tokenizer) == 1100
    pieces = tokenizer.get_vocab()
    for text in ("Größere Mäuse, pingüino y niño: Xylophone #42!", "狗跑", "Hugo 追赶 the 狗.", *documents):
        assert tokenizer.unk_token not in tokenizer.tokenize(text)
    chinese = [piece.removeprefix("##") for piece in pieces if vocabulary.CHINESE.search(piece)]
    assert {len(piece) for piece in chinese} == {1, 2}
    assert pieces.keys() >= {"狗", "##狗", "##正在", "##正", "##在"}


def test_characters_are_kept_even_where_the_vocabulary_is_too_small_for_them():
    tokenizer = train_tokenizer(["a dog", "一只狗"], 20)
    assert tokenizer.tokenize("dog 狗") == ["d", "##o", "##g", "狗"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"absent.txt: cannot be read: No such file"),
        (b"\n \n", "no text"),
        (b"a dog\n\xff\xfe", "absent.txt, line 2: not UTF-8; save"),
    ],
    ids=str,
)
def test_texts_that_cannot_be_read_are_named(tmp_path, content, says):
    path = tmp_path / "absent.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FlatlingoError, match=says):
        read_texts([path])


def test_texts_are_the_lines_of_their_files(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffa dog\r\n\r\none\u2028line \n two\x0c words".encode())
    assert read_texts([path]) == ["a dog", "one\u2028line", "two\x0c words"]


def test_a_folder_that_is_no_encoder_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FlatlingoError, match="exists and is no encoder of this command"):
        pretrain(["a"] * 99, tmp_path, Pretraining(), description="")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_too_few_documents_are_refused(tmp_path):
    with pytest.raises(FlatlingoError, match="do not fill one batch"):
        pretrain(["a"], tmp_path / "out", Pretraining(), description="")
    assert not list(tmp_path.iterdir())


def test_the_command_line_has_the_same_defaults():
    options = inspect.signature(cli.pretrain).parameters
    settings = {name: value for name, value in asdict(Pretraining()).items() if name in options}
    assert len(settings) > 5
    assert {name: options[name].default for name in settings} == settings


def test_the_shipped_encoder_says_what_it_is():
    from flatlingo.files import MINI_MBERT

    facts = json.loads((MINI_MBERT / "pretraining.json").read_text())
    card = (MINI_MBERT / "README.md").read_text()
    asked = re.findall(r"^\tflatlingo pretrain --mini-world (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in reversed(asked):  # the last round first, as facts are told
        options = dict(re.findall(r"--(seed|epochs|claims) (\S+)", line))
        one, facts = facts, facts.get("start")
        settings = Pretraining(
            seed=int(options.get("seed", 0)), epochs=float(options.get("epochs", Pretraining().epochs))
        )
        found = miniencoder.mini_world_corpus(settings.seed, float(options.get("claims", miniencoder.CLAIMS)))
        assert one["data"] == found, "the world changed: run `make pretrain`"
        assert one["documents"] == miniencoder.MINI_WORLD_DOCUMENTS
        assert one["settings"] == asdict(settings)
        for fact in (f"| {one['steps']:,} |", f"{one['parameters']:,} parameters", str(one["held_out_loss"])):
            assert fact in card
    assert facts is None
