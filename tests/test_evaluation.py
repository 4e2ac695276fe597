import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import make_model, make_rows, make_tokenizer

from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import accuracy, batches, memorisation, predictions

TOKENIZER = make_tokenizer()


@pytest.fixture
def model():
    return make_model(dropout=0.3)


@pytest.fixture
def rows():
    return make_rows(50)


def one_by_one(model, rows) -> np.ndarray:
    """Probabilities from one unpadded forward pass a row."""
    encoded = (TOKENIZER(row["text_a"], row["text_b"], return_tensors="pt") for row in rows)
    with torch.no_grad():
        return np.concatenate([model(**inputs).logits.softmax(-1).numpy() for inputs in encoded])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_are_in_order_and_do_not_depend_on_padding(model, rows, batch_size):
    predicted = predictions(model, TOKENIZER, rows, max_length=64, batch_size=batch_size)
    np.testing.assert_allclose(predicted, one_by_one(model, rows), atol=1e-6)


def test_accuracy_is_the_share_of_right_rows_in_any_order(model, rows):
    expected = np.mean(one_by_one(model, rows).argmax(-1) == [row["label"] for row in rows])
    shuffled = random.Random(0).sample(rows, len(rows))
    assert accuracy(model, TOKENIZER, rows, max_length=64) == pytest.approx(expected)
    assert accuracy(model, TOKENIZER, shuffled, max_length=64) == pytest.approx(expected)
    assert accuracy(model, TOKENIZER, Dataset.from_list(rows), max_length=64) == pytest.approx(expected)


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored_module_by_module(model, rows, training):
    model.train(training)
    model.bert.pooler.eval()  # a frozen part stays in eval mode
    before = [module.training for module in model.modules()]
    first, again = (predictions(model, TOKENIZER, rows, max_length=64) for _ in range(2))
    assert [module.training for module in model.modules()] == before
    np.testing.assert_array_equal(first, again)


def test_memorisation_counts_wrong_labels_that_are_fitted(model, rows):
    predicted = one_by_one(model, rows).argmax(-1)
    # ten rows wrongly labelled: the model "fitted" four of them; the other rows are labelled right and as predicted
    for i, row in enumerate(rows):
        row["label"] = row["clean_label"] = int(predicted[i])
        if i < 4:
            row["clean_label"] = (row["clean_label"] + 1) % 3
        elif i < 10:
            row["label"] = (row["label"] + 1) % 3
    assert memorisation(model, TOKENIZER, rows, max_length=64) == {
        "train_accuracy": pytest.approx(44 / 50),
        "clean_train_accuracy": pytest.approx(46 / 50),
        "noisy_fitted": pytest.approx(0.4),
    }


def test_memorisation_without_wrong_labels_is_unknown(model, rows):
    clean = [row | {"clean_label": row["label"]} for row in rows]
    assert memorisation(model, TOKENIZER, clean, max_length=64)["noisy_fitted"] is None


def test_memorisation_of_real_rows_is_unknown(model, rows):
    result = memorisation(model, TOKENIZER, rows, max_length=64)
    assert result["clean_train_accuracy"] is None
    assert result["noisy_fitted"] is None
    assert result["train_accuracy"] == accuracy(model, TOKENIZER, rows, max_length=64)


def test_batches_hold_every_row_once_in_order_of_length(rows):
    made = batches(TOKENIZER, rows, max_length=64, batch_size=8)
    lengths = [int(mask.sum()) for batch in made for mask in batch["attention_mask"]]
    assert lengths == sorted(lengths)
    assert len(lengths) == len(rows)
    assert sorted(label for batch in made for label in batch["labels"].tolist()) == sorted(r["label"] for r in rows)
    assert all(batch["input_ids"].shape == batch["token_type_ids"].shape for batch in made)


def test_batches_of_rows_without_label_have_no_labels(rows):
    unlabelled = [{"text_a": row["text_a"], "text_b": row["text_b"]} for row in rows]
    assert all("labels" not in batch for batch in batches(TOKENIZER, unlabelled, max_length=64, batch_size=8))


@pytest.mark.parametrize(
    ("broken", "message"),
    [([], "no rows"), ([{"text_a": "the cat", "label": 0}], "text_b"), ([{"text_a": "a", "text_b": "b"}], "label")],
    ids=["empty", "no text_b", "no label"],
)
def test_unusable_rows_are_refused(model, broken, message):
    with pytest.raises(FlatlingoError, match=message):
        accuracy(model, TOKENIZER, broken, max_length=64)
