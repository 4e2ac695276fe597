from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fisher_oracle import padded_batch, per_example_trace, perturbed
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import FisherTrace, empirical_fisher, fisher_trace, softmax_factor
from flatlingo.fisher.checks import check_float64

LENGTHS = (9, 4, 7, 9, 3)


def tiny_bert(num_labels=3, **config):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = {"vocab_size": 40, "max_position_embeddings": 16, "num_labels": num_labels, **sizes, **config}
    return BertForSequenceClassification(BertConfig(**config))


def seeded_bert():
    torch.manual_seed(0)
    return tiny_bert()


@pytest.fixture(scope="module")
def model():
    return perturbed(seeded_bert())


@pytest.fixture(scope="module")
def batch():
    return padded_batch(LENGTHS)


@pytest.fixture(scope="module")
def oracle(model, batch):
    return per_example_trace(model, batch)


def test_value_error_and_groups_come_from_the_per_example_traces(model, batch, oracle):
    trace = fisher_trace(model, [batch])
    expected = oracle.sum(axis=1).to_numpy()
    np.testing.assert_allclose(trace.per_example, expected, rtol=1e-10)
    assert trace.n == 5
    assert trace.value == pytest.approx(expected.mean(), rel=1e-10)
    assert trace.standard_error == pytest.approx(expected.std(ddof=1) / 5**0.5, rel=1e-10)
    assert list(trace.groups) == ["embeddings", "other embeddings", "encoder", "pooler", "head"]
    assert sum(trace.groups.values()) == pytest.approx(trace.value)
    words = oracle["bert.embeddings.word_embeddings.weight"]
    assert trace.groups["embeddings"] == pytest.approx(words.mean(), rel=1e-10)
    assert trace.group_standard_errors["embeddings"] == pytest.approx(words.sem(), rel=1e-10)


def test_table_and_repr(model, batch):
    trace = fisher_trace(model, [batch])
    table = trace.to_frame()
    assert list(table.columns) == ["value", "standard_error", "share"]
    assert table.loc["all", "value"] == trace.value
    assert table["share"].drop("all").sum() == pytest.approx(1)
    assert repr(trace).startswith(f"FisherTrace({trace.value:.4g} ± {trace.standard_error:.2g}, n=5: embeddings ")


def test_difference_of_two_traces_is_paired(model, batch, oracle):
    whole = fisher_trace(model, [batch])
    head = oracle[[name for name in oracle if name.startswith("classifier")]].sum(axis=1)
    rest = FisherTrace(whole.contributions.drop(columns="head"))
    assert whole.difference(rest) == pytest.approx((head.mean(), head.sem()), rel=1e-10)
    with pytest.raises(FlatlingoError, match="same examples: 5 here, 3 there"):
        whole.difference(fisher_trace(model, [batch], max_examples=3))


def test_batching_does_not_matter(model, batch):
    split = [{k: v[:3] for k, v in batch.items()}, {k: v[3:] for k, v in batch.items()}]
    whole, parts = fisher_trace(model, [batch]), fisher_trace(model, split)
    np.testing.assert_allclose(parts.contributions, whole.contributions, rtol=1e-10)
    unpadded = fisher_trace(model, [{k: v[1:2, :4] for k, v in batch.items()}])
    np.testing.assert_allclose(unpadded.contributions, whole.contributions[1:2], rtol=1e-10)


def test_labels_in_the_batch_are_ignored(model, batch):
    labelled = {"labels": torch.zeros(5, dtype=torch.long), **batch}
    assert fisher_trace(model, [labelled]).value == fisher_trace(model, [batch]).value


def test_a_batch_without_padding_needs_no_attention_mask(model):
    batch = padded_batch((6, 6))
    bare = {"input_ids": batch["input_ids"], "token_type_ids": batch["token_type_ids"]}
    assert fisher_trace(model, [bare]).value == pytest.approx(fisher_trace(model, [batch]).value, rel=1e-10)


def test_the_example_with_bad_logits_is_counted_over_all_batches():
    batch = padded_batch((4, 4))
    bad = {**batch, "input_ids": batch["input_ids"].clone()}
    bad["input_ids"][1, 2] = 30
    with pytest.raises(FlatlingoError, match="logits of example 3 are not finite"):
        fisher_trace(with_nan(perturbed(tiny_bert())), [batch, bad])


