"""What is measured equals plain autograd, whatever the model does with its layers, or is refused with the reason."""

import warnings
from types import SimpleNamespace

import pandas as pd
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from architectures import ARCHITECTURES, tiny_model
from fisher_oracle import float64_inside, padded_batch, per_example_trace, perturbed
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import SequenceClassifierOutput as Output

from flatlingo.errors import FlatlingoError
from flatlingo.fisher import fisher_trace
from flatlingo.fisher.gradnorms import CHECK_EVERY

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
CONFIG = SIZES | {"vocab_size": 40, "hidden_size": 16, "num_labels": 3}


def bert(**options):
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**CONFIG | options))


def rows(*lengths, **options):
    return padded_batch(lengths, token_types=0, **options)


def measure(model, batches, *, rtol=1e-10, floor=1e-16):
    """Tr(F) by parameter, held against the loop over examples; the warnings that say what is slower."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fisher_trace(model, batches, by="parameter").contributions
    expected = pd.concat([per_example_trace(model, batch) for batch in batches], ignore_index=True)
    assert expected.to_numpy().sum() > 0
    pd.testing.assert_frame_equal(
        found[expected.columns], expected, rtol=rtol, atol=floor * expected.to_numpy().sum(axis=1).max()
    )
    return [str(w.message) for w in caught if "one at a time" in str(w.message)]


class Classifier(nn.Module):
    """A layer between an embedding and a head that averages over tokens; subclasses use it in some way of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer, self.head = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        perturbed(self)

    def forward(self, input_ids, attention_mask=None):
        return Output(logits=self.head(self.between(self.words(input_ids), input_ids).mean(1)))

    def between(self, x, ids):
        return torch.tanh(self.layer(x))


# Gradients that are required already


def lora(model, targets, **options):
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets, **options))


def gpt2(**options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "num_labels": 3}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes | options))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("make", [
    lambda: lora(gpt2(pad_token_id=0), ["c_attn"], fan_in_fan_out=True),
    lambda: lora(bert(), ["query", "value"]),
    bert,
], ids=["GPT-2 with LoRA", "BERT with LoRA", "BERT"])  # fmt: skip
@pytest.mark.parametrize("required_by", ["gradient_checkpointing_enable", "enable_input_require_grads"])
def test_input_embeddings_that_require_a_gradient(make, required_by):
    model = make()
    getattr(model, required_by)()
    assert measure(perturbed(model), [rows(5, 3, 7, 4, 6, 7)]) == []


def test_embeddings_given_as_inputs_that_require_a_gradient():
    model, batch = perturbed(bert()), rows(5, 3, 4)
    words = model.bert.embeddings.word_embeddings.weight.detach()[batch.pop("input_ids")].requires_grad_()
    given = {"inputs_embeds": words, **batch}
    found = fisher_trace(model, [given], by="parameter").contributions
    oracle = per_example_trace(lambda input_ids, **rest: model(inputs_embeds=input_ids, **rest),
                               {"input_ids": words, **batch}, named=model.named_parameters())  # fmt: skip
    pd.testing.assert_frame_equal(found[oracle.columns], oracle, rtol=1e-10, atol=1e-16 * oracle.to_numpy().sum())
    assert words.grad is None


# Operations in place


class InPlace(Classifier):
    def __init__(self, after):
        super().__init__()
        self.after = after

    def between(self, x, ids):
        return self.after(self.layer(x), x)


def add_to_a_view(y, x):
    y[:, 0].add_(x[:, 1])
    return y


IN_PLACE = {
    "relu_": lambda y, x: F.relu(y, inplace=True),
    "+=": lambda y, x: y.add_(x),
    "mul_ twice": lambda y, x: y.mul_(2).mul_(0.5),
    "through a view": add_to_a_view,
    "of the input's memory": lambda y, x: y.copy_(torch.sin(x)) + y,
}


