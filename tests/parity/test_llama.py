"""LLaMA against arrays computed by transformers, fp32: hidden states and logits within 1e-4, greedy tokens exact."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import AdapterConfig, DType, LlamaConfig
from earthgpt_jax.models.llama import Llama, empty_cache
from earthgpt_jax.ops.attention import visible

MODELS = ["llama_gqa_bias", "llama_mha_tied"]


def _load(folder) -> tuple[LlamaConfig, Llama]:
    meta = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    config = LlamaConfig(
        vocab_size=meta["vocab_size"],
        dim=meta["hidden_size"],
        depth=meta["num_hidden_layers"],
        heads=meta["num_attention_heads"],
        kv_heads=meta["num_key_value_heads"],
        ffn_dim=meta["intermediate_size"],
        norm_eps=meta["rms_norm_eps"],
        rope_theta=meta["rope_parameters"]["rope_theta"],
        tied_head=meta["tie_word_embeddings"],
        attention_bias=meta["attention_bias"],
        mlp_bias=meta["mlp_bias"],
    )

    def stack(name: str) -> np.ndarray:
        return np.stack([weights[f"model.layers.{i}.{name}"] for i in range(config.depth)])

    out = {"embed": weights["model.embed_tokens.weight"], "norm/scale": weights["model.norm.weight"]}
    if not config.tied_head:
        out["head/kernel"] = weights["lm_head.weight"].T
    out["blocks/attn_norm/scale"] = stack("input_layernorm.weight")
    out["blocks/mlp_norm/scale"] = stack("post_attention_layernorm.weight")
    for theirs, ours, biased in (
        *((f"self_attn.{n}_proj", f"attn/{n}", config.attention_bias) for n in "qkvo"),
        *((f"mlp.{n}_proj", f"mlp/{n}", config.mlp_bias) for n in ("gate", "up", "down")),
    ):
        out[f"blocks/{ours}/kernel"] = stack(f"{theirs}.weight").transpose(0, 2, 1)
        if biased:
            out[f"blocks/{ours}/bias"] = stack(f"{theirs}.bias")
    module = Llama(config, adapter=AdapterConfig(), rngs=nnx.Rngs(0), dtype=DType.FLOAT32)
    graphdef, expected = params_lib.split_module(module)
    params_lib.check_same_shapes(expected, out, where="golden")
    return config, params_lib.merge_module(graphdef, {path: jnp.asarray(value) for path, value in out.items()})


def _plain(model: Llama, ids: np.ndarray) -> jnp.ndarray:
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    mask = visible(jnp.ones_like(positions), jnp.zeros_like(positions))
    return model(model.embed_tokens(jnp.asarray(ids)), positions=positions, mask=mask)[0]


@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_hidden_and_logits_match_transformers(goldens, name):
    config, model = _load(goldens / "hf" / name)
    arrays = np.load(goldens / "hf" / name / "io.npz")
    hidden = _plain(model, arrays["input_ids"])
    last = f"hidden_states/{config.depth}"
    np.testing.assert_allclose(hidden, arrays[last], atol=1e-4, rtol=0)
    np.testing.assert_allclose(model.logits(hidden), arrays["logits"], atol=1e-4, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_cached_greedy_tokens_match_transformers(goldens, name):
    config, model = _load(goldens / "hf" / name)
    arrays = np.load(goldens / "hf" / name / "io.npz")
    prompt, expected = arrays["greedy_prompt"], arrays["greedy_tokens"][0]
    length = prompt.shape[1]
    cache = empty_cache(config, batch=1, slots=len(expected), dtype=DType.FLOAT32)
    slots = jnp.arange(len(expected))
    positions = jnp.arange(length)[None]
    hidden, cache = model(
        model.embed_tokens(jnp.asarray(prompt)),
        positions=positions,
        mask=slots[None, None] <= positions[..., None],
        cache=cache,
    )
    tokens = prompt[0].tolist()
    for step in range(length, len(expected)):
        tokens.append(int(model.logits(hidden[:, -1:]).argmax()))
        position = jnp.asarray([[step]])
        hidden, cache = model(
            model.embed_tokens(jnp.asarray([[tokens[-1]]])),
            positions=position,
            mask=slots[None, None] <= position[..., None],
            cache=cache,
            slot=step,
        )
    assert tokens == expected.tolist()
