"""Read the architecture of a language model: from transformers' config.json, Meta's params.json, or a GGUF file.

The tables are total over the fields that the model classes of transformers read: each is compared (`LLAMA_FIELDS`), is
read by a function, must have the value that a check expects, or does not change what an existing checkpoint computes
(`LLAMA_IRRELEVANT`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.config import RopeScaling, RopeScalingConfig
from earthgpt_jax.convert.source_config import SCALING_FIELDS, Shapes, SourceConfig, Values, depth, head_size

# Our field below `llm.` -> the field of transformers' config.json.
LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
    "tied_head": "tie_word_embeddings",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}
# What transformers takes for a field that a config.json lacks, for each `model_type` that is a LLaMA.
_DEFAULTS = {
    "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "tie_word_embeddings": False, "attention_bias": False,
    "mlp_bias": False, "hidden_act": "silu", "sliding_window": None, "use_sliding_window": True, "layer_types": (),
}  # fmt: skip
MODEL_TYPES: dict[str, dict[str, Any]] = {
    "llama": _DEFAULTS,
    "mistral": {**_DEFAULTS, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {**_DEFAULTS, "max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False},
}
# Fields that do not change what an existing checkpoint computes, or that the tokenizer's files say.
LLAMA_IRRELEVANT = frozenset({
    "attention_dropout", "initializer_range", "pretraining_tp", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "max_window_layers",
})  # fmt: skip
_QK_NORM = "it normalizes queries and keys"
_EXPERTS = "its MLPs are mixtures of experts"
# Models whose tensors have LLaMA's names, and what they compute differently.
_FOREIGN = {
    "gemma": "its norms multiply by 1 + weight, its embeddings are scaled and its activation is GELU",
    "gemma2": "its norms multiply by 1 + weight, its logits are capped and its attention alternates with a window",
    "gemma3": "its norms multiply by 1 + weight, and it normalizes queries and keys",
    "gemma3_text": "its norms multiply by 1 + weight, and it normalizes queries and keys",
    "granite": "it multiplies embeddings, attention, residuals and logits by constants",
    "phi": "it has LayerNorms and rotates a part of each head only",
    "phi3": "its q, k, v and its gate, up are fused, and its RoPE may be scaled by tables",
    "qwen3": _QK_NORM,
    "olmo": "its norms have no weights",
    "olmo2": f"{_QK_NORM}, and its norms come after attention and MLP",
    "smollm3": "some of its layers have no position embedding",
    "stablelm": "it has LayerNorms and rotates a part of each head only",
    "starcoder2": "it has LayerNorms and an MLP without gate",
    "cohere": "it has LayerNorms, interleaved RoPE, and computes attention and MLP in parallel",
    "minicpm": "it multiplies embeddings, residuals and logits by constants",
    "mixtral": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": f"{_EXPERTS}, and {_QK_NORM}",
    "llama4": f"{_EXPERTS}, and some of its layers have no position embedding",
    "llama4_text": f"{_EXPERTS}, and some of its layers have no position embedding",
}


def llama(where: str, values: Values | None, shapes: Shapes) -> SourceConfig:
    """Return the architecture of a language model from transformers' config.json or Meta's params.json."""
    if values is None:
        return SourceConfig(where=where)
    return _llama_meta(where, values, shapes) if "dim" in values else _llama_hf(where, values)


def _llama_hf(where: str, values: Values) -> SourceConfig:
    model_type = values.get("model_type")
    if model_type not in MODEL_TYPES:
        reason = _FOREIGN.get(str(model_type), "it is not known to compute what LLaMA computes")
        expected = ", ".join(MODEL_TYPES)
        return SourceConfig(
            where=where,
            unsupported=[f"a model of type {model_type!r} cannot be imported: {reason}; expected one of {expected}"],
        )
    values = {**MODEL_TYPES[str(model_type)], **values}
    values = {"num_key_value_heads": values.get("num_attention_heads"), **values}
    missing = [name for name in LLAMA_FIELDS.values() if values.get(name) is None]
    if missing:
        return SourceConfig(where=where, unsupported=[f"expected the fields {', '.join(missing)}; download it again"])
    fields = {ours: values[theirs] for ours, theirs in LLAMA_FIELDS.items()}
    fields["norm_eps"] = float(fields["norm_eps"])
    head_dim = values.get("head_dim") or fields["dim"] // fields["heads"]
    fields["head_size"] = head_size(head_dim, dim=fields["dim"], heads=fields["heads"])
    fields["qkv_bias"] = model_type == "qwen2"
    rope, unsupported = _rope(values)
    unsupported += _unsupported(values)
    return SourceConfig(
        where=where,
        fields={f"llm.{name}": value for name, value in (fields | rope).items()},
        unsupported=unsupported,
    )


def _unsupported(values: Values) -> list[str]:
    """Return what a LLaMA of transformers computes that ours cannot, except for RoPE."""
    reasons = []
    if (activation := values["hidden_act"]) not in ("silu", "swish"):
        reasons.append(f"hidden_act: expected silu, got {activation}, which this model cannot compute")
    window = values["sliding_window"] if values["use_sliding_window"] else None
    if window is not None and window < values["max_position_embeddings"]:
        reasons.append(
            f"sliding_window: expected attention to all earlier tokens, got a window of {window}, which this model "
            "cannot compute"
        )
    if others := sorted(set(values["layer_types"] or ()) - {"full_attention"}):
        reasons.append(f"layer_types: expected full_attention in every layer, got {', '.join(others)}")
    if quantization := values.get("quantization_config"):
        method = quantization.get("quant_method", "unknown")
        reasons.append(
            f"quantization_config: expected weights that are not quantized, got {method}; use the original checkpoint"
        )
    return reasons


def rope_scaling_hf(scaling: RopeScalingConfig) -> dict[str, Any] | None:
    """Return the `rope_scaling` of transformers' config.json for a scaling of ours; None for no scaling."""
    if scaling.kind is RopeScaling.NONE:
        return None
    fields = {theirs: getattr(scaling, ours) for ours, theirs in SCALING_FIELDS[scaling.kind].items()}
    return {name: getattr(value, "value", value) for name, value in fields.items() if value}


