import json
import shutil
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)
from transformers.utils import logging

from flatlingo import hub, models
from flatlingo.errors import FlatlingoError
from flatlingo.fisher import fisher_trace

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "cat", "dog", "the", "."]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=32)
ROBERTA = XLMRobertaConfig(**SIZES, intermediate_size=32, max_position_embeddings=40)
DISTILBERT = DistilBertConfig(vocab_size=len(WORDS), dim=16, n_layers=2, n_heads=2, hidden_dim=32)
PRETRAINED = {
    "bert": lambda: BertForMaskedLM(BERT),
    "bare-bert": lambda: BertModel(BERT),
    "xlm-roberta": lambda: XLMRobertaForMaskedLM(ROBERTA),
    "distilbert": lambda: DistilBertForMaskedLM(DISTILBERT),
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    save_pretrained(PRETRAINED["bert"](), folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(pretrained, tmp_path) -> Path:
    return Path(shutil.copytree(pretrained, tmp_path / "checkpoint"))


@pytest.fixture
def finetuned(pretrained, tmp_path) -> Path:
    folder = Path(shutil.copytree(pretrained, tmp_path / "finetuned"))
    save_pretrained(models.load_model(pretrained, 3, seed=1), folder)
    return folder


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """An empty cache, and a Hub at a port of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return endpoint


def save_pretrained(model, folder):
    logging.disable_progress_bar()
    model.save_pretrained(folder)


def edit_config(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_like(folder, kind, change):
    weights = load_file(folder / "model.safetensors")
    if kind == "remove":
        weights = {name: value for name, value in weights.items() if change not in name}
    else:
        weights[change] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("kind", PRETRAINED)
def test_pretrained_encoder_gets_a_head_and_keeps_its_weights(kind, tmp_path):
    encoder = PRETRAINED[kind]()
    save_pretrained(encoder, tmp_path)
    model = models.load_model(tmp_path, 3, seed=0)
    assert model.num_labels == 3
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    before = encoder.get_input_embeddings().weight
    torch.testing.assert_close(model.get_input_embeddings().weight, before, rtol=0, atol=0)


def test_half_precision_checkpoint_is_loaded_in_float32(tmp_path):
    save_pretrained(PRETRAINED["bert"]().to(torch.bfloat16), tmp_path)
    assert models.load_model(tmp_path, 2).dtype == torch.float32


def test_head_is_drawn_from_the_seed_and_the_global_generator_is_left_alone(pretrained):
    state = torch.get_rng_state()
    one, same, other = (models.load_model(pretrained, 3, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {"classifier.weight", "bert.pooler.dense.weight"}


def test_head_of_a_finetuned_checkpoint_is_kept(finetuned):
    saved = load_file(finetuned / "model.safetensors")["classifier.weight"]
    assert torch.equal(models.load_model(finetuned, 3, seed=99).classifier.weight, saved)


LABELS = ["entailment", "neutral", "contradiction"]


@pytest.fixture(params=["bert", "xlm-roberta"])
def named_classifier(request, tmp_path):
    """Folder of a classifier whose head has one layer or two and names its classes in an order of its own."""
    save_pretrained(PRETRAINED[request.param](), tmp_path / "encoder")
    model = models.load_model(tmp_path / "encoder", ["contradiction", "entailment", "neutral"], seed=1)
    torch.nn.init.normal_([m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1].bias)
    save_pretrained(model, tmp_path / "classifier")
    return tmp_path / "classifier"


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([[2, 5, 6, 3]])).logits[0]


def test_names_of_classes_are_saved_with_the_model(named_classifier):
    config = json.loads((named_classifier / "config.json").read_text())
    assert config["id2label"] == {"0": "contradiction", "1": "entailment", "2": "neutral"}


@pytest.mark.parametrize("labels", [1, 0, -1, True, [], ["a", "a", "b"]], ids=str)
def test_classes_that_cannot_be_told_apart_are_refused(labels):
    with pytest.raises(FlatlingoError, match="2 or more, or their distinct names"):
        models.load_model("mini-mbert", labels)


def test_a_head_with_its_classes_in_another_order_is_put_into_the_labels_order(named_classifier):
    as_saved = logits_of(models.load_model(named_classifier, ["contradiction", "entailment", "neutral"]))
    with pytest.warns(UserWarning, match="classes .contradiction, entailment, neutral. are put into the labels' order"):
        model = models.load_model(named_classifier, LABELS)
    torch.testing.assert_close(logits_of(model), as_saved[[1, 2, 0]])
    assert list(model.config.id2label.values()) == LABELS


def test_a_head_of_other_classes_is_initialised_anew(named_classifier):
    names = ["bad", "middling", "good"]
    with pytest.warns(UserWarning, match="whose classes are contradiction, .* is initialised anew for bad"):
        one, same, other = (models.load_model(named_classifier, names, seed=seed) for seed in (5, 5, 6))
    saved = models.load_model(named_classifier, ["contradiction", "entailment", "neutral"])
    torch.testing.assert_close(logits_of(one), logits_of(same), rtol=0, atol=0)
    for name, parameter in one.named_parameters():
        if name.startswith(f"{one.base_model_prefix}."):
            assert torch.equal(parameter, saved.get_parameter(name))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            assert not torch.equal(parameter, saved.get_parameter(name))
            assert not torch.equal(parameter, other.get_parameter(name))


def test_a_head_with_named_classes_is_kept_for_a_number_of_labels_and_its_names_are_told(named_classifier):
    with pytest.warns(UserWarning, match="keeps the checkpoint's head, whose classes are contradiction, entailment"):
        model = models.load_model(named_classifier, 3)
    saved = models.load_model(named_classifier, ["contradiction", "entailment", "neutral"])
    torch.testing.assert_close(logits_of(model), logits_of(saved), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", ("hidden_dropout_prob", "attention_probs_dropout_prob")),
        ("distilbert", ("dropout", "attention_dropout", "seq_classif_dropout")),
    ],
)
def test_dropout_reaches_every_dropout_module(kind, names, tmp_path):
    save_pretrained(PRETRAINED[kind](), tmp_path)
    model = models.load_model(tmp_path, 2, dropout=0.37)
    assert {getattr(model.config, name) for name in names} == {0.37}
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.37}


def test_configured_dropout_is_kept_by_default(pretrained):
    assert models.load_model(pretrained, 2).config.hidden_dropout_prob == BERT.hidden_dropout_prob


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_impossible_dropout_is_refused(pretrained, dropout):
    with pytest.raises(FlatlingoError, match="dropout must be"):
        models.load_model(pretrained, 2, dropout=dropout)


def test_attention_implementation_is_passed_on(pretrained):
    assert models.load_model(pretrained, 2, attention="eager").config._attn_implementation == "eager"
    with pytest.raises(FlatlingoError, match="nonesuch"):
        models.load_model(pretrained, 2, attention="nonesuch")


def test_classifier_and_tokenizer_of_a_finetuned_folder(finetuned):
    model, tokenizer = models.load_classifier(finetuned)
    batch = tokenizer("the cat", "the dogs.", return_tensors="pt")
    assert batch["token_type_ids"].max() == 1
    assert tokenizer.tokenize("dogs xz") == ["dog", "##s", "[UNK]"]
    assert model(**batch).logits.shape == (1, 3)
    assert not model.training


def test_loading_is_silent_and_restores_the_settings_of_transformers(pretrained, capfd):
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        models.load_model(pretrained, 3)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity_warning()
        logging.disable_progress_bar()
    assert "".join(capfd.readouterr()) == ""


DAMAGES = {
    "layer missing from the weights": (lambda f: edit_config(f, num_hidden_layers=3), r"lacks .*encoder\.layer\.2"),
    "layer unknown to the configuration": (
        lambda f: edit_config(f, num_hidden_layers=1),
        r"knows nothing of .*encoder\.layer\.1.* and \d+ more",
    ),
    "embedding missing": (lambda f: weights_like(f, "remove", "word_embeddings"), "lacks .*word_embeddings"),
    "unknown weight": (lambda f: weights_like(f, "add", "adapter.weight"), r"knows nothing of \(adapter\.weight\)"),
    "other vocabulary size": (lambda f: edit_config(f, vocab_size=99), r"word_embeddings.*\(36, 16\).*\(99, 16\)"),
    "own code": (lambda f: edit_config(f, auto_map={"AutoModel": "x.Y"}), r"config\.json asks to run code"),
    "unknown architecture": (lambda f: edit_config(f, model_type="nonesuch"), "nonesuch"),
    "no number": (lambda f: edit_config(f, num_hidden_layers="two"), "cannot be read: .*num_hidden_layers"),
    "broken configuration": (lambda f: (f / "config.json").write_text("{"), "configuration cannot be read"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
    "broken weights": (lambda f: (f / "model.safetensors").write_bytes(b"xx"), "header too small"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors"),
}


@pytest.mark.parametrize(("harm", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_refused(checkpoint, harm, message):
    harm(checkpoint)
    with pytest.raises(FlatlingoError, match=message) as error:
        models.load_model(checkpoint, 3)
    assert str(error.value).startswith(str(checkpoint))


def test_the_folder_of_a_run_leads_to_its_checkpoint(finetuned, tmp_path):
    shutil.copytree(finetuned, tmp_path / "run" / "model")
    for name in ("config.json", "result.json"):
        (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(FlatlingoError, match=rf"its checkpoint is {tmp_path}/run/model"):
        models.load_classifier(tmp_path / "run")


def test_head_of_another_size_is_refused(finetuned):
    with pytest.raises(FlatlingoError, match=r"classifier\.bias has shape \(3,\).* but \(2,\) was asked for"):
        models.load_model(finetuned, 2)


def test_encoder_without_head_is_no_classifier(pretrained):
    with pytest.raises(FlatlingoError, match="no classification head"):
        models.load_classifier(pretrained)


def test_pickle_is_refused_and_the_printed_command_converts_it(checkpoint, monkeypatch):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    with pytest.raises(FlatlingoError, match="is a pickle") as error:
        models.load_model(checkpoint, 3)
    monkeypatch.chdir(checkpoint)
    exec(str(error.value).partition('python -c "')[2].removesuffix('"'))
    embeddings = models.load_model(checkpoint, 3).get_input_embeddings().weight
    assert torch.equal(embeddings, weights["bert.embeddings.word_embeddings.weight"])


def test_tokenizer_larger_than_the_embeddings_is_refused(checkpoint):
    tokenizer = BertTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(checkpoint)
    with pytest.raises(FlatlingoError, match="37 tokens, the model embeds 36"):
        models.load_tokenizer(checkpoint)


def test_tokenizer_without_its_vocabulary_is_refused(checkpoint):
    # transformers makes one of the five special tokens alone, and every word is [UNK]
    for name in ("tokenizer.json", "vocab.txt"):
        (checkpoint / name).unlink()
    with pytest.raises(FlatlingoError, match="5 tokens, the model embeds 36"):
        models.load_tokenizer(checkpoint)


def test_tokenizer_that_brings_code_is_refused(checkpoint):
    edit_config(checkpoint, "tokenizer_config.json", auto_map={"AutoTokenizer": "x.Y"})
    with pytest.raises(FlatlingoError, match=r"tokenizer_config\.json asks to run code"):
        models.load_tokenizer(checkpoint)


@pytest.mark.parametrize("cached", [False, True], ids=["folder", "cache"])
def test_the_shape_of_an_encoder_needs_no_weights(checkpoint, tmp_path, monkeypatch, cached):
    whole, source = models.load_model(checkpoint, 3), checkpoint
    (checkpoint / "model.safetensors").unlink()
    if cached:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        source = "example/encoder"
        shutil.copytree(checkpoint, tmp_path / "cache" / "models--example--encoder" / "snapshots" / ("a" * 40))
    state = torch.random.get_rng_state()
    model, tokenizer = models.load_shape(source, 3, revision="a" * 40)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in whole.named_parameters()
    }
    assert (model.training, tokenizer.get_vocab()) == (False, models.load_tokenizer(checkpoint).get_vocab())


LOADERS = {
    "model": lambda source: models.load_model(source, 3),
    "classifier": models.load_classifier,
    "tokenizer": models.load_tokenizer,
    "rows": lambda source: hub.load_rows(source, "en", "validation"),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("offline", [False, True], ids=["nobody answers", "HF_HUB_OFFLINE"])
def test_without_the_hub_an_unknown_name_fails_fast_with_a_remedy(load, offline, unreachable, monkeypatch):
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    with pytest.raises(FlatlingoError, match=r"somebody/something: .*hf download somebody/something") as error:
        load("somebody/something")
    assert time.monotonic() - start < 5
    assert unreachable in str(error.value)
    assert ("HF_HUB_OFFLINE is set" in str(error.value)) == offline


@pytest.mark.parametrize("source", ["./nowhere", "/no/where", "a/b/c", "with space", Path("nowhere")], ids=str)
def test_missing_folder_is_named_without_asking_the_hub(source):
    with pytest.raises(FlatlingoError, match="no such folder"):
        models.load_model(source, 3)


def test_shipped_encoder_has_a_name(pretrained, monkeypatch):
    monkeypatch.setitem(hub.SHIPPED, "mini-mbert", pretrained)
    assert models.load_model("mini-mbert", 3).config.hidden_size == 16
    assert hub.provenance("mini-mbert") == hub.provenance(pretrained)
    monkeypatch.setitem(hub.SHIPPED, "mini-mbert", pretrained / "nowhere")
    with pytest.raises(FlatlingoError, match="make pretrain"):
        models.load_model("mini-mbert", 3)


def test_file_in_place_of_a_folder(pretrained):
    with pytest.raises(FlatlingoError, match="is a file"):
        models.load_model(pretrained / "model.safetensors", 3)


def cached(cache, kind, name):
    """A repository in the layout of the Hugging Face cache; returns the folder for its files."""
    repository = Path(cache) / f"{kind}s--{name.replace('/', '--')}"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def test_model_and_tokenizer_from_the_cache(pretrained, unreachable):
    shutil.copytree(pretrained, cached(constants.HF_HUB_CACHE, "model", "somebody/bert"))
    expected = models.load_model(pretrained, 3, seed=1).state_dict()
    found = models.load_model("somebody/bert", 3, seed=1).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert len(models.load_tokenizer("somebody/bert")) == len(WORDS)


def test_incomplete_model_in_the_cache_is_not_taken(pretrained, unreachable):
    folder = cached(constants.HF_HUB_CACHE, "model", "somebody/bert")
    folder.mkdir(parents=True)
    shutil.copy(pretrained / "config.json", folder)
    with pytest.raises(FlatlingoError, match="cannot be reached"):
        models.load_model("somebody/bert", 3)


def test_rows_from_the_cache(unreachable):
    folder = cached(constants.HF_HUB_CACHE, "dataset", "somebody/pairs") / "de"
    folder.mkdir(parents=True)
    parts = [pd.DataFrame({"premise": [text], "label": [label]}) for text, label in (("Ja.", 0), ("Nein.", 2))]
    for number, part in enumerate(parts):
        part.to_parquet(folder / f"validation-0000{number}-of-00002.parquet")
    parts[0].to_parquet(folder / "test-00000-of-00001.parquet")
    rows = hub.load_rows("somebody/pairs", "de", "validation")
    assert rows.to_dict() == {"premise": ["Ja.", "Nein."], "label": [0, 2]}


# Adapters


def trained(model):
    """The adapter and the head as training would leave them: other than they were initialised."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model.eval()


LORA = {"r": 2, "target_modules": ["query"]}


def save_adapter(base, folder, kind):
    """A fine-tuned classifier with an adapter, saved by peft, with its head, or by transformers, without."""
    model = models.load_model(base, 3, seed=2)
    model.name_or_path = str(base)
    if kind == "peft":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **LORA))
    else:
        model.add_adapter(LoraConfig(**LORA))
    save_pretrained(trained(model), folder)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["peft", "add_adapter"])
