"""LoRA matches `peft` on transformers' LLaMA in fp32: logits, gradients and merged weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import ModelConfig
from earthgpt_jax.convert import exporter
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.llama import PackedAttention
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.losses import next_token_loss
from earthgpt_jax.training.stages import trainable_paths
from tests.support import nano

pytestmark = pytest.mark.torch
IDS = np.random.default_rng(0).integers(3, 600, (2, 17))
THEIRS = {"attn": "self_attn", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "mlp": "mlp",
          "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}  # fmt: skip


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Return a config, its parameters (B not zero), and the same model in peft."""
    peft = pytest.importorskip("peft")
    from transformers import LlamaForCausalLM

    targets = ("q", "v", "o", "gate", "down")
    config = nano.config("lora", "model.adapter.rank=3", "model.adapter.alpha=12.0", f"model.adapter.targets={targets}")
    folder = nano.model_dir(tmp_path_factory.mktemp("lora") / "model", config.model)
    rng = np.random.default_rng(1)
    arrays = load_file(folder / "model.safetensors")
    arrays = {k: v + 0.1 * rng.standard_normal(v.shape).astype(np.float32) for k, v in arrays.items()}
    save_file(
        {k: np.zeros_like(v) if k.endswith("adapter/b") else v for k, v in arrays.items()}, folder / "model.safetensors"
    )
    exporter.export_llama(folder, folder.parent / "base")  # B is zero: the base alone
    save_file(arrays, folder / "model.safetensors")

    adapter = config.model.adapter
    theirs = peft.get_peft_model(
        LlamaForCausalLM.from_pretrained(folder.parent / "base", attn_implementation="eager"),
        peft.LoraConfig(
            r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=0.0, task_type="CAUSAL_LM",
            target_modules=[THEIRS[name] for name in adapter.targets],
        ),
    )  # fmt: skip
    state = theirs.state_dict()
    for key, value in _lora(arrays).items():
        state[key].copy_(_tensor(value))
    return config, folder, arrays, theirs


def _tensor(value: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(value))


def _lora(arrays: dict) -> dict[str, np.ndarray]:
    """Return our A and B, or their gradients, under the names of peft."""
    out = {}
    for path, value in arrays.items():
        if "/adapter/" in path:
            _, _, part, linear, _, leaf = path.split("/")
            for layer, each in enumerate(value):
                name = f"model.layers.{layer}.{THEIRS[part]}.{THEIRS[linear]}.lora_{leaf.upper()}.default.weight"
                out[f"base_model.model.{name}"] = each.T
    return out


def _logits(model: ModelConfig, params: dict) -> jax.Array:
    llm = params_lib.merge_module(earthgpt.abstract(model)[0], params).llm
    ids = jnp.asarray(IDS)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    attention = PackedAttention(make_attention_mask(1 + 0 * ids, 0 * ids))
    return llm.logits(llm(llm.embed_tokens(ids), positions=positions, attention=attention).hidden)


def test_logits_and_gradients_match(case):
    config, _, arrays, theirs = case
    params = {path: jnp.asarray(value) for path, value in arrays.items()}
    trainable, frozen = params_lib.split(params, trainable_paths(config, params))
    assert all("/adapter/" in path for path in trainable)

    @jax.jit
    def gradient(trainable):
        def loss(trainable):
            logits = _logits(config.model, params_lib.merge(trainable, frozen))
            total, weight = next_token_loss(logits, jnp.asarray(IDS), jnp.ones(IDS.shape))
            return total / weight, logits

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    (loss, logits), gradients = gradient(trainable)
    output = theirs(input_ids=_tensor(IDS), labels=_tensor(IDS))
    output.loss.backward()
    np.testing.assert_allclose(logits, output.logits.detach(), atol=2e-5, rtol=0)
    assert float(loss) == pytest.approx(output.loss.item(), rel=5e-7)  # four epsilons of float32
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    got = _lora(gradients)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(got[name] / scale, value / scale, atol=1e-4, err_msg=name)


def test_merged_weights_match(case, tmp_path):
    """An export holds what `merge_and_unload` returns: kernels plus alpha / rank * A B."""
    _, folder, _, theirs = case
    exporter.export_llama(folder, tmp_path / "out")
    merged = theirs.merge_and_unload().state_dict()
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == merged.keys()
    for key, value in merged.items():
        np.testing.assert_allclose(got[key], value, atol=1e-6, rtol=1e-6, err_msg=key)