@pytest.mark.parametrize("after", IN_PLACE.values(), ids=IN_PLACE)
def test_operations_in_place_after_a_layer(after):
    assert measure(InPlace(after), [rows(7, 7, 7)]) == []


def test_an_input_that_is_overwritten_is_refused_as_by_autograd():
    class Overwrites(Classifier):
        def between(self, x, ids):
            y = self.layer(x)
            x += 1
            return y + x

    with pytest.raises(FlatlingoError, match="autograd cannot differentiate the model.*without its underscore"):
        fisher_trace(Overwrites(), [rows(7, 7)])


# Calls that vary from batch to batch


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.bert, self.head = bert().bert, nn.Linear(16, 3)
        perturbed(self)

    def forward(self, input_ids, attention_mask):
        parts = zip(input_ids.split(6, 1), attention_mask.split(6, 1), strict=True)
        pooled = [self.bert(input_ids=i, attention_mask=m).last_hidden_state[:, 0] for i, m in parts]
        return Output(logits=self.head(torch.stack(pooled).mean(0)))


@pytest.mark.parametrize("windows", [(1, 3), (3, 1), (1, 2, 4, 1, 3)], ids=str)
def test_an_encoder_called_a_varying_number_of_times(windows):
    assert measure(Windows(), [rows(*[6 * n] * 3, seed=n) for n in windows]) == []


class LongTextsOtherwise(Classifier):
    """The layer's weight is used directly too, but in long texts only, or only for some ids."""

    def __init__(self, when):
        super().__init__()
        self.when = when

    def between(self, x, ids):
        y = self.layer(x)
        return torch.tanh(y + F.linear(x, self.layer.weight) if self.when(ids) else y)


@pytest.mark.parametrize("order", [(4, 9), (9, 4), (4, 4, 9, 4)], ids=str)
def test_a_parameter_used_directly_in_some_batches(order):
    model = LongTextsOtherwise(lambda ids: ids.shape[1] > 5)
    (warning,) = measure(model, [rows(n, n, n, seed=n) for n in order])
    assert warning.startswith("layer.weight: used in a way that the fast route does not cover; examples are taken one")


def test_a_parameter_used_directly_for_one_example_late_in_a_call():
    class OneOtherwise(Classifier):
        def between(self, x, ids):
            y, its = self.layer(x), (ids[:, 0] == 39)[:, None, None]
            return torch.tanh(y + its * F.linear(x, self.layer.weight) if its.any() else y)

    batches = [rows(4, 4, 4, seed=n) for n in range(6)]
    batches[5]["input_ids"][1, 0] = 39
    assert len(measure(OneOtherwise(), batches)) == 1


# Modules that see other rows than the batch's


class Experts(Classifier):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        perturbed(self)

    def between(self, x, ids):
        chosen = ids[:, 0] % 3
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            its = (chosen == number).nonzero()[:, 0]
            if len(its):
                y = y.index_copy(0, its, torch.tanh(expert(x[its])))
        return x + y


class TokenExperts(Experts):
    def between(self, x, ids):
        y = x.clone()
        for number, expert in enumerate(self.experts):
            y[ids % 3 == number] = torch.tanh(expert(x[ids % 3 == number]))
        return y


class TimeFirst(Classifier):
    def between(self, x, ids):
        return torch.tanh(self.layer(x.transpose(0, 1))).cumsum(0).transpose(0, 1)


class Sorted(Classifier):
    """Rows in the order of their first ids."""

    def between(self, x, ids):
        order = ids[:, 0].argsort(descending=True, stable=True)
        return torch.tanh(self.layer(x[order]))[order.argsort()]


class Flat(Classifier):
    def between(self, x, ids):
        return torch.tanh(self.layer(x.flatten(0, 1))).view_as(x)


class PositionsByToken(Classifier):
    """Positions are looked up once for all, ids (T,)."""

    def __init__(self):
        super().__init__()
        self.positions = perturbed(nn.Embedding(16, 8))

    def between(self, x, ids):
        return torch.tanh(self.layer(x + self.positions(torch.arange(ids.shape[1]))))


