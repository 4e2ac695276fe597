import mpmath
import numpy as np
import pytest
import torch
from fisher_oracle import padded_batch, perturbed
from transformers import BertConfig, BertForSequenceClassification

from flatlingo.fisher import fisher_trace
from flatlingo.fisher.dense import dense_fisher
from flatlingo.fisher.theory import (
    correlated,
    functional,
    gaussian,
    kl,
    mlp,
    noise_kl,
    quadratic_form,
    scaled_noise_kl,
    softmax_regression,
)

INPUTS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tiny_bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **sizes)
    model = perturbed(BertForSequenceClassification(config))
    batch = padded_batch((6, 3, 5), vocabulary=20)
    return model, batch


MODELS = {
    "softmax regression": lambda: softmax_regression(INPUTS, 3, seed=0),
    "MLP": lambda: mlp(INPUTS, 6, 3, seed=0),
    "BERT": lambda: functional(*tiny_bert()),
}


@pytest.fixture(params=MODELS)
def logits_and_theta(request):
    return MODELS[request.param]()


def unit_noise(theta, seed=0):
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise / noise.norm()


def test_dense_fisher_is_the_mean_outer_product_of_scores(logits_and_theta):
    logits, theta = logits_and_theta
    log_p = lambda theta: logits(theta).log_softmax(1)  # noqa: E731
    scores, p = torch.func.jacrev(log_p)(theta), log_p(theta).exp()
    expected = torch.einsum("nk,nka,nkb->ab", p, scores, scores) / len(p)
    torch.testing.assert_close(dense_fisher(logits, theta), expected, rtol=1e-10, atol=1e-13)


def test_trace_engine_gives_the_trace_of_the_dense_matrix():
    model, batch = tiny_bert()
    assert fisher_trace(model, [batch]).value == pytest.approx(dense_fisher(*functional(model, batch)).trace().item())


def test_quadratic_form_agrees_with_the_dense_matrix(logits_and_theta):
    logits, theta = logits_and_theta
    noise = unit_noise(theta)
    expected = 0.5 * noise @ dense_fisher(logits, theta) @ noise
    torch.testing.assert_close(quadratic_form(logits, theta, noise), expected, rtol=1e-10, atol=0)


def test_kl_approaches_its_quadratic_form_with_slope_one(logits_and_theta):
    """|KL / ½εᵀFε - 1| falls like ‖ε‖ from 1e-1 to 1e-6."""
    logits, theta = logits_and_theta
    sizes = 10.0 ** -np.arange(1, 7)
    noise = unit_noise(theta)
    remainder = [
        (kl(logits(theta), logits(theta + s * noise)) / quadratic_form(logits, theta, s * noise) - 1).abs().item()
        for s in sizes
    ]
    slopes = np.diff(np.log10(remainder)) / np.diff(np.log10(sizes))
    np.testing.assert_allclose(slopes[1:], 1, atol=0.1)


@pytest.mark.parametrize("scale", [1e-11, 1e-6, 1e-2, 1, 30])
def test_kl_keeps_its_digits(scale):
    """Two classes with logits ±z: against 60 digits, from KL 1e-23 to saturation."""
    mpmath.mp.dps = 60
    z, step = 0.5, scale
    p, q = (torch.tensor([[a, 0.0]], dtype=torch.float64) for a in (z, z + step))
    a, b = mpmath.mpf(p[0, 0].item()), mpmath.mpf(q[0, 0].item())
    sigmoid = lambda x: 1 / (1 + mpmath.exp(-x))  # noqa: E731
    pa, pb = sigmoid(a), sigmoid(b)
    exact = pa * mpmath.log(pa / pb) + (1 - pa) * mpmath.log((1 - pa) / (1 - pb))
    assert kl(p, q).item() == pytest.approx(float(exact), rel=1e-9)


def test_kl_of_far_and_equal_distributions():
    p = torch.tensor([[0.0, 0.0]])
    assert kl(p, p) == 0
    assert kl(p, torch.tensor([[800.0, 0.0]])).item() == pytest.approx(400 - np.log(2))


def test_kl_of_distributions_that_share_nothing_is_finite():
    apart = torch.tensor([[800.0, 0.0]]), torch.tensor([[0.0, 800.0]])
    assert float(kl(*apart)) == pytest.approx(800)
    assert float(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[30.0, 0.0]]))) == pytest.approx(15 - np.log(2), rel=1e-9)


def test_mean_kl_over_small_noise_is_half_the_variance_times_the_trace(logits_and_theta):
    logits, theta = logits_and_theta
    C = 1e-6
    estimate = noise_kl(logits, theta, gaussian(theta, C), pairs=300, seed=1)
    expected = 0.5 * C * dense_fisher(logits, theta).trace().item()
    assert estimate.value == pytest.approx(expected, abs=3.5 * estimate.standard_error)
    assert estimate.standard_error < 0.1 * expected


def test_scaled_noise_is_that_of_the_scaled_variance():
    logits, theta = MODELS["MLP"]()
    found = scaled_noise_kl(logits, theta, gaussian(theta, 1.0), (1e-3, 0.5), pairs=5, seed=1)
    for scale, one in zip((1e-3, 0.5), found, strict=True):
        alone = noise_kl(logits, theta, gaussian(theta, scale**2), pairs=5, seed=1)
        assert one == pytest.approx(alone, rel=1e-10)


def test_correlated_noise_replaces_the_trace():
    logits, theta = MODELS["MLP"]()
    factor = 1e-3 * torch.randn(len(theta), 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = 0.5 * (dense_fisher(logits, theta) @ factor @ factor.T).trace().item()
    estimate = noise_kl(logits, theta, correlated(factor), pairs=400, seed=0)
    assert estimate.value == pytest.approx(expected, abs=3.5 * estimate.standard_error)


def test_noise_leaves_the_global_generator_alone():
    logits, theta = MODELS["MLP"]()
    state = torch.get_rng_state()
    first, second = (noise_kl(logits, theta, gaussian(theta, 1.0), pairs=3, seed=5) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_tensors_follow_the_device_of_the_model():
    """The meta device stands for a GPU: it refuses to be mixed with the CPU as well."""
    logits, theta = functional(torch.nn.Linear(INPUTS.shape[1], 3).to("meta"), {"input": INPUTS})
    for draw in (gaussian(theta, 1.0), correlated(theta[:, None])):
        noise = draw(torch.Generator().manual_seed(0))
        assert logits(theta + noise).device == quadratic_form(logits, theta, noise).device == theta.device


def test_everything_follows_the_device_of_theta_and_of_the_inputs():
    """On the meta device, whose tensors refuse to meet others."""
    inputs = INPUTS.to("meta")
    for logits, theta in (softmax_regression(inputs, 3, seed=0), mlp(inputs, 6, 3, seed=0)):
        assert theta.device.type == logits(theta).device.type == "meta"
    logits, theta = functional(torch.nn.Linear(4, 3).to("meta"), {"input": INPUTS})  # on the CPU
    assert logits(theta).device.type == "meta"
