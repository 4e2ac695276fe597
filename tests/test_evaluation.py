import itertools
import random
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from scipy import stats
from tiny import SPECIAL, VOCABULARY, make_model, make_rows, make_tokenizer
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from flatlingo.encoding import batches, largest_length
from flatlingo.errors import FlatlingoError
from flatlingo.evaluation import (
    accuracy,
    comparison,
    logits,
    margins,
    memorisation,
    trace_of_rows,
)
from flatlingo.fisher import FisherTrace, empirical_fisher, fisher_trace

TOKENIZER = make_tokenizer()


@pytest.fixture
def model():
    return make_model(dropout=0.3)


@pytest.fixture
def rows():
    return make_rows(50)


def one_by_one(model, rows) -> np.ndarray:
    """Probabilities from one unpadded forward pass per row."""
    encoded = (TOKENIZER(row["text_a"], row["text_b"], return_tensors="pt") for row in rows)
    with torch.no_grad():
        return np.concatenate([model(**inputs).logits.softmax(-1).numpy() for inputs in encoded])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_are_in_order_and_do_not_depend_on_padding(model, rows, batch_size):
    found = torch.from_numpy(logits(model, TOKENIZER, rows, max_length=64, batch_size=batch_size))
    np.testing.assert_allclose(found.softmax(-1), one_by_one(model, rows), atol=1e-6)


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
    first, again = (logits(model, TOKENIZER, rows, max_length=64) for _ in range(2))
    assert [module.training for module in model.modules()] == before
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("option", [{"max_examples": 4}, {"tolerance": 0.1}], ids=str)
def test_the_trace_of_rows_is_not_that_of_the_shortest(model, rows, option):
    with pytest.raises(FlatlingoError, match=f"{next(iter(option))}: .* only the shortest"):
        trace_of_rows(model.eval(), TOKENIZER, rows, **option)


def test_an_example_is_named_by_its_row_though_rows_are_measured_in_order_of_length(model):
    rows = [{"text_a": "dog " * n} for n in (9, 2, 3)]
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight[6:] = float("nan")
    with pytest.raises(FlatlingoError, match="the logits of example 0 are not finite"):
        trace_of_rows(model.eval(), TOKENIZER, rows, batch_size=1)


@pytest.mark.parametrize("measure", [accuracy, memorisation, margins], ids=lambda measure: measure.__name__)
def test_what_cannot_be_scored_is_refused(rows, measure):
    def refused(model, rows, message):
        with pytest.raises(FlatlingoError, match=message):
            measure(model, TOKENIZER, rows, max_length=64)

    broken = make_model()
    with torch.no_grad():
        broken.classifier.bias[0] = float("nan")
    refused(broken, rows, "logits of row 0 are not finite")
    refused(make_model(labels=1), rows, "the model predicts a number")
    refused(make_model(problem_type="multi_label_classification"), rows, "predicts several labels at once")
    for label in (-100, 3, "yes", None, 0.0):
        refused(make_model(), [*rows[:2], rows[2] | {"label": label}], "label of row 2 is .*not one of the model's 3")


def test_accuracy_is_not_of_a_regression(rows):
    with pytest.raises(FlatlingoError, match="predicts a number, a regression"):
        accuracy(make_model(num_labels=1).eval(), TOKENIZER, rows, max_length=64)


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
    [
        ([], "no rows"),
        ([{"text_b": "the cat", "label": 0}], "lack text_a"),
        ([{"text_a": "a", "text_b": "b", "label": 0}, {"text_a": "a", "label": 0}], "all rows must have .*text_b"),
        ([{"text_a": "a", "text_b": "b"}], "label"),
    ],
    ids=["empty", "no text_a", "half a pair", "no label"],
)
def test_unusable_rows_are_refused(model, broken, message):
    with pytest.raises(FlatlingoError, match=message):
        accuracy(model, TOKENIZER, broken, max_length=64)