def test_an_adapter_is_put_on_its_base_model(finetuned, tmp_path, kind):
    saved = save_adapter(finetuned, tmp_path / "adapter", kind)
    model, tokenizer = models.load_classifier(tmp_path / "adapter")
    assert tokenizer.tokenize("dogs") == ["dog", "##s"]  # the base model's
    batch = dict(tokenizer("the cat", "the dogs.", return_tensors="pt"))
    torch.testing.assert_close(model(**batch).logits, saved(**batch).logits, rtol=0, atol=0)
    assert not model.training
    of_adapter = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in of_adapter)
    assert any("classifier" in name for name in of_adapter) == (kind == "peft")
    trace = fisher_trace(model, [batch])
    assert trace.value > 0
    merged = model.merge_and_unload() if kind == "peft" else None
    if merged is not None:
        torch.testing.assert_close(merged(**batch).logits, saved(**batch).logits)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_tokenizer_beside_an_adapter_is_taken(finetuned, tmp_path):
    save_adapter(finetuned, tmp_path / "adapter", "peft")
    tokenizer = models.load_tokenizer(finetuned)
    tokenizer.model_max_length = 17
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert models.load_tokenizer(tmp_path / "adapter").model_max_length == 17


ADAPTER_DAMAGES = {
    "no base": (lambda f: edit_config(f, "adapter_config.json", base_model_name_or_path=None), "names no base model"),
    "base gone": (
        lambda f: edit_config(f, "adapter_config.json", base_model_name_or_path="./gone"),
        r"the base model of this adapter: \./gone: no such folder",
    ),
    "another base": (lambda f: edit_config(f, "adapter_config.json", target_modules=["nonesuch"]), "does not fit"),
    "unknown kind": (lambda f: edit_config(f, "adapter_config.json", peft_type="NONESUCH"), "does not fit"),
    "broken settings": (
        lambda f: (f / "adapter_config.json").write_text("{"),
        "configuration cannot be read, adapter_",
    ),
    "pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        r"adapter_model\.bin is a pickle.*'adapter_model\.safetensors'",
    ),
    "broken weights": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"xx"),
        "adapter_model.safetensors cannot",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("harm", "message"), ADAPTER_DAMAGES.values(), ids=ADAPTER_DAMAGES)
