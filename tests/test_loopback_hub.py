"""Model and rows from a Hub (a server on this machine, reached through HF_ENDPOINT), its cache, and folders."""

import json
import shutil
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import constants, hf_hub_download
from loopback_hub import COMMIT, loopback_hub
from tiny import SIZES, make_model, make_rows, make_tokenizer, write_preset

from flatlingo import hub, models
from flatlingo.errors import FlatlingoError
from flatlingo.study.sweep import sweep
from flatlingo.taskfiles import load_description
from flatlingo.tasks import load_task, provenance

MBERT, XNLI, PAWSX = "google-bert/bert-base-multilingual-cased", "facebook/xnli", "google-research-datasets/paws-x"
TEXT = {"xnli": ("premise", "hypothesis"), "pawsx": ("sentence1", "sentence2")}
HUB = {"xnli": XNLI, "pawsx": PAWSX}
CLASSES = {"xnli": ["entailment", "neutral", "contradiction"], "pawsx": ["0", "1"]}
NOBODY = "http://127.0.0.1:9"  # nobody listens there
ROWS = {("en", "train"): 32, ("en", "validation"): 24, ("de", "validation"): 24}


def rows_of(task, language, split):
    rows = make_rows(ROWS[language, split], labels=len(CLASSES[task]), seed=len(split))
    return [row | {"text_a": f"{row['text_a']} {language} {row['row_id']}"} for row in rows]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The repositories that the Hub serves, and the rows of the same tasks in XTREME's layout under `data`."""
    root = tmp_path_factory.mktemp("hub")
    encoder = root / "models" / MBERT
    make_model(max_position_embeddings=128).bert.save_pretrained(encoder)
    make_tokenizer().save_pretrained(encoder)
    (encoder / "pytorch_model.bin").write_bytes(b"a pickle")
    for task, (first, second) in TEXT.items():
        numbers = {"id": Value("int32")} if task == "pawsx" else {}
        features = Features(
            numbers | {first: Value("string"), second: Value("string"), "label": ClassLabel(names=CLASSES[task])}
        )
        (root / "data" / task).mkdir(parents=True)
        for language, split in ROWS:
            rows = rows_of(task, language, split)
            table = [
                {"id": row["row_id"] + 1, first: row["text_a"], second: row["text_b"], "label": row["label"]}
                for row in rows
            ]
            folder = root / "datasets" / HUB[task] / language
            folder.mkdir(parents=True, exist_ok=True)
            shown = [{name: row[name] for name in features} for row in table]
            Dataset.from_list(shown, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
            lines = [(row["text_a"], row["text_b"], CLASSES[task][row["label"]]) for row in rows]
            name = f"{'train' if split == 'train' else 'dev'}-{language}.tsv"
            pd.DataFrame(lines).to_csv(root / "data" / task / name, sep="\t", header=False, index=False)
    return root


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Go online to an endpoint, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return lambda endpoint: monkeypatch.setenv("HF_ENDPOINT", endpoint)


def preset_of(folder, task):
    """Preset smoke on a task and the model of preset paper, cut to one run."""
    path = write_preset(folder, nli={"none": [0]}, paraphrase={"none": [0]})
    settings = yaml.safe_load(Path(path).read_text()) | {"encoder": MBERT}
    setup = settings["plans"]["nli" if task == "xnli" else "paraphrase"]["setup"]
    setup |= {"task": task, "label_noise": 0.0, "train_size": 24, "languages": SIZES["languages"]}
    setup |= {"validation_size": None}
    setup["measurement"] |= {"trace_examples": 8, "target_examples": 8}
    if task == "pawsx":
        setup["second_stage"]["languages"] = ["de"]
    Path(path).write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.mark.parametrize(("task", "plan"), [("xnli", "nli"), ("pawsx", "paraphrase")])
def test_a_sweep_from_the_hub_its_cache_and_folders_is_the_same(folders, online, tmp_path, task, plan):
    preset = preset_of(tmp_path, task)

    def result(store, **given):
        table = sweep(plan, preset=preset, store=tmp_path / store, jobs=1, progress=False, **given)
        return table.drop(columns=["run_id", "seconds"])

    with loopback_hub(folders) as server:
        online(server.endpoint)
        from_hub = result("hub")
        gets = [name for command, name in server.downloads if command == "GET"]
    # each file once, of the languages and splits in use only, and never the pickle
    rows = [f"{language}/{split}-00000-of-00001.parquet" for language, split in ROWS]
    assert sorted(gets) == sorted(
        [*rows, "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    )
    # the server is gone
    pd.testing.assert_frame_equal(result("cache"), from_hub)
    of_folders = result("folders", model=str(folders / "models" / MBERT), data=folders / "data")
    pd.testing.assert_frame_equal(of_folders, from_hub)


LOADERS = {
    "model": lambda revision: models.load_model(MBERT, 3, seed=1, revision=revision),
    "tokenizer": lambda revision: models.load_tokenizer(MBERT, revision=revision),
    "rows": lambda revision: hub.load_rows(XNLI, "en", "train", revision=revision),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_revision_is_asked_for_kept_and_told(folders, online, load, tmp_path):
    """A commit, a tag (v1) or the newest; then from the cache, which has each of them."""
    revisions = {"a" * 40: "a" * 40, "v1": COMMIT[::-1], None: COMMIT}
    with loopback_hub(folders) as server:
        online(server.endpoint)
        for revision, commit in revisions.items():
            load(revision)
            [name] = [path.name for path in (tmp_path / "cache").glob(f"*/snapshots/{commit}")]
            assert name == commit
        with pytest.raises(FlatlingoError, match="download failed"):
            load("nonesuch")
    online(NOBODY)
    for revision in revisions:
        load(revision)
    with pytest.raises(FlatlingoError, match=r"cannot be reached.*--revision bbbbb"):
        load("b" * 40)


def test_a_cache_that_has_only_a_part_is_completed_where_the_hub_answers(folders, online):
    """As another program leaves it, which asked for the weights alone."""
    with loopback_hub(folders) as server:
        online(server.endpoint)
        for name in ("config.json", "model.safetensors"):
            hf_hub_download(MBERT, name, endpoint=server.endpoint)
        online(NOBODY)
        assert models.load_model(MBERT, 3).num_labels == 3
        with pytest.raises(FlatlingoError, match="tokenizer"):
            models.load_tokenizer(MBERT)
        online(server.endpoint)
        assert models.load_tokenizer(MBERT).get_vocab() == make_tokenizer().get_vocab()


def test_rows_in_parts_are_all_of_one_split(folders, online, tmp_path):
    whole = pd.read_parquet(folders / "datasets" / XNLI / "en" / "validation-00000-of-00001.parquet")
    folder = tmp_path / "datasets" / XNLI / "en"
    folder.mkdir(parents=True)
    for split, rows in {"validation": whole, "validation_mismatched": whole[:3]}.items():
        for part in (0, 1):
            rows[part::2].to_parquet(folder / f"{split}-0000{part}-of-00002.parquet")
    with loopback_hub(tmp_path) as server:
        online(server.endpoint)
        name = "en/validation-00001-of-00002.parquet"
        hf_hub_download(XNLI, name, repo_type="dataset", endpoint=server.endpoint)
        online(NOBODY)
        with pytest.raises(FlatlingoError, match="cannot be reached"):
            hub.load_rows(XNLI, "en", "validation")
        online(server.endpoint)
        assert sorted(hub.load_rows(XNLI, "en", "validation")["premise"]) == sorted(whole["premise"])
    online(NOBODY)
    assert len(hub.load_rows(XNLI, "en", "validation")) == len(whole)


def test_the_commit_of_a_revision_is_that_of_the_hub_and_then_of_the_cache(folders, online):
    with loopback_hub(folders) as server:
        online(server.endpoint)
        assert [hub.commit(MBERT, revision, "model") for revision in (None, "v1")] == [COMMIT, COMMIT[::-1]]
        assert hub.commit("somebody/nothing", None, "model") is None
        assert hub.commit(XNLI, "main", "dataset") == COMMIT
        assert not server.downloads
        models.load_tokenizer(MBERT, revision="v1")
    online(NOBODY)
    assert hub.provenance(MBERT, "v1") == {"source": MBERT, "revision": COMMIT[::-1], "sha256": None}
    assert hub.commit(MBERT, None, "model") is None
    assert hub.commit(MBERT, "b" * 40, "model") == "b" * 40


def test_tasks_ask_for_the_revision_that_their_description_pins(folders, online, tmp_path):
    with loopback_hub(folders) as server:
        online(server.endpoint)
        load_task("xnli", languages=["en", "de"])
    pinned = load_description("xnli").hub.revision
    assert [path.name for path in (tmp_path / "cache").glob("*/snapshots/*")] == [pinned]
    assert provenance("xnli") == {"source": XNLI, "revision": pinned, "sha256": None}


@pytest.mark.parametrize(
    ("load", "kind"),
    [
        (lambda: models.load_model(MBERT.replace("cased", "casd"), 3), "model"),
        (lambda: models.load_tokenizer("somebody/nothing"), "model"),
        (lambda: hub.load_rows(XNLI + "x", "en", "train"), "dataset"),
    ],
    ids=["model", "tokenizer", "rows"],
)
def test_a_mistyped_name_fails_fast_with_the_remedy(folders, online, load, kind):
    with loopback_hub(folders) as server:
        online(server.endpoint)
        started = time.monotonic()
        with pytest.raises(FlatlingoError, match=f"no such folder, and the Hub has no {kind} of this name"):
            load()
        assert time.monotonic() - started < 5


def test_a_language_that_the_data_set_lacks(folders, online):
    with loopback_hub(folders) as server:
        online(server.endpoint)
        with pytest.raises(FlatlingoError, match=r"has no file fr/validation-\*\.parquet"):
            hub.load_rows(XNLI, "fr", "validation")


def test_a_hub_that_takes_calls_and_never_answers_is_given_up(online):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        online(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(FlatlingoError, match="cannot be reached"):
            models.load_model(MBERT, 3)
        assert time.monotonic() - started < 5


def test_a_model_on_the_hub_that_is_a_pickle_or_brings_code_is_refused(folders, online, tmp_path):
    bad = tmp_path / "models" / "somebody"
    shutil.copytree(folders / "models" / MBERT, bad / "code")
    shutil.copytree(folders / "models" / MBERT, bad / "pickle")
    (bad / "pickle" / "model.safetensors").unlink()
    config = json.loads((bad / "code" / "config.json").read_text())
    (bad / "code" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Model"}}))
    (bad / "code" / "modeling.py").write_text("raise SystemExit('run')")
    with loopback_hub(tmp_path) as server:
        online(server.endpoint)
        with pytest.raises(FlatlingoError, match=r"no file \*\.safetensors"):
            models.load_model("somebody/pickle", 3)
        with pytest.raises(FlatlingoError, match="asks to run code"):
            models.load_model("somebody/code", 3)
        assert not {name for _, name in server.downloads} & {"pytorch_model.bin", "modeling.py"}