@pytest.mark.parametrize("C", [2, 3, 7])
@pytest.mark.parametrize("scale", [1, 12, 60])
def test_softmax_factor_is_exact_for_saturated_logits(C, scale):
    logits = scale * torch.randn(20, C, generator=torch.Generator().manual_seed(C), dtype=torch.float64)
    weights, directions = softmax_factor(logits)
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    # Σ u u with u = e_c, whose entry p (1 - p) is given without cancellation by log(1 - p) = log ∑ of the others
    others = torch.stack([torch.cat([log_p[:, :c], log_p[:, c + 1 :]], 1).logsumexp(1) for c in range(C)], 1)
    diagonal = torch.einsum("bk,bkc->bc", weights, directions.square())
    torch.testing.assert_close(diagonal, (log_p + others).exp(), rtol=1e-12, atol=0)
    covariance = torch.einsum("bk,bkc,bkd->bcd", weights, directions, directions)
    torch.testing.assert_close(covariance, torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
    norms = directions.norm(dim=2)
    assert ((norms >= 1) & (norms <= 2**0.5 + 1e-12)).all()


GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "num_labels": 3}
FNET = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "num_labels": 3}
PADDED = {
    "another padding token": (
        GPT2ForSequenceClassification, GPT2Config(**GPT, pad_token_id=4),
        pytest.raises(FlatlingoError, match="padded with token 0, and the model takes 4"),
    ),
    "no mask in the model": (
        FNetForSequenceClassification, FNetConfig(**FNET, pad_token_id=0),
        pytest.warns(UserWarning, match="padding of a row changes its logits in FNetForSequenceClassification"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "told"), PADDED.values(), ids=PADDED)
def test_it_is_told_where_rows_depend_on_their_padding(kind, config, told):
    torch.manual_seed(0)
    model = kind(config).double().eval()
    batch = {name: values for name, values in padded_batch((7, 7, 4)).items() if name != "token_type_ids"}
    if kind is FNetForSequenceClassification:
        model.forward = partial(_without_mask, model.forward)
    even = {name: values[:2] for name, values in batch.items()}
    assert fisher_trace(model, [even]).n == 2, "without padding there is nothing to depend on"
    with told:
        fisher_trace(model, [even, batch])


def _without_mask(forward, attention_mask=None, **inputs):
    return forward(**inputs)


def test_sampled_labels_are_unbiased_and_seeded(model, batch):
    exact = fisher_trace(model, [batch]).value
    state = torch.get_rng_state()
    draws = [fisher_trace(model, [batch], labels="sampled", seed=seed).value for seed in range(60)]
    assert torch.equal(torch.get_rng_state(), state)
    assert draws[7] == fisher_trace(model, [batch], labels="sampled", seed=7).value
    assert np.mean(draws) == pytest.approx(exact, abs=3 * np.std(draws) / 60**0.5)
    assert np.std(draws) > 0


def test_sampled_labels_do_not_depend_on_batching(model, batch):
    split = [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}]
    whole, parts = (fisher_trace(model, b, labels="sampled", seed=1) for b in ([batch], split))
    np.testing.assert_allclose(parts.per_example, whole.per_example, rtol=1e-10)


def test_empirical_fisher_uses_gold_labels(model, batch):
    gold = torch.tensor([0, 2, 1, 1, 0])
    measured = empirical_fisher(model, [{**batch, "labels": gold}]).per_example
    for i, label in enumerate(gold):
        log_p = model(**{k: v[i : i + 1] for k, v in batch.items()}).logits[0].log_softmax(0)
        gradients = torch.autograd.grad(log_p[label], list(model.parameters()))
        assert measured[i] == pytest.approx(sum(g.square().sum().item() for g in gradients), rel=1e-10)
    with pytest.raises(FlatlingoError, match="needs gold labels"):
        empirical_fisher(model, [batch])
    with pytest.raises(FlatlingoError, match="label of example 3 is not one of the model's 3"):
        empirical_fisher(model, [{**batch, "labels": torch.tensor([0, 1, 2, 3, 0])}])