def _rope(values: Values) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of RoPE, and what of it is unsupported."""
    rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0)
    fields: dict[str, Any] = {"rope_theta": theta}
    name = rope.get("rope_type") or rope.get("type") or "default"
    kinds = {"default": RopeScaling.NONE, **{kind.value: kind for kind in RopeScaling if kind is not RopeScaling.NONE}}
    if name not in kinds or any(isinstance(value, Mapping) for value in rope.values()):
        got = name if name not in kinds else "one per type of layer"
        return fields, [f"rope_scaling: expected one of {', '.join(kinds)}, got {got}, which is not supported"]
    unsupported = []
    if (partial := rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0) != 1.0:
        unsupported.append(f"partial_rotary_factor: expected 1, got {partial}; this model rotates whole heads")
    kind = kinds[name]
    if kind is RopeScaling.YARN:
        unsupported += [
            f"rope_scaling: {key} of yarn is not supported, got {rope[key]}"
            for key in ("mscale", "mscale_all_dim", "truncate")
            if rope.get(key) not in (None, True)
        ]
    positions = values["max_position_embeddings"]
    original = values.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    given = {
        "rope_type": kind.value, "original_max_position_embeddings": original or positions,
        "factor": rope.get("factor") or positions / (original or positions),
        "low_freq_factor": rope.get("low_freq_factor"), "high_freq_factor": rope.get("high_freq_factor"),
        "beta_fast": rope.get("beta_fast") or 32.0, "beta_slow": rope.get("beta_slow") or 1.0,
        "attention_factor": rope.get("attention_factor") or 0.0,
    }  # fmt: skip
    for ours, theirs in SCALING_FIELDS[kind].items():
        value = given[theirs]
        fields[f"rope_scaling.{ours}"] = float(value) if isinstance(value, int) and "positions" not in ours else value
    if missing := [name for name, value in fields.items() if value is None]:
        return {"rope_theta": theta}, [*unsupported, f"expected the fields {', '.join(missing)}, which {name} needs"]
    return fields, unsupported


# Meta's params.json names no factor; these (dim, layers) are Llama 3.2's, whose factor is 32, and others have 8.
_LLAMA_32 = ((2048, 16), (3072, 28))


def _llama_meta(where: str, values: Values, shapes: Shapes) -> SourceConfig:
    """Return the architecture from the arguments of Meta's or LLaMA2-Accessory's code; sizes are those of tensors."""
    heads = values["n_heads"]
    vocab_size, dim = shapes["tok_embeddings.weight"]
    query_rows, key_rows = (shapes[f"layers.0.attention.w{name}.weight"][0] for name in "qk")
    head_dim = query_rows // heads
    fields: dict[str, Any] = {
        "vocab_size": vocab_size, "dim": dim, "depth": depth(shapes, r"layers\.(\d+)\..*"), "heads": heads,
        "kv_heads": key_rows // head_dim, "head_size": head_size(head_dim, dim=dim, heads=heads),
        "ffn_dim": shapes["layers.0.feed_forward.w1.weight"][0], "norm_eps": float(values.get("norm_eps", 1e-5)),
        "tied_head": "output.weight" not in shapes, "rope_theta": float(values.get("rope_theta", 10000.0)),
        "rope_scaling.kind": RopeScaling.NONE.value,
    }  # fmt: skip
    if values.get("use_scaled_rope"):
        factor = values.get("rope_scaling_factor") or (32.0 if (dim, fields["depth"]) in _LLAMA_32 else 8.0)
        fields |= {
            "rope_scaling.kind": RopeScaling.LLAMA3.value, "rope_scaling.factor": float(factor),
            "rope_scaling.original_positions": 8192, "rope_scaling.low_freq_factor": 1.0,
            "rope_scaling.high_freq_factor": float(values.get("rope_high_freq_factor") or 4.0),
        }  # fmt: skip
    elif values.get("rope_scaling"):  # LLaMA2-Accessory
        fields |= {"rope_scaling.kind": RopeScaling.LINEAR.value, "rope_scaling.factor": float(values["rope_scaling"])}
    return SourceConfig(where=where, fields={f"llm.{name}": value for name, value in fields.items()})


# ------------------------------------------------------------------------------------------------ GGUF
# Our field below `llm.` -> the field below the architecture in the metadata of a GGUF file.
_GGUF_FIELDS = {
    "dim": "embedding_length", "depth": "block_count", "heads": "attention.head_count",
    "ffn_dim": "feed_forward_length", "norm_eps": "attention.layer_norm_rms_epsilon",
    "max_positions": "context_length",
}  # fmt: skip
_GGUF_ARCHITECTURES = ("llama", "qwen2")  # those that compute what LLaMA computes


def llama_gguf(where: str, values: Values | None, shapes: Shapes) -> SourceConfig:
    """Return the architecture of a language model from the metadata of its GGUF file."""
    assert values is not None  # the metadata are in the file
    name = str(values.get("general.architecture"))
    if name not in _GGUF_ARCHITECTURES:
        reason = _FOREIGN.get(name, "it is not known to compute what LLaMA computes")
        expected = ", ".join(_GGUF_ARCHITECTURES)
        return SourceConfig(
            where=where,
            unsupported=[f"a model of architecture {name!r} cannot be imported: {reason}; expected one of {expected}"],
        )
    given = {key.removeprefix(f"{name}."): value for key, value in values.items()}
    fields: dict[str, Any] = {ours: given[theirs] for ours, theirs in _GGUF_FIELDS.items()}
    fields["norm_eps"] = _decimal(fields["norm_eps"])
    fields["kv_heads"] = given.get("attention.head_count_kv", fields["heads"])
    head_dim = given.get("attention.key_length", fields["dim"] // fields["heads"])
    fields |= {
        "vocab_size": shapes["token_embd.weight"][0], "tied_head": "output.weight" not in shapes,
        "head_size": head_size(head_dim, dim=fields["dim"], heads=fields["heads"]),
        "rope_theta": _decimal(given.get("rope.freq_base", 10000.0)),
        "attention_bias": "blk.0.attn_output.bias" in shapes, "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }  # fmt: skip
    fields["qkv_bias"] = "blk.0.attn_q.bias" in shapes and not fields["attention_bias"]
    scaling, unsupported = _gguf_scaling(given, values.get("rope_freqs"), theta=fields["rope_theta"], size=head_dim)
    if given.get("expert_count"):
        unsupported.append(f"expert_count: expected 0, got {given['expert_count']}; {_EXPERTS}")
    if (rotated := given.get("rope.dimension_count", head_dim)) != head_dim:
        unsupported.append(f"rope.dimension_count: expected {head_dim}, got {rotated}; this model rotates whole heads")
    if (window := given.get("attention.sliding_window")) and window < fields["max_positions"]:
        unsupported.append(f"attention.sliding_window: expected attention to all earlier tokens, got {window}")
    return SourceConfig(
        where=where,
        fields={f"llm.{name}": value for name, value in (fields | scaling).items()},
        unsupported=unsupported,
    )


def _gguf_scaling(
    given: Values, factors: Sequence[float] | None, *, theta: float, size: int
) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of RoPE's scaling, and what of it is unsupported."""
    kind = given.get("rope.scaling.type", "none")
    if factors is not None:
        # llama.cpp's converter computes these factors from Llama 3's scaling, which the file does not record.
        factor = max(factors)
        rotations = [8192 * theta ** (-2 * j / size) / (2 * math.pi) for j in range(size // 2)]
        kept = [min(max((count - 1) / 3, 0), 1) for count in rotations]
        expected = [1 / (share + (1 - share) / factor) for share in kept]
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(factors, expected, strict=True)):
            return {}, ["rope_freqs.weight: expected the factors of Llama 3, got others, which are not supported"]
        return {
            "rope_scaling.kind": "llama3", "rope_scaling.factor": _decimal(factor),
            "rope_scaling.original_positions": 8192, "rope_scaling.low_freq_factor": 1.0,
            "rope_scaling.high_freq_factor": 4.0,
        }, []  # fmt: skip
    if kind not in ("none", "linear"):
        return {}, [f"rope.scaling.type: expected none or linear, got {kind}, which is not supported in GGUF files"]
    fields: dict[str, Any] = {"rope_scaling.kind": kind}
    if kind == "linear":
        fields["rope_scaling.factor"] = _decimal(given["rope.scaling.factor"])
    return fields, []


def _decimal(value: float) -> float:
    """Return the shortest decimal number that is `value` in float32: 1e-5 and not 9.999999747378752e-06."""
    return float(np.format_float_scientific(np.float32(value), unique=True))