def test_a_damaged_adapter_is_refused(finetuned, tmp_path, harm, message):
    save_adapter(finetuned, tmp_path / "adapter", "peft")
    harm(tmp_path / "adapter")
    with pytest.raises(FlatlingoError, match=message) as error:
        models.load_classifier(tmp_path / "adapter")
    assert str(error.value).startswith(str(tmp_path / "adapter"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_on_a_pooler_that_nobody_saved_is_refused(pretrained, tmp_path):
    """The encoder has no pooler: the one that the adapter was trained with was drawn, and not saved."""
    save_adapter(pretrained, tmp_path / "adapter", "peft")
    with pytest.raises(FlatlingoError, match=r"neither this adapter nor its base .*pooler\.dense.*modules_to_save"):
        models.load_classifier(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_is_no_encoder_to_start_from(finetuned, tmp_path):
    save_adapter(finetuned, tmp_path / "adapter", "peft")
    with pytest.raises(FlatlingoError, match="folder of an adapter.*merge_and_unload"):
        models.load_model(tmp_path / "adapter", 3)


def test_provenance_of_a_folder_follows_what_decides_the_model(checkpoint):
    first = hub.provenance(checkpoint)
    assert (first["source"], first["revision"]) == ("files", None)
    (checkpoint / "README.md").write_text("A model card.")
    assert hub.provenance(checkpoint) == first
    edit_config(checkpoint, hidden_dropout_prob=0.2)
    second = hub.provenance(checkpoint)
    weights_like(checkpoint, "add", "extra")
    assert len({found["sha256"] for found in (first, second, hub.provenance(checkpoint))}) == 3


def test_provenance_of_a_hub_id_is_the_commit_and_a_missing_folder_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mbert = "google-bert/bert-base-multilingual-cased"
    assert hub.provenance(mbert) == {"source": mbert, "revision": None, "sha256": None}
    assert hub.provenance(mbert, "a" * 40)["revision"] == "a" * 40
    references = tmp_path / "models--google-bert--bert-base-multilingual-cased" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("b" * 40)
    assert hub.provenance(mbert)["revision"] == "b" * 40
    with pytest.raises(FlatlingoError, match="no such folder"):
        hub.provenance("./nowhere")
