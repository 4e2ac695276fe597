import copy
import math
import random

import pytest
import torch
from tiny import make_model, make_rows, make_tokenizer
from torch import nn

from flatlingo.encoding import EncodedRows, PairCollator
from flatlingo.errors import FlatlingoError
from flatlingo.fisher import fisher_trace
from flatlingo.regularizers import (
    AdversarialEmbedding,
    CodeSwitching,
    Dropout,
    EmbeddingNoise,
    HiddenNoise,
    ParameterNoise,
    SampledSegmentation,
    Translation,
    divergences,
)
from flatlingo.segmentation import WordPieceSampler

TOKENIZER = make_tokenizer()
NOISES = {
    "uniform": lambda: EmbeddingNoise(0.1),
    "normal": lambda: EmbeddingNoise(0.1, "normal"),
    "projected": lambda: AdversarialEmbedding(0.1, 0.1, 0.1),
    "normalised": lambda: AdversarialEmbedding(update="normalised"),
    "power": lambda: AdversarialEmbedding(1.0, 0.1, update="power"),
    "parameters": lambda: ParameterNoise(0.05),
    "hidden": lambda: HiddenNoise(1, 0.1),
}
all_noises = pytest.mark.parametrize("make", NOISES.values(), ids=NOISES)


@pytest.fixture
def model():
    return make_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def inputs():
    batch = PairCollator(TOKENIZER)(EncodedRows(make_rows(3), TOKENIZER, max_length=32))
    del batch["labels"]
    return batch


@pytest.fixture
def row(inputs):
    return {column: values[:1, : inputs["attention_mask"][0].sum()] for column, values in inputs.items()}


def started(perturbation, model, seed=5):
    perturbation.start(model, seed=seed)
    return perturbation


def run(perturbation, model, inputs):
    return perturbation(model, inputs, {}, model(**inputs)).logits


def normal(seed: int, *shapes) -> list[torch.Tensor]:
    """What a generator of this seed draws."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.empty(shape, dtype=torch.float64).normal_(generator=generator) for shape in shapes]


def embedded(model, inputs) -> torch.Tensor:
    return model.get_input_embeddings()(inputs["input_ids"])


def at(model, inputs, embeddings) -> torch.Tensor:
    """Logits at given token embeddings, by the model's own way in."""
    rest = {column: values for column, values in inputs.items() if column != "input_ids"}
    return model(inputs_embeds=embeddings, **rest).logits


def interrupt(*_):
    raise KeyboardInterrupt