ROUTED = {kind.__name__: kind for kind in (Experts, TokenExperts, TimeFirst, Sorted, Flat, PositionsByToken)}
SHAPES = {"24 x 5": [(24, 5)], "4 x 8": [(4, 8)], "2 x 2": [(2, 2)], "3 x 1": [(3, 1)], "square last": [(3, 5), (5, 5)],
          "alone first": [(1, 4), (6, 4)]}  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", ROUTED.values(), ids=ROUTED)
def test_modules_that_see_other_rows(kind, shapes):
    slower = measure(kind(), [rows(*[T] * B, seed=3 + n) for n, (B, T) in enumerate(shapes)])
    assert len(slower) <= 2


def test_language_adapters_in_a_mixed_batch():
    torch.manual_seed(0)
    config = transformers.XmodConfig(**CONFIG, languages=["en", "de"], default_language="en", pad_token_id=1)
    model = perturbed(transformers.XmodForSequenceClassification(config))
    mixed = rows(8, 8, 8, 8, pad=1) | {"lang_ids": torch.tensor([0, 1, 1, 0])}
    (warning,) = measure(model, [mixed])
    assert "adapter_modules" in warning
    assert "in a module that does not see one row per example" in warning
    one = rows(8, 8, 8, 8, pad=1) | {"lang_ids": torch.zeros(4, dtype=torch.long)}
    assert measure(model, [one]) == []


# Layers that are changed from outside


def test_a_hook_that_changes_the_output_of_a_layer():
    model = perturbed(bert())
    for layer in (model.bert.encoder.layer[0].output.dense, model.bert.encoder.layer[1].attention.self.key):
        layer.register_forward_hook(lambda module, args, output: torch.sin(output) * 2)
    assert measure(model, [rows(7, 4, 5)]) == []


def test_a_hook_that_changes_the_input_of_a_layer():
    model = perturbed(bert())
    model.bert.pooler.dense.register_forward_pre_hook(lambda module, args: (torch.sin(args[0]),))
    assert measure(model, [rows(7, 4, 5)]) == []


def test_a_hook_on_a_module_of_the_last_layer():
    """It would see one token, or nothing, if the layer were shortened."""
    model = perturbed(bert())
    model.bert.encoder.layer[-1].attention.register_forward_hook(lambda module, args, output: (output[0] * 2, None))
    assert measure(model, [rows(7, 4, 5)]) == []


def test_a_replaced_forward():
    model = perturbed(bert())
    dense = model.bert.pooler.dense
    dense.forward = lambda x: F.linear(x, dense.weight * 2, dense.bias)
    (warning,) = measure(model, [rows(7, 4, 5)])
    assert warning.startswith("bert.pooler.dense.weight, bert.pooler.dense.bias: used in a way")


def test_a_gradient_hook_on_a_parameter():
    """As where only some rows of an embedding are trained."""
    model = perturbed(bert())
    model.bert.embeddings.word_embeddings.weight.register_hook(lambda g: g * (torch.arange(40) > 8)[:, None])
    (warning,) = measure(model, [rows(7, 4, 5)])
    assert "word_embeddings.weight: changed by a gradient hook" in warning


def test_a_parametrized_layer():
    model = Classifier()
    nn.utils.parametrizations.weight_norm(model.layer).eval()
    assert len(measure(model, [rows(7, 4, 5)])) == 1


