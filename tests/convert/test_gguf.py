"""Language models from GGUF files compute what transformers computes after it has read the same file."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import RopeScaling
from earthgpt_jax.convert import exporter
from earthgpt_jax.convert.importer import derive_model, prepare_import
from earthgpt_jax.convert.tables import rope_rows
from tests.convert.test_architecture import LENGTH, _base, _logits, _params, _source
from tests.support import nano

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ATOL = 1e-4
SIZES = {"intermediate_size": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0")
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output",
    **{f"self_attn.{n}_proj": f"attn_{n}" for n in "qkv"},
    **{f"mlp.{n}_proj": f"ffn_{n}" for n in ("gate", "up", "down")},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return exporter.export_hf(nano.model_dir(folder / "model", _base()), folder / "hf")


def _write(path, model, architecture: str, kind: str, *, extra=None, tensors=None):
    """Write a GGUF file as llama.cpp's converter does: q and k of `llama` in Meta's order of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in (extra or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        array = value.detach().float().numpy()
        name, suffix = key.rsplit(".", 1)
        linear = name.rsplit(".", 1)[-1]
        if architecture == "llama" and linear in heads:
            array = rope_rows(heads[linear]).to_checkpoint(array)
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            name = f"blk.{layer}.{_NAMES[rest]}"
        else:
            name = _NAMES[name]
        quantization = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(
            f"{name}.{suffix}", gguf.quants.quantize(np.ascontiguousarray(array), quantization), raw_dtype=quantization
        )
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_a_gguf_file_gives_the_logits_of_transformers(tmp_path, whole, name, kind):
    source = _source(tmp_path / "source", name, SIZES)
    _write(tmp_path / "llm" / "model.gguf", source, name.lower(), kind)
    parts = {"model": whole, "llm": tmp_path / "llm"}
    with pytest.raises(EarthGPTError, match=r"--config.model.llm.ffn_dim=64"):
        prepare_import(parts, _base())
    model = derive_model(parts, _base())
    assert model.llm.rope_theta == 5e5 and model.llm.norm_eps == 1e-5 and model.llm.qkv_bias == (name == "Qwen2")
    params = _params(prepare_import(parts, model))
    ids = np.random.default_rng(0).integers(0, 640, (1, LENGTH))
    state = source.state_dict()
    with torch.no_grad():  # the weights as the file holds them, dequantized by the library that llama.cpp maintains
        for value in state.values():
            if value.ndim == 2:
                quantization = gguf.GGMLQuantizationType[kind]
                packed = gguf.quants.quantize(value.float().numpy(), quantization)
                value.copy_(torch.from_numpy(np.array(gguf.quants.dequantize(packed, quantization))))
        expected = source(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(_logits(model, params, ids), expected, atol=ATOL, rtol=0)


def test_transformers_reads_the_same_weights_from_the_file(tmp_path, whole):
    """Their reader undoes llama.cpp's order of q and k on its own."""
    _write(tmp_path / "model.gguf", _source(tmp_path / "source", "Llama", SIZES), "llama", "Q8_0")
    parts = {"model": whole, "llm": tmp_path / "model.gguf"}
    ours = _params(prepare_import(parts, derive_model(parts, _base())))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").state_dict()
    for linear in "qk":
        for layer in range(2):
            expected = theirs[f"model.layers.{layer}.self_attn.{linear}_proj.weight"].float().numpy()
            np.testing.assert_allclose(ours[f"llm/blocks/attn/{linear}/kernel"][layer].T, expected, atol=1e-6)


def test_scaled_rope_is_recognized_or_refused(tmp_path, whole):
    source = _source(tmp_path / "source", "Llama", SIZES)
    inverse = 5e5 ** (-np.arange(4) / 4)
    kept = np.clip((8192 * inverse / (2 * np.pi) - 1) / 3, 0, 1)
    factors = (1 / (kept + (1 - kept) / 32)).astype(np.float32)
    for number, (extra, tensors) in enumerate((
        ({}, {"rope_freqs.weight": factors}),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, {}),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, {}),
        ({}, {"rope_freqs.weight": factors[::-1].copy()}),
    )):  # fmt: skip
        file = tmp_path / str(number) / "model.gguf"
        _write(file, source, "llama", "F32", extra=extra, tensors=tensors)
        parts = {"model": whole, "llm": file}
        if number < 2:
            scaling = derive_model(parts, _base()).llm.rope_scaling
            expected = (RopeScaling.LLAMA3, 32.0) if number == 0 else (RopeScaling.LINEAR, 4.0)
            assert (scaling.kind, scaling.factor) == expected
        else:
            with pytest.raises(EarthGPTError, match=r"got yarn|got others"):
                derive_model(parts, _base())


def test_other_architectures_and_damaged_files_are_refused(tmp_path, whole):
    source = _source(tmp_path / "source", "Llama", SIZES)
    _write(tmp_path / "model.gguf", source, "gemma2", "F32")
    with pytest.raises(EarthGPTError, match=r"'gemma2' cannot be imported: its norms multiply by 1"):
        prepare_import({"model": whole, "llm": tmp_path / "model.gguf"}, _base())
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + json.dumps({}).encode() * 8)
    with pytest.raises(EarthGPTError, match=r"expected a complete GGUF file"):
        prepare_import({"model": whole, "llm": tmp_path / "bad.gguf"}, _base())