@all_noises
def test_noise_is_drawn_from_an_own_seeded_generator(model, inputs, make):
    state = torch.get_rng_state()
    first, again, other = (run(started(make(), model, seed), model, inputs) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@all_noises
def test_every_pass_draws_anew_and_goes_on_from_a_kept_state(model, inputs, make):
    perturbation, later = started(make(), model, 1), started(make(), model, 2)
    first = run(perturbation, model, inputs)
    state = perturbation.state_dict()
    second = run(perturbation, model, inputs)
    later.load_state_dict(state)
    assert not torch.allclose(first, second)
    assert torch.equal(run(later, model, inputs), second)


@all_noises
@pytest.mark.parametrize("fails", [False, True], ids=["", "after an exception"])
def test_the_model_is_left_bit_for_bit_as_it_was(model, inputs, make, fails):
    before, names, logits = copy.deepcopy(model.state_dict()), list(dict(model.named_modules())), model(**inputs).logits
    perturbation = started(make(), model)
    if fails:
        outputs, handle = model(**inputs), model.classifier.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            perturbation(model, inputs, {}, outputs)
        handle.remove()
    else:
        run(perturbation, model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(dict(model.named_modules())) == names
    assert all(isinstance(value, nn.Parameter) for value in model.parameters())
    assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_embedding_noise_is_noise_on_fixed_token_embeddings(model, inputs, distribution):
    perturbed = run(started(EmbeddingNoise(0.1, distribution), model), model, inputs)
    e, generator = embedded(model, inputs), torch.Generator().manual_seed(5)
    z = torch.empty_like(e, requires_grad=False)
    z = z.uniform_(-1, 1, generator=generator) if distribution == "uniform" else z.normal_(generator=generator)
    torch.testing.assert_close(perturbed, at(model, inputs, e + 0.1 * z), rtol=1e-10, atol=1e-12)
    perturbed.sum().backward()
    assert model.get_input_embeddings().weight.grad is None
    assert model.classifier.weight.grad.abs().sum() > 0


def slow_delta(model, inputs, update: str, steps: int, radius=0.2, sigma=0.1, step_size=0.5) -> torch.Tensor:
    """The ascent on KL(p ‖ q_δ), row by row and token by token."""
    clean, e = model(**inputs).logits.detach(), embedded(model, inputs).detach()
    (delta,) = normal(5, e.shape)
    unit = float(model.get_input_embeddings().weight.detach().std())
    for i in range(len(delta)):
        delta[i] *= sigma * unit / delta[i].norm() if update == "power" else sigma
    for _ in range(steps):
        delta.requires_grad_()
        (g,) = torch.autograd.grad(divergences.kl(clean, at(model, inputs, e + delta)), delta)
        delta = delta.detach()
        for i in range(len(delta)):
            if update == "power":
                delta[i] = sigma * unit * g[i] / g[i].norm()
            elif update == "projected":
                delta[i] = (delta[i] + step_size * g[i] / g[i].abs().max()).clip(-radius, radius)
            else:
                for t in range(delta.shape[1]):
                    u = delta[i, t] + step_size * g[i, t]
                    delta[i, t] = u / (u.abs().max() + 1e-6)
    return delta * (radius / sigma if update == "power" else 1)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("update", ["projected", "normalised", "power"])
def test_adversarial_steps_follow_their_formula(model, inputs, update, steps):
    perturbation = started(AdversarialEmbedding(0.2, 0.1, 0.5, steps, update), model)
    delta = slow_delta(model, inputs, update, steps)
    perturbed = run(perturbation, model, inputs)
    torch.testing.assert_close(perturbed, at(model, inputs, embedded(model, inputs) + delta), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("update", ["projected", "power"])
def test_adversarial_noise_is_worse_than_random_noise_of_its_size(model, inputs, update):
    outputs, e = model(**inputs), embedded(model, inputs)
    delta = started(AdversarialEmbedding(0.05, 0.01, 0.05, 2, update), model).delta(model, inputs, outputs)
    (random_noise,) = normal(6, delta.shape)
    random_noise *= delta.flatten(1).norm(dim=1)[:, None, None] / random_noise.flatten(1).norm(dim=1)[:, None, None]
    worst, typical = (divergences.kl(outputs.logits, at(model, inputs, e + noise)) for noise in (delta, random_noise))
    assert worst > 3 * typical
    if update == "projected":
        assert delta.abs().max() <= 0.05


def test_parameter_noise_is_a_pass_of_a_noisy_copy(model, inputs):
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)  # frozen weights get no noise
    perturbed = run(started(ParameterNoise(0.05), model), model, inputs)
    noisy, moving = copy.deepcopy(model), [w for w in model.parameters() if w.requires_grad]
    with torch.no_grad():
        trainable = [w for w in noisy.parameters() if w.requires_grad]
        for weights, noise in zip(trainable, normal(5, *(w.shape for w in moving)), strict=True):
            weights.add_(0.05 * noise)
    torch.testing.assert_close(perturbed, noisy(**inputs).logits, rtol=1e-12, atol=1e-14)


def test_gradient_flows_through_clean_and_noisy_weights(model, inputs):
    parameters = [w for w in model.parameters() if w.requires_grad]
    direction = normal(9, *(w.shape for w in parameters))

    def loss():
        return divergences.kl(model(**inputs).logits, run(started(ParameterNoise(0.05), model), model, inputs))

    def loss_at(step: float) -> float:
        with torch.no_grad():
            for weights, d in zip(parameters, direction, strict=True):
                weights.add_(step * d)
            value = float(loss())
            for weights, d in zip(parameters, direction, strict=True):
                weights.sub_(step * d)
        return value

    gradient = torch.autograd.grad(loss(), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    h = 1e-4
    numeric = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h)
    assert slope == pytest.approx(numeric, rel=1e-6)


def test_parameter_noise_consistency_is_half_the_variance_times_the_trace(model, inputs):
    # equation (1): E KL(p_θ ‖ p_{θ+ε}) = ½ σ² Tr(F) + O(σ⁴)
    sigma, perturbation = 1e-3, started(ParameterNoise(1e-3), model)
    with torch.no_grad():
        outputs = model(**inputs)
        draws = torch.stack(
            [divergences.kl(outputs.logits, perturbation(model, inputs, {}, outputs).logits) for _ in range(400)]
        )
    expected = sigma**2 / 2 * fisher_trace(model, [inputs]).value
    error = float(draws.std()) / math.sqrt(len(draws))
    assert error < 0.1 * expected
    assert abs(float(draws.mean()) - expected) < 4 * error


def layer_by_layer(model, row, noise=None, layer: int = 1, rho: float = 0.0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and the outputs of the layers above `layer`, for a row without padding."""
    hidden, above = model.bert.embeddings(row["input_ids"], row["token_type_ids"]), []
    for number, block in enumerate(model.bert.encoder.layer, 1):
        hidden = block(hidden)
        if number > layer:
            above.append(hidden)
        elif number == layer and noise is not None:
            size = rho / math.sqrt(hidden.shape[-1]) * hidden.norm(dim=-1, keepdim=True)
            hidden = hidden + size * noise
    return model.classifier(model.bert.pooler(hidden)), above


@pytest.mark.parametrize("layer", [1, 2])
def test_hidden_noise_goes_through_the_layers_above(layer, row):
    model = make_model(dtype=torch.float64, num_hidden_layers=3)
    perturbed = run(started(HiddenNoise(layer, 0.1), model), model, row)
    (noise,) = normal(5, (*row["input_ids"].shape, 16))
    logits, _ = layer_by_layer(model, row, noise, layer, 0.1)
    torch.testing.assert_close(perturbed, logits, rtol=1e-10, atol=1e-12)


def test_hidden_states_above_the_noise_are_compared(row):
    model = make_model(dtype=torch.float64, num_hidden_layers=3)
    perturbation = started(HiddenNoise(1, 0.1, compare="hidden"), model)
    with perturbation.forward_context():
        outputs = model(**row)
    sides = [perturbation.compared(of, row) for of in (outputs, perturbation(model, row, {}, outputs))]
    (noise,) = normal(5, (*row["input_ids"].shape, 16))
    pairs = zip(layer_by_layer(model, row)[1], layer_by_layer(model, row, noise, 1, 0.1)[1], strict=True)
    slow = sum(float((clean - noisy).square().sum(-1).mean().detach()) for clean, noisy in pairs)
    assert float(divergences.squared_distance(*sides).detach()) == pytest.approx(slow, rel=1e-10)
    assert model.config.output_hidden_states is False


def test_padding_does_not_change_the_compared_hidden_states(model, row, inputs):
    perturbation = started(HiddenNoise(1, 0.1, compare="hidden"), model)
    padded = {column: torch.cat([values, torch.zeros_like(values)], 1) for column, values in row.items()}
    with perturbation.forward_context():
        short, long = (perturbation.compared(model(**columns), columns) for columns in (row, padded))
    assert float(long.square().sum().detach()) == pytest.approx(float(short.square().sum().detach()), rel=1e-10)


def test_dropout_is_a_second_mask_of_the_global_generator(inputs):
    model = make_model(dropout=0.1).train()
    torch.manual_seed(1)
    first, second = model(**inputs).logits, model(**inputs).logits
    torch.manual_seed(1)
    outputs = model(**inputs)
    assert torch.equal(first, outputs.logits)
    assert torch.equal(started(Dropout(), model)(model, inputs, {}, outputs).logits, second)


@pytest.mark.parametrize("mode", ["faithful", "clean"])
def test_sampled_segmentations_are_keyed_by_seed_row_and_epoch(mode):
    text, rng = make_rows(1)[0], random.Random({"faithful": "7/once/0", "clean": "7/3/0"}[mode])
    expected = WordPieceSampler(TOKENIZER, 0.5, mode).encode(text["text_a"], text["text_b"], max_length=32, rng=rng)
    assert SampledSegmentation(TOKENIZER, 0.5, mode).features(text, seed=7, epoch=3, max_length=32) == expected


def test_translations_are_found_by_row_id():
    rows, translated = make_rows(5), make_rows(5, seed=1)
    perturbation = Translation(TOKENIZER, reversed(translated))
    for row, other in zip(rows, translated, strict=True):
        encoded = TOKENIZER([other["text_a"]], [other["text_b"]], truncation=True, max_length=12)
        features = perturbation.features(row, seed=0, epoch=0, max_length=12)
        assert features == {column: values[0] for column, values in encoded.items()}


LEXICON = {"cat": ["Katze", "gato"], "dog": "Hund", "big": ["groß"]}


def test_code_switching_replaces_known_words_at_its_rate():
    perturbation, rng, n = CodeSwitching(TOKENIZER, LEXICON, 0.3), random.Random(1), 3000
    texts = [perturbation.switch("the Cat, a dog's fish", rng) for _ in range(n)]
    assert {text.replace("Katze", "Cat").replace("gato", "Cat").replace("Hund", "dog") for text in texts} == {
        "the Cat, a dog's fish"
    }
    for word, rate in {"Katze": 0.15, "gato": 0.15, "Hund": 0.3}.items():
        assert sum(word in text for text in texts) / n == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / n))


def test_code_switching_is_keyed_by_seed_row_and_epoch():
    perturbation, rows = CodeSwitching(TOKENIZER, LEXICON, 0.5), make_rows(20)

    def views(seed, epoch):
        return [perturbation.features(row, seed=seed, epoch=epoch, max_length=32) for row in rows]

    state = random.getstate()
    assert views(1, 0) == views(1, 0)
    assert views(1, 0) != views(1, 1)
    assert views(1, 0) != views(2, 0)
    assert random.getstate() == state


class NoEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("perturbation", "model", "message"),
    [
        (EmbeddingNoise(), NoEmbeddings(), "token embeddings"),
        (AdversarialEmbedding(), NoEmbeddings(), "token embeddings"),
        (HiddenNoise(), NoEmbeddings(), "encoder layers"),
        (HiddenNoise(3), make_model(), "layer 3.*1 to 2"),
        (HiddenNoise(2, compare="hidden"), make_model(), "layer 2.*1 to 1"),
        (HiddenNoise(0), make_model(), "layer 0"),
        (ParameterNoise(), make_model().requires_grad_(False), "trainable"),
        (Dropout(), make_model(dropout=0.0), "no dropout"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_models_that_cannot_take_a_perturbation_are_refused_at_the_start(perturbation, model, message):
    with pytest.raises(FlatlingoError, match=message):
        perturbation.start(model, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddingNoise(-1e-5), "embedding noise"),
        (lambda: EmbeddingNoise(float("nan")), "embedding noise"),
        (lambda: EmbeddingNoise(distribution="cauchy"), "cauchy"),
        (lambda: AdversarialEmbedding(radius=0), "radius"),
        (lambda: AdversarialEmbedding(sigma=float("inf")), "adversarial noise"),
        (lambda: AdversarialEmbedding(step_size=0), "step size"),
        (lambda: AdversarialEmbedding(steps=0), "at least 1"),
        (lambda: AdversarialEmbedding(update="newton"), "newton"),
        (lambda: ParameterNoise(0), "parameter noise"),
        (lambda: HiddenNoise(rho=0), "hidden noise"),
        (lambda: HiddenNoise(compare="attention"), "attention"),
        (lambda: CodeSwitching(TOKENIZER, {}), "lexicon is empty"),
        (lambda: CodeSwitching(TOKENIZER, {"cat": " "}), "'cat'"),
        (lambda: CodeSwitching(TOKENIZER, {"cat": []}), "'cat'"),
        (lambda: CodeSwitching(TOKENIZER, LEXICON, 1.5), "ratio"),
        (lambda: Translation(TOKENIZER, []), "no translated rows"),
        (lambda: Translation(TOKENIZER, make_rows(2) + make_rows(1)), "share a row_id"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(FlatlingoError, match=message):
        make()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (make_rows(2), "row 2 has no translation"),
        ([{"row_id": 2, "text_a": " ", "text_b": "cat"}], "row 2.*empty text_a"),
    ],
    ids=["missing", "empty"],
)
def test_rows_without_a_translation_are_named(rows, message):
    with pytest.raises(FlatlingoError, match=message):
        Translation(TOKENIZER, rows).features(make_rows(3)[2], seed=0, epoch=0, max_length=32)


def test_noise_needs_a_start(model, inputs):
    with pytest.raises(FlatlingoError, match="start"):
        run(ParameterNoise(), model, inputs)