class MyRMSNorm(nn.Module):
    """Called a RMSNorm, but something else."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        return self.weight**2 * x / (x.square().sum(-1, keepdim=True) + self.eps).sqrt()


class BareRMSNorm(nn.Module):
    """A norm without a weight, as some backbones have."""

    eps = 1e-6

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def test_a_norm_without_a_weight():
    model = Classifier()
    model.layer = BareRMSNorm()
    assert measure(perturbed(model), [rows(7, 4, 5)]) == []


def test_a_model_that_changes_its_attention_for_short_rows_keeps_it():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BigBirdConfig(vocab_size=30, block_size=2, num_random_blocks=1, num_labels=3, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BigBirdForSequenceClassification(config).eval()
    fisher_trace(model, [rows(32, 6)])
    assert model.bert.attention_type == "block_sparse"


def test_a_configuration_of_ones_own():
    class Own(Classifier):
        config = SimpleNamespace(pad_token_id=0)

        def between(self, x, ids):
            return x + ids.shape[1]

    with pytest.warns(UserWarning, match="the padding of a row changes its logits in Own"):
        fisher_trace(perturbed(Own()), [rows(7, 4)])


def test_small_gradients_of_float16_weights_are_not_lost():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)]
        model = nn.Sequential(*layers[:2], Mean(), layers[2]).eval()
        batch = {"input": torch.randint(0, 20, (4, 6))}
    with torch.no_grad():
        layers[2].weight *= 0.003
    expected = fisher_trace(model.half().float(), [batch], by="parameter").groups
    found = fisher_trace(model.half(), [batch], by="parameter").groups
    assert found == pytest.approx(expected, rel=0.05)


class Mean(nn.Module):
    """Over tokens."""

    def forward(self, x):
        return x.mean(1)


def test_a_norm_that_is_another_than_its_name_says():
    model = Classifier()
    model.layer = MyRMSNorm()
    (warning,) = measure(perturbed(model), [rows(7, 4, 5)])
    assert warning.startswith("layer.weight: used in a way")


# Parts without gradients, and checkpointing


class Frozen(nn.Module):
    """BERT below a head, under no_grad or checkpointed."""

    def __init__(self, how):
        super().__init__()
        self.bert, self.head, self.how = bert().bert, nn.Linear(16, 3), how
        perturbed(self)

    def forward(self, **batch):
        return Output(logits=self.head(self.how(self.bert, batch)[:, 0]))


def under_no_grad(encoder, batch):
    with torch.no_grad():
        return encoder(**batch).last_hidden_state


def checkpointed(reentrant):
    def run(encoder, batch):
        x = encoder.embeddings(batch["input_ids"])
        for layer in encoder.encoder.layer:
            x = checkpoint(layer, x, use_reentrant=reentrant)
        return x

    return run


def test_an_encoder_under_no_grad():
    assert measure(Frozen(under_no_grad), [rows(5, 3, 7)]) == []


def test_checkpointing_in_eval_mode():
    assert measure(Frozen(checkpointed(reentrant=False)), [rows(7, 7, 7)]) == []


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(FlatlingoError, match="pass use_reentrant=False to torch.utils.checkpoint"):
        fisher_trace(Frozen(checkpointed(reentrant=True)), [rows(7, 7, 7)])


PROMPTS = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "P-tuning": peft.PromptEncoderConfig}


@pytest.mark.parametrize("kind", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("size", [1, 4])
def test_prompt_and_prefix_tuning(kind, size):
    options = {"encoder_hidden_size": 8} if kind is peft.PromptEncoderConfig else {}
    model = peft.get_peft_model(bert(), kind(task_type="SEQ_CLS", num_virtual_tokens=4, **options))
    measure(perturbed(model, scale=0.05), [rows(*(5, 3, 7, 4)[:size])])


# Rows of odd kinds


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("place", [0, 5])
def test_a_row_without_any_token(attention, place):
    model, batch = perturbed(bert(attn_implementation=attention)), rows(6, 5, 4, 4, 4, 4)
    batch["attention_mask"][place] = 0
    assert measure(model, [batch]) == []


class Centred(Classifier):
    def forward(self, input_ids, attention_mask=None):
        logits = super().forward(input_ids).logits
        return Output(logits=logits - logits.mean(0, keepdim=True))


class Leaking(Classifier):
    """The last rows of a batch are moved by the first."""

    def between(self, x, ids):
        return x + torch.cat([x[:2], torch.tanh(self.layer(x[:1].expand(len(x[2:]), -1, -1)))])


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_rows_that_depend_on_each_other_are_refused(size):
    with pytest.raises(FlatlingoError, match="an example's logits depend on the others in its batch"):
        fisher_trace(Centred(), [rows(*[6] * size)])


def test_rows_that_depend_on_each_other_in_later_places_are_refused():
    with pytest.raises(FlatlingoError, match="an example's logits depend on the others in its batch"):
        fisher_trace(Leaking(), [rows(*[6] * 24)])


def test_rows_of_an_uncovered_model_that_depend_on_each_other_are_refused():
    class Both(Centred):
        def between(self, x, ids):
            return x @ self.layer.weight + self.layer(x)

    with pytest.raises(FlatlingoError, match="an example's logits depend on the others in its batch"):
        fisher_trace(Both(), [rows(6, 6, 6)])


def test_a_model_without_padding_id_takes_batches_of_one():
    model = perturbed(gpt2())
    assert measure(model, [rows(5), rows(7, seed=1)]) == []
    with pytest.raises(FlatlingoError, match=r"Set model.config.pad_token_id, or give batches of one"):
        fisher_trace(model, [rows(5, 5)])


class NeedsLabels(Classifier):
    def forward(self, labels, **batch):
        return super().forward(**batch)


def made_under_inference_mode():
    with torch.inference_mode():
        return perturbed(bert())


REFUSED = {
    "a number in the batch": (Classifier, {"num_items_in_batch": torch.tensor(2)}, "leave out .'num_items_in_batch'."),
    "inference tensors": (made_under_inference_mode, {}, "made under torch.inference_mode"),
    "labels needed": (NeedsLabels, {"labels": torch.tensor([0, 1])}, "argument: 'labels'.*gold labels are not passed"),
    "a column too many": (Classifier, {"token_type_ids": torch.zeros(2, 5)}, "unexpected keyword argument 'token_type"),
}


@pytest.mark.parametrize(("make", "more", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_in_words(make, more, message):
    with pytest.raises(FlatlingoError, match=message):
        fisher_trace(make(), [rows(5, 3) | more])


def test_batches_made_under_inference_mode():
    with torch.inference_mode():
        batch = rows(5, 3)
    model = Classifier()
    assert fisher_trace(model, [batch]).value == fisher_trace(model, [rows(5, 3)]).value


# Examples are held against autograd all along


def test_rows_that_depend_on_each_other_later_in_a_call_are_found_out():
    class Later(Classifier):
        def between(self, x, ids):
            y = torch.tanh(self.layer(x))
            return y - y.mean(0, keepdim=True) if ids[0, 0] == 39 else y

    first, later = rows(*[4] * 8), rows(*[4] * 8)
    later["input_ids"][:, 0] = 39
    with pytest.raises(FlatlingoError, match=r"two passes over example \d+ give different logits"):
        fisher_trace(Later(), [first] + [later] * (2 * CHECK_EVERY // 8))


def test_formed_gradients_under_autocast_are_not_lost():
    """Autocast keeps casts of weights from passes without gradients; a formed gradient would end there."""
    model = LongTextsOtherwise(lambda ids: True).float()
    exact = fisher_trace(model, [rows(5, 4, 3)], by="parameter")
    with torch.autocast("cpu", torch.bfloat16):
        rough = fisher_trace(model, [rows(5, 4, 3)], by="parameter")
    assert rough.groups == pytest.approx(exact.groups, rel=0.1)


def test_the_model_is_left_as_it_was_after_falling_back():
    model = LongTextsOtherwise(lambda ids: ids.shape[1] > 5)
    model.head.bias.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fisher_trace(model, [rows(4, 4), rows(9, 9)])
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*one at a time")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_parameter_of_architectures_of_transformers(name):
    model, batch = tiny_model(name)
    with float64_inside():
        measure(model, [batch, {key: value[:3] for key, value in batch.items()}], rtol=1e-9, floor=1e-14)
