"""transformers' own modules with random weights, saved by them, read by our converter, compared in fp32.

DINOv2: every hidden state within 1e-5 (through the final norm, as taps are); LLaMA: logits within 1e-4.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from earthgpt_jax.config import AdapterConfig, DType, LlamaConfig, Mlp, PositionRule, ViTConfig
from earthgpt_jax.convert import exporter
from earthgpt_jax.convert.tables import dinov2_hf, llama_hf
from earthgpt_jax.models.llama import Llama, PackedAttention
from earthgpt_jax.models.vit import ViT
from earthgpt_jax.ops.attention import make_attention_mask
from tests.support.weights import load_into

pytestmark = pytest.mark.torch
DINO = {
    "small": {"dim": 48, "depth": 3, "heads": 3, "ffn_dim": 192, "size": 224},
    "small, another size": {"dim": 48, "depth": 2, "heads": 3, "ffn_dim": 192, "size": 70},
    "large, cut in depth": {"dim": 1024, "depth": 2, "heads": 16, "ffn_dim": 4096, "size": 112},
    "giant's SwiGLU": {"dim": 48, "depth": 2, "heads": 3, "ffn_dim": 128, "size": 224, "mlp": Mlp.SWIGLU},
}
LLAMA = {
    "multi-head": {"kv_heads": 4},
    "grouped queries, biases": {"kv_heads": 2, "attention_bias": True, "mlp_bias": True},
    "tied head": {"kv_heads": 4, "tied_head": True},
    "long positions": {"kv_heads": 2, "rope_theta": 50000.0, "first": 6000},
}


def _shake(module) -> None:
    """Move every parameter away from its initial value: zeros and ones would hide a tensor in the wrong place.

    By the deviation both models start with: more gains a layer of width 1,024 an amplification that no trained
    model has, and float32 rounding grows with it.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value += 0.02 * torch.randn(value.shape, generator=generator)


@pytest.mark.parametrize("name", DINO)
def test_every_hidden_state_of_dinov2_matches(tmp_path, name):
    import torch
    from transformers import Dinov2Config, Dinov2Model

    case = dict(DINO[name])
    size, mlp = case.pop("size"), case.pop("mlp", Mlp.GELU)
    ratio = 4 if mlp is Mlp.SWIGLU else case["ffn_dim"] // case["dim"]
    theirs = Dinov2Model(
        Dinov2Config(
            hidden_size=case["dim"], num_hidden_layers=case["depth"], num_attention_heads=case["heads"], image_size=518,
            patch_size=14, mlp_ratio=ratio, use_swiglu_ffn=mlp is Mlp.SWIGLU,
        )
    ).eval()  # fmt: skip
    _shake(theirs)
    theirs.save_pretrained(tmp_path)
    config = ViTConfig(
        image_size=size, patch_size=14, grid=37, mlp=mlp, position_rule=PositionRule.HF, **case
    )  # fmt: skip
    vit = load_into(ViT(config, rngs=nnx.Rngs(0), dtype=DType.FLOAT32), tmp_path, dinov2_hf(config))
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        states = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), output_hidden_states=True).hidden_states
        expected = [theirs.layernorm(state).numpy() for state in states[1:]]
    taps = tuple(range(config.depth))
    got = nnx.jit(lambda vit, x: vit(x, taps=taps))(vit, images)
    for layer, (ours, reference) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(ours, reference, atol=1e-5, rtol=1e-5, err_msg=f"layer {layer}")


@pytest.mark.parametrize("name", LLAMA)
def test_logits_of_llama_and_its_export_match(tmp_path, name):
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    case = dict(LLAMA[name])
    first = case.pop("first", 0)
    config = LlamaConfig(vocab_size=160, dim=64, depth=3, heads=4, ffn_dim=96, **case)
    values = exporter.llama_config(config) | {"max_position_embeddings": 8192}
    theirs = LlamaForCausalLM(TheirConfig(**{k: v for k, v in values.items() if k != "model_type"})).eval()
    _shake(theirs)
    # In several files, as large models are.
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    model = load_into(
        Llama(config, adapter=AdapterConfig(), rngs=nnx.Rngs(0), dtype=DType.FLOAT32), tmp_path / "hf", llama_hf(config)
    )
    ids = np.random.default_rng(0).integers(3, 160, (2, 24))
    positions = np.broadcast_to(np.arange(first, first + 24), ids.shape)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), position_ids=torch.from_numpy(positions.copy())).logits.numpy()

    @nnx.jit
    def logits(model, ids, positions):
        mask = make_attention_mask(jnp.ones_like(ids), jnp.zeros_like(ids))
        return model.logits(model(model.embed_tokens(ids), positions=positions, attention=PackedAttention(mask)).hidden)

    np.testing.assert_allclose(logits(model, ids, positions), expected, atol=1e-4, rtol=0)


def test_the_plain_language_model_loads_without_remote_code(tmp_path):
    """`--to llama` writes a LlamaForCausalLM with merged adapters, bit for bit."""
    from transformers import AutoModelForCausalLM

    exporter.export_llama("tiny", tmp_path / "llm", dtype=np.dtype("float32"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.attention_bias and model.config.mlp_bias
    state, file = model.state_dict(), load_file(tmp_path / "llm" / "model.safetensors")
    assert state.keys() == file.keys()
    for key, value in file.items():
        np.testing.assert_array_equal(state[key].numpy(), value, err_msg=key)
