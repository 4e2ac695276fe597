"""Tr(F) of checkpoints on rows of text."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SPECIAL, VOCABULARY, make_model, make_rows, make_tokenizer

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import FisherTrace, fisher_trace
from flatlingo.ranking import comparison, trace_of_rows


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


def test_rows_longer_than_the_model_takes_are_refused():
    rows = [{"text_a": "the cat sleeps " * 40}]
    with pytest.raises(FlatlingoError, match="100 tokens and the model 64 positions.*max_length=64"):
        trace_of_rows(make_model(), make_tokenizer(), rows, max_length=100)
    assert trace_of_rows(make_model(), make_tokenizer(), rows, max_length=64).n == 1


def test_a_model_that_cannot_pad_is_refused():
    model = make_model()
    model.config.pad_token_id = None
    with pytest.raises(FlatlingoError, match="no padding token"):
        trace_of_rows(model, make_tokenizer(), make_rows(2))
