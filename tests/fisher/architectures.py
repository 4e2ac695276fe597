"""Tiny models of the classes that transformers has for sequence classification, for Tr(F) by parameter.

`python tests/fisher/architectures.py` tries them all, several minutes, and counts what is right, refused and wrong.
"""

import collections
import sys
import warnings

import torch
import transformers
from fisher_oracle import float64_inside, padded_batch, per_example_trace, perturbed
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

LENGTHS = (9, 4, 7, 9, 3)
ARCHITECTURES = (  # of the suite: one of each way to use parameters
    "bart", "bloom", "canine", "convbert", "ctrl", "deberta", "doge", "falcon", "fnet", "funnel", "gpt_neo", "gptj",
    "ibert", "jamba", "layoutlmv3", "longformer", "luke", "mixtral", "mobilebert", "mpnet", "mt5", "nemotron", "opt",
    "phi", "rembert", "roberta-prelayernorm", "squeezebert", "xlnet", "xmod",
)  # fmt: skip
SMALL = {
    8: ("embedding_size", "head_dim", "d_kv", "d_head", "moe_intermediate_size", "bottleneck_size", "sliding_window"),
    16: ("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embed_dim", "word_embed_proj_dim", "d_embed"),
    24: ("intermediate_size", "hidden_dim", "d_ff", "d_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    64: ("vocab_size", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    4: ("num_experts", "num_local_experts", "n_routed_experts", "state_size", "conv_kernel", "rotary_dim"),
    2: ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers", "eos_token_id",
        "num_decoder_layers", "num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads",
        "decoder_attention_heads", "num_experts_per_tok", "type_vocab_size"),
    1: ("num_key_value_heads", "n_group", "topk_group", "n_shared_experts", "bos_token_id"),
    0: ("pad_token_id",),
}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
T5 = {"decoder_start_token_id": 0}
OF_ITS_OWN = {
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "canine": {"num_hash_buckets": 16, "num_hash_functions": 2, "local_transformer_stride": 8, "downsampling_rate": 2,
               "upsampling_kernel_size": 2},
    "convbert": {"embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3},
    "ctrl": {"dff": 24},
    "deberta": RELATIVE | {"max_relative_positions": 8},
    "deberta-v2": RELATIVE | {"position_buckets": 4, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "diffllama": {"num_key_value_heads": 2},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False,
              "mamba_d_state": 4, "mamba_dt_rank": 4},
    "layoutlmv3": {"coordinate_size": 2, "shape_size": 4, "visual_embed": False, "input_size": 32,
                   "max_2d_position_embeddings": 64},
    "led": {"attention_window": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "lilt": {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 64, "hidden_size": 24},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "mobilebert": {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16, "hidden_size": 16},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
    "mt5": T5,
    "nystromformer": {"segment_means_seq_len": 64, "num_landmarks": 64},
    "rembert": {"input_embedding_size": 8, "output_embedding_size": 8},
    "roc_bert": {"pronunciation_vocab_size": 16, "shape_vocab_size": 16, "pronunciation_embed_dim": 8,
                 "shape_embed_dim": 8},
    "squeezebert": {"embedding_size": 16} | {f"{part}_groups": 1 for part in (
        "q", "k", "v", "post_attention", "intermediate", "output")},
    "t5": T5,
    "umt5": T5,
    "xmod": {"languages": ["en", "de"], "default_language": "en"},
}  # fmt: skip
LEFT_OUT = {"falcon": {"head_dim"}, "funnel": {"num_hidden_layers", "num_layers"}, "xlnet": {"max_position_embeddings"}}


def tiny_model(kind):
    """A model in float64 with noise on every parameter, and a batch of five texts of unequal lengths."""
    cls, config_class = getattr(transformers, CLASSES[kind]), transformers.CONFIG_MAPPING[kind]
    default = config_class()
    small = {name: value for value, names in SMALL.items() for name in names if hasattr(default, name)}
    options = small | OF_ITS_OWN.get(kind, {}) | {"num_labels": 3}
    if "layer_types" in vars(default):
        options["layer_types"] = None
    config = config_class(**{name: value for name, value in options.items() if name not in LEFT_OUT.get(kind, ())})
    with torch.device("meta"):
        if (size := sum(parameter.numel() for parameter in cls(config).parameters())) > 3e6:
            raise ValueError(f"{size} parameters")
    torch.manual_seed(0)
    try:
        model = cls._from_config(config, experts_implementation="eager")  # the other ones know no float64
    except (TypeError, ValueError):
        model = cls(config)
    batch = padded_batch(LENGTHS, pad=config.pad_token_id or 0, token_types=0)
    if config.is_encoder_decoder:  # the head reads the last end of sentence
        batch["input_ids"][range(len(LENGTHS)), batch["attention_mask"].sum(1) - 1] = config.eos_token_id
    return perturbed(model, scale=0.1), batch


def verdict(kind):
    """What becomes of Tr(F) of the whole batch and of a part of it, and why."""
    from flatlingo.errors import FlatlingoError
    from flatlingo.fisher import fisher_trace

    try:
        model, batch = tiny_model(kind)
        with float64_inside():
            expected = per_example_trace(model, batch)
    except Exception as error:
        return "not built", repr(error)[:100]
    with warnings.catch_warnings(record=True) as caught, float64_inside():
        warnings.simplefilter("always")
        try:
            trace = fisher_trace(model, [batch, {key: value[:3] for key, value in batch.items()}], by="parameter")
        except FlatlingoError as error:
            return "refused", str(error)
    slower = next((str(w.message) for w in caught if "one at a time" in str(w.message)), "")
    found, expected = trace.contributions[expected.columns].to_numpy(), expected.to_numpy()[[0, 1, 2, 3, 4, 0, 1, 2]]
    wrong = (abs(found - expected) > 1e-9 * expected + 1e-14 * expected.sum()).any()
    return ("WRONG" if wrong else "right, one at a time" if slower else "right"), slower


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    counts = collections.Counter()
    for kind in sys.argv[1:] or CLASSES:
        result, why = verdict(kind)
        counts[result] += 1
        print(f"{kind:24} {result:20} {why[:150]}", flush=True)
    print(dict(counts))