@pytest.mark.parametrize("columns", [["text_a"], ["text_a", "text_b"]], ids=["single", "pairs"])
def test_each_row_in_its_own_place(columns):
    model, tokenizer = make_model(dtype=torch.float64), make_tokenizer()
    rows = [{column: row[column] for column in columns} for row in make_rows(7)]
    trace = trace_of_rows(model, tokenizer, rows, max_length=20, batch_size=3)
    for row, value in zip(rows, trace.per_example, strict=True):
        encoded = tokenizer(*row.values(), truncation=True, max_length=20, return_tensors="pt")
        assert value == pytest.approx(fisher_trace(model, [dict(encoded)]).value, rel=1e-10)


def test_pairing_does_not_depend_on_the_tokenizer():
    """Another tokenizer, another order of lengths: the rows stay paired."""
    rows = make_rows(8)
    letters = [piece for piece in VOCABULARY if len(piece.removeprefix("##")) == 1]
    tokenizers = make_tokenizer(), make_tokenizer([*SPECIAL, *letters])
    lengths = [[len(t(r["text_a"], r["text_b"])["input_ids"]) for r in rows] for t in tokenizers]
    assert not np.array_equal(*(np.argsort(x, kind="stable") for x in lengths))
    model = make_model(dtype=torch.float64)
    for tokenizer in tokenizers:
        trace = trace_of_rows(model, tokenizer, rows)
        alone = [trace_of_rows(model, tokenizer, [row]).value for row in rows]
        np.testing.assert_allclose(trace.per_example, alone, rtol=1e-10)


def test_comparison_pairs_by_row():
    parts = {name: np.random.default_rng(seed).lognormal(size=(50, 2)) for seed, name in enumerate("ab")}
    traces = {n: FisherTrace(pd.DataFrame(x, columns=["encoder", "head"])) for n, x in parts.items()}
    traces["c"] = FisherTrace(traces["a"].contributions + 10.0)
    table = comparison(traces)
    assert list(table["trace"]) == sorted(table["trace"])
    first = table.index[0]
    assert list(table.loc[first, ["difference", "difference_se"]]) == [0, 0]
    for name, row in table.iterrows():
        assert row["trace"] == pytest.approx(row["encoder"] + row["head"])
        difference = pd.Series(traces[name].per_example - traces[first].per_example)
        assert (row["difference"], row["difference_se"]) == pytest.approx((difference.mean(), difference.sem()))
    assert table.loc["c", "difference"] - table.loc["a", "difference"] == pytest.approx(20)


def test_comparison_says_how_far_the_order_can_be_trusted():
    """Interval and probability of neighbours are those of the paired differences' mean; the same for the same seed."""
    rng = np.random.default_rng(0)
    base, noise = rng.lognormal(2, 1, 400), rng.normal(size=(3, 400))
    levels = {"a": base + noise[0], "close": base + noise[1] + 0.02, "far": base + noise[2] + 3}
    traces = {name: FisherTrace(pd.DataFrame({"model": x})) for name, x in levels.items()}
    table = comparison(traces)
    assert table.iloc[0][["above", "low", "high", "order"]].isna().all()
    for upper, lower in itertools.pairwise(table.index):
        gap = pd.Series(levels[lower] - levels[upper])
        found = table.loc[lower]
        assert found["above"] == pytest.approx(gap.mean())
        assert found["low"] == pytest.approx(gap.mean() - 1.96 * gap.sem(), abs=0.2 * gap.sem())
        assert found["high"] == pytest.approx(gap.mean() + 1.96 * gap.sem(), abs=0.2 * gap.sem())
        assert found["order"] == pytest.approx(stats.norm.cdf(gap.mean() / gap.sem()), abs=0.03)
    assert table["order"].max() == 1
    assert table["order"].min() < 0.95
    pd.testing.assert_frame_equal(comparison(traces), table)


def test_models_that_are_alike_are_in_no_order():
    trace = FisherTrace(pd.DataFrame({"model": [1.0, 2.0, 3.0]}))
    assert comparison({"a": trace, "b": trace}).loc["b", "order"] == 0.5


ROBERTA = {"pad_token_id": 1, "max_position_embeddings": 34}


def make_xlmr(**config) -> XLMRobertaForSequenceClassification:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = {"vocab_size": len(VOCABULARY), "num_labels": 3, "type_vocab_size": 2} | sizes | ROBERTA | config
    return XLMRobertaForSequenceClassification(XLMRobertaConfig(**config)).eval()


