"""The slow and obvious Tr(F): one backward pass for each example and label, each parameter's gradient formed."""

from contextlib import contextmanager
from unittest.mock import patch

import pandas as pd
import torch


def per_example_trace(model, batch, named=None):
    """∑_c p_c ‖∇ log p_c‖² in float64: examples in rows, parameters in columns."""
    rows = []
    named = named or model.named_parameters()
    names, parameters = zip(*((n, p) for n, p in named if p.requires_grad), strict=True)
    for i in range(len(batch["input_ids"])):
        example = {key: value[i : i + 1] for key, value in batch.items() if key != "labels"}
        log_p = model(**example).logits[0].log_softmax(0)
        row = dict.fromkeys(names, 0.0)
        for log_p_c in log_p:
            gradients = torch.autograd.grad(log_p_c, parameters, retain_graph=True, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    row[name] += log_p_c.detach().exp().item() * gradient.square().sum().item()
        rows.append(row)
    return pd.DataFrame(rows)


def padded_batch(lengths, *, vocabulary=40, pad=0, first=5, token_types=2, seed=0):
    """Random ids of unequal lengths with repeated tokens, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(first, min(first + 8, vocabulary), shape, generator=generator)
    batch = {"input_ids": ids.where(mask == 1, pad), "attention_mask": mask}
    if token_types:
        batch["token_type_ids"] = torch.randint(token_types, shape, generator=generator) * mask
    return batch


def perturbed(model, *, scale=0.2, seed=0):
    """The model in float64 and eval mode with noise on every parameter, so that biases and scales are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


@contextmanager
def float64_inside():
    """Transformers computes norms, rotations and some softmaxes in float32 even in a float64 model; not in here."""
    with (
        patch.object(torch, "float32", torch.float64),
        patch.object(torch, "float", torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield
