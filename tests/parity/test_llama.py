"""LLaMA matches arrays computed by transformers in fp32: hidden states and logits to 1e-4, greedy tokens exactly."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from earthgpt_jax.config import AdapterConfig, DType, LlamaConfig
from earthgpt_jax.convert.tables import llama_hf
from earthgpt_jax.models.llama import CachedAttention, Llama, PackedAttention
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.kv_cache import empty_cache
from tests.support.weights import load_into

MODELS = ["llama_gqa_bias", "llama_mha_tied"]


def _load(folder) -> tuple[LlamaConfig, Llama]:
    meta = json.loads((folder / "config.json").read_text())
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

    module = Llama(config, adapter=AdapterConfig(), rngs=nnx.Rngs(0), dtype=DType.FLOAT32)
    return config, load_into(module, folder, llama_hf(config))


def _plain(model: Llama, ids: np.ndarray) -> jnp.ndarray:
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    mask = make_attention_mask(jnp.ones_like(positions), jnp.zeros_like(positions))
    return model(model.embed_tokens(jnp.asarray(ids)), positions=positions, attention=PackedAttention(mask)).hidden


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
        attention=CachedAttention(cache=cache, mask=slots[None, None] <= positions[..., None]),
    )
    tokens = prompt[0].tolist()
    for step in range(length, len(expected)):
        tokens.append(int(model.logits(hidden[:, -1:]).argmax()))
        position = jnp.asarray([[step]])
        hidden, cache = model(
            model.embed_tokens(jnp.asarray([[tokens[-1]]])),
            positions=position,
            attention=CachedAttention(cache=cache, mask=slots[None, None] <= position[..., None], slot=step),
        )
    assert tokens == expected.tolist()