LONG = [{"text_a": "the cat sleeps " * n, "label": 0} for n in (40, 1)]


@pytest.mark.parametrize("measure", [trace_of_rows, logits], ids=["trace", "logits"])
@pytest.mark.parametrize(("make", "largest"), [(make_model, 64), (make_xlmr, 32)], ids=["BERT", "XLM-R"])
def test_the_largest_length_that_is_advised_is_the_largest_that_works(make, largest, measure):
    model = make()
    with pytest.raises(FlatlingoError, match=rf"100 tokens and the model {largest} positions.*max_length={largest}$"):
        measure(model, TOKENIZER, LONG, max_length=100)
    measure(model, TOKENIZER, LONG, max_length=largest)
    with pytest.raises(FlatlingoError, match=f"{largest + 1} tokens"):
        measure(model, TOKENIZER, LONG, max_length=largest + 1)


@pytest.mark.parametrize(
    ("make", "largest"),
    [
        (lambda: make_model(), 64),
        (lambda: make_xlmr(), 32),
        (lambda: make_xlmr(pad_token_id=0), 33),
        (lambda: RobertaForSequenceClassification(RobertaConfig(**SMALL)), 62),
        (lambda: LongformerForSequenceClassification(LongformerConfig(**SMALL, attention_window=4)), 62),
        (lambda: BartForSequenceClassification(BartConfig(**BART)), 64),
        (lambda: T5ForSequenceClassification(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1)), None),
    ],
    ids=["BERT", "XLM-R", "padding 0", "RoBERTa", "Longformer", "BART", "T5"],
)
def test_largest_length(make, largest):
    """One token more fails in the model itself, which this follows; T5 counts distances only."""
    model = make().eval()
    assert largest_length(model) == largest
    assert largest_length(model, make_tokenizer()) == (largest or make_tokenizer().model_max_length)
    if largest:
        model(torch.full((1, largest), 2))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, largest + 1), 2))


SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SMALL |= {"max_position_embeddings": 64}
BART = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
BART |= {"eos_token_id": 2}


def make_llama(**config) -> LlamaForSequenceClassification:
    settings = SMALL | {"vocab_size": len(VOCABULARY), "num_key_value_heads": 2, "num_labels": 3} | config
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**settings)).eval()


@pytest.mark.parametrize("make", [make_llama, partial(make_xlmr, max_position_embeddings=80)], ids=["decoder", "XLM-R"])
def test_where_tokenizer_and_model_pad_differently_the_batch_size_changes_nothing(make):
    """The tokenizer pads with id 0; Llama finds a row's end, and XLM-R its positions, by the configuration's id."""
    model, rows = make(pad_token_id=VOCABULARY.index("z")).double(), make_rows(9)
    alone = [model(**TOKENIZER(row["text_a"], row["text_b"], return_tensors="pt")).logits[0] for row in rows]
    for size in (1, 4, 9):
        found = logits(model, TOKENIZER, rows, max_length=30, batch_size=size)
        np.testing.assert_allclose(found, torch.stack(alone).detach(), rtol=1e-5)
    traces = [trace_of_rows(model, TOKENIZER, rows, batch_size=size).per_example for size in (1, 9)]
    np.testing.assert_allclose(*traces, rtol=1e-8)


def test_a_tokenizer_that_cannot_pad_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    for call in (
        lambda: batches(tokenizer, make_rows(2), max_length=32, batch_size=2),
        lambda: logits(make_model(), tokenizer, make_rows(2), max_length=32),
    ):
        with pytest.raises(FlatlingoError, match="no padding token"):
            call()


def test_margins_are_the_log_odds_of_the_label(model, rows):
    predicted, margin = margins(model, TOKENIZER, rows, max_length=64, batch_size=8)
    log_p = np.log(one_by_one(model, rows).astype(np.float64))
    expected = [p[row["label"]] - np.delete(p, row["label"]).max() for p, row in zip(log_p, rows, strict=True)]
    np.testing.assert_allclose(margin, expected, atol=1e-5)
    assert margin.dtype == np.float32
    np.testing.assert_array_equal(predicted, log_p.argmax(1))
    assert np.mean(margin > 0) == accuracy(model, TOKENIZER, rows, max_length=64)
    with pytest.raises(FlatlingoError, match="3 classes, 0 to 2"):
        margins(model, TOKENIZER, [row | {"label": 3} for row in rows], max_length=64)


