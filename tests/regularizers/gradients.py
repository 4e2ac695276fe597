"""Small models of several kinds, and the gradients of what is added to their loss."""

import torch
import transformers
from fisher_oracle import padded_batch, perturbed

LENGTHS = (9, 4, 7, 9)
SMALL = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 16, "hidden_size": 16}
ENCODER = SMALL | {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GPT = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
FAMILIES = {
    "BERT": ("Bert", ENCODER, {}),
    "BERT, two labels": ("Bert", ENCODER | {"num_labels": 2}, {}),
    "BERT, eager": ("Bert", ENCODER | {"attn_implementation": "eager"}, {}),
    "RoBERTa": ("Roberta", ENCODER | {"type_vocab_size": 1, "pad_token_id": 1}, {"token_types": 0, "pad": 1}),
    "ALBERT": ("Albert", ENCODER | {"embedding_size": 8, "num_hidden_layers": 3}, {}),
    "GPT-2": ("GPT2", GPT, {"token_types": 0}),
}


def build(family="BERT", lengths=LENGTHS):
    prefix, config, options = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**config)
    return perturbed(getattr(transformers, f"{prefix}ForSequenceClassification")(config)), padded_batch(
        lengths, **options
    )


def gradient_of(term, model, **options):
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(term, parameters, allow_unused=True, **options)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def term_of(penalty, model, batch, seed=0):
    """The term of the first step."""
    penalty.start(model, seed=seed)
    return next_term(penalty, model, batch)


def next_term(penalty, model, batch):
    with penalty.forward_context():
        outputs = model(**batch)
    return penalty(model, batch, outputs)[0]