def test_float32_agrees_with_float64(batch, oracle):
    model = perturbed(tiny_bert()).float()
    reference = per_example_trace(model.double(), batch).sum(axis=1)
    trace = fisher_trace(model.float(), [batch])
    np.testing.assert_allclose(trace.per_example, reference, rtol=1e-4)
    assert trace.per_example.dtype == np.float64


def test_stops_at_max_examples_and_at_tolerance(model, batch):
    assert fisher_trace(model, [batch, batch, batch], max_examples=7).n == 7
    many = [batch] * 100
    assert fisher_trace(model, many, tolerance=1.0).n == 100  # the least there is
    assert fisher_trace(model, many, tolerance=1e-9).n == 500


def test_frozen_parameters_do_not_count(batch, oracle):
    model = perturbed(tiny_bert())
    whole = fisher_trace(model, [batch])
    model.bert.requires_grad_(False)
    head = fisher_trace(model, [batch])
    assert head.groups == pytest.approx({"head": whole.groups["head"]}, rel=1e-10)
    assert not any(p.requires_grad for p in model.bert.parameters())
    assert all(p.requires_grad for p in model.classifier.parameters())
    model.requires_grad_(False)
    with pytest.raises(FlatlingoError, match="no parameter of the model requires a gradient"):
        fisher_trace(model, [batch])


def random_dropout(module, args, output):
    return torch.nn.functional.dropout(output, 0.5, training=True)


def less_the_batch_mean(module, args, output):
    return output - output.mean(0)


def test_refuses_train_mode_randomness_and_examples_that_see_each_other(batch):
    model = perturbed(tiny_bert())
    with pytest.raises(FlatlingoError, match="call model.eval"):
        fisher_trace(model.train(), [batch])
    with torch.inference_mode(), pytest.raises(FlatlingoError, match="outside torch.inference_mode"):
        fisher_trace(model.eval(), [batch])
    for hook in (random_dropout, less_the_batch_mean):
        handle = model.eval().bert.pooler.register_forward_hook(hook)
        with pytest.raises(FlatlingoError, match="two passes over the first examples"):
            fisher_trace(model, [batch])
        handle.remove()
    assert fisher_trace(model, [batch]).value > 0


def with_nan(model):
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[30] = float("nan")
    return model


def with_inf(model):
    with torch.no_grad():
        model.classifier.bias[1] = float("inf")
    return model


def quantised(model):
    weight = model.classifier.weight
    model.classifier.weight = torch.nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    return model


def quantised_by_torch(model):
    """Its quantised layers have no parameters left, so nothing of them would be counted."""
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


BATCH = padded_batch(LENGTHS)
BAD_BATCHES = {
    "none": ([], "no batches"),
    "not a dict": ([[1, 2]], "batch 0 is not a dict of tensors"),
    "no rows": ([{"input_ids": torch.ones(0, 3, dtype=torch.long)}], "one row per example"),
    "unequal": ([{**BATCH, "token_type_ids": BATCH["token_type_ids"][:2]}], "one row per example"),
    "no mask": ([{"input_ids": BATCH["input_ids"]}], "padding but no attention_mask"),
    "too long": ([padded_batch((20,))], "rows of 20 tokens and the model 16 positions"),
    "unknown token": ([{**BATCH, "input_ids": BATCH["input_ids"] + 37}], "the model knows 40, from 0 on"),
}


@pytest.mark.parametrize(("batches", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_batches(model, batches, message):
    with pytest.raises(FlatlingoError, match=message):
        fisher_trace(model, batches)


BAD_MODELS = {
    "one label": (lambda: tiny_bert(1), "single output"),
    "multi-label": (lambda: tiny_bert(problem_type="multi_label_classification"), "multi_label"),
    "regression": (lambda: tiny_bert(problem_type="regression"), "regression"),
    "meta": (lambda: tiny_bert().to("meta"), "meta device"),
    "quantised": (lambda: quantised(tiny_bert()), "quantised"),
    "quantised by torch": (lambda: quantised_by_torch(tiny_bert()), "quantised"),
    "inf": (lambda: with_inf(tiny_bert()), "logits of example 0 are not finite"),
    "nan": (lambda: with_nan(tiny_bert()), "logits of example 1 are not finite"),
    "no classifier": (lambda: tiny_bert().bert, "not a classifier"),
}


@pytest.mark.parametrize(("make", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_bad_models(make, message):
    batch = padded_batch((4, 4))
    batch["input_ids"][1, 2] = 30
    with pytest.raises(FlatlingoError, match=message):
        fisher_trace(make().eval(), [batch])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"labels": "gold"}, "empirical_fisher"), ({"by": "layer"}, "by='layer'"), ({"parameters": ["x"]}, "not among"),
     ({"parameters": lambda name: False}, "selects none"), ({"max_examples": 0}, "max_examples=0")],
    ids=["labels", "by", "unknown parameter", "no parameter", "no example"],
)  # fmt: skip
def test_bad_options(model, batch, options, message):
    with pytest.raises(FlatlingoError, match=message):
        fisher_trace(model, [batch], **options)


def test_groups_can_be_chosen(model, batch, oracle):
    trace = fisher_trace(model, [batch], by="parameter")
    zero = [name for name in oracle if name.endswith("key.bias")]  # softmax does not see them: rounding only
    pd.testing.assert_frame_equal(trace.contributions.drop(columns=zero), oracle.drop(columns=zero), rtol=1e-10)
    layers = fisher_trace(model, [batch], by=lambda name: "layer 0" if "layer.0." in name else "rest")
    expected = oracle[[name for name in oracle if "layer.0." in name]].sum(axis=1).mean()
    assert layers.groups["layer 0"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_tf32_is_off_inside_and_as_before_afterwards(model, batch, before):
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul)
    settings = lambda: [torch.get_float32_matmul_precision(), *(kind.fp32_precision for kind in kinds)]  # noqa: E731
    original, seen = torch.get_float32_matmul_precision(), []
    handle = model.bert.pooler.register_forward_pre_hook(lambda module, args: seen.append(settings()))
    try:
        torch.set_float32_matmul_precision(before)
        expected = settings()
        fisher_trace(model, [batch])
        assert settings() == expected
        with pytest.raises(FlatlingoError):
            fisher_trace(model, [batch, {"input_ids": batch["input_ids"]}])
        assert settings() == expected
    finally:
        handle.remove()
        torch.set_float32_matmul_precision(original)
    assert seen
    assert all(setting == ["highest", "ieee", "ieee", "ieee"] for setting in seen)


def test_tf32_of_the_newer_settings_is_off_inside_too(model, batch):
    matmul, seen = torch.backends.cuda.matmul, []
    handle = model.bert.pooler.register_forward_pre_hook(lambda *_: seen.append(matmul.fp32_precision))
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            torch.get_float32_matmul_precision()
        fisher_trace(model, [batch])
        assert matmul.fp32_precision == "tf32"
    finally:
        handle.remove()
        matmul.fp32_precision = before
    assert set(seen) == {"ieee"}


def test_a_model_on_two_devices_is_refused(batch):
    with FakeTensorMode():
        weights = torch.nn.ParameterList(torch.empty(2, device=f"cuda:{number}") for number in range(2))
        with pytest.raises(FlatlingoError, match="spread over cuda:0, cuda:1: load it whole"):
            fisher_trace(weights.eval(), [batch])


def test_running_out_of_memory_is_told_as_it_is(model, batch):
    tries = []

    def run_out(*_):
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.classifier.register_forward_pre_hook(run_out)
    with handle, pytest.raises(torch.OutOfMemoryError):
        fisher_trace(model, [batch])
    assert len(tries) == 1


def test_mean_of_logarithms_and_its_standard_error():
    values = np.array([1.0, 10.0, 100.0])
    trace = FisherTrace(pd.DataFrame({"encoder": values / 4, "head": values * 3 / 4}))
    assert trace.log_mean == pytest.approx(np.log(10))
    assert trace.log_standard_error == pytest.approx(np.log(10) / 3**0.5)
    assert FisherTrace(pd.DataFrame({"head": [0.0, 1.0]})).log_mean == -np.inf


def test_a_device_without_float64_is_refused():
    check_float64(torch.device("cuda", 0))
    with pytest.raises(FlatlingoError, match=r"no float64, which Tr\(F\) needs: use the CPU"):
        check_float64(torch.device("mps"))