# Classes and labels

LABELS = ["entailment", "neutral", "contradiction"]


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    return model


def of_task(rows) -> Dataset:
    features = Features({"text_a": Value("string"), "text_b": Value("string"), "label": ClassLabel(names=LABELS)})
    return Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)


def permuted(order):
    """The same classifier, its classes in another order."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    return model


@pytest.mark.parametrize(
    "names", [LABELS, [name.upper() for name in LABELS], ["Entailment", "neutral", "contradictory"]]
)
def test_classes_in_another_order_are_matched_by_name_and_told(rows, names):
    order = [2, 0, 1]
    other = named(permuted(order), [names[label] for label in order])
    same, rows = named(make_model(), names), of_task(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = logits(same, TOKENIZER, rows, max_length=64)
    with pytest.warns(UserWarning, match=f"classes .{', '.join(names[i] for i in order)}. are matched with the labels"):
        found = logits(other, TOKENIZER, rows, max_length=64)
    np.testing.assert_array_equal(found, expected)
    measures = {
        "accuracy": lambda model: accuracy(model, TOKENIZER, rows, max_length=64),
        "margins": lambda model: margins(model, TOKENIZER, rows, max_length=64)[1].tolist(),
        "train accuracy": lambda model: memorisation(model, TOKENIZER, rows, max_length=64)["train_accuracy"],
        "empirical Fisher": lambda model: trace_of_rows(model, TOKENIZER, rows, measure=empirical_fisher).value,
    }
    for what, measure in measures.items():
        with pytest.warns(UserWarning, match="matched with the labels"):
            assert measure(other) == pytest.approx(measure(same), rel=1e-6), what
    trace = trace_of_rows(other, TOKENIZER, rows).value  # needs no labels, and says nothing
    assert trace == pytest.approx(trace_of_rows(same, TOKENIZER, rows).value, rel=1e-5)


@pytest.mark.parametrize("names", [["negative", "neutral", "positive"], ["entailment", "not_entailment", "x"]])
def test_classes_that_are_not_the_labels_are_refused(rows, names):
    model, rows = named(make_model(), names), of_task(rows)
    for measure in (accuracy, partial(trace_of_rows, measure=empirical_fisher)):
        with pytest.raises(FlatlingoError, match=rf"classes are {names[0]}, .* labels entailment, .*id2label"):
            measure(model, TOKENIZER, rows, max_length=64)
    assert trace_of_rows(model, TOKENIZER, rows).n == len(rows)


@pytest.mark.filterwarnings("ignore:the model's classes")
@pytest.mark.parametrize("names", [LABELS, LABELS[::-1]], ids=["own order", "another order"])
def test_a_row_without_a_label_is_refused_in_every_order_of_the_classes(rows, names):
    model = named(make_model(), names)
    unlabelled = of_task([*rows, rows[0] | {"label": -1}])
    with pytest.raises(FlatlingoError, match=r"label of (row|example) \d+ is "):
        empirical_fisher(model, batches(TOKENIZER, unlabelled, max_length=64, batch_size=8, model=model))
    with pytest.raises(FlatlingoError, match=r"label of (row|example) \d+ is "):
        trace_of_rows(model, TOKENIZER, unlabelled, measure=empirical_fisher)


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "1", "2"]])
def test_classes_without_names_are_taken_in_their_order(model, rows, names):
    found = logits(named(model, names), TOKENIZER, of_task(rows), max_length=64)
    np.testing.assert_array_equal(found, logits(model, TOKENIZER, rows, max_length=64))


def test_a_model_with_another_number_of_classes_is_refused(rows):
    with pytest.raises(FlatlingoError, match="2 classes and the rows 3 labels"):
        accuracy(make_model(labels=2), TOKENIZER, of_task(rows), max_length=64)


def test_a_model_that_cannot_pad_is_refused():
    model = make_model()
    model.config.pad_token_id = None
    with pytest.raises(FlatlingoError, match="no padding token"):
        trace_of_rows(model, make_tokenizer(), make_rows(2))
