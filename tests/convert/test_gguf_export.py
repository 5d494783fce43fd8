"""GGUF files that we write are read by transformers and by our importer, with the weights of the model."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import ModelConfig
from earthgpt_jax.convert import exporter
from earthgpt_jax.convert.gguf_export import export_gguf
from earthgpt_jax.convert.importer import derive_model, prepare_import, read_params
from earthgpt_jax.models import earthgpt, model_dir
from tests.support import nano
from tests.support.tokenizers import build_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
IDS = np.random.default_rng(0).integers(3, 600, (1, 40))


def _model(folder: Path, kind: str, *overrides: str, stage: str = "align") -> Path:
    """Write a model directory with random weights and a tokenizer of a kind."""
    config: ModelConfig = nano.config(stage, *overrides).model
    rng = np.random.default_rng(0)
    params = {
        path: np.asarray(value) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for path, value in earthgpt.init(config)[1].items()
    }
    tokenizer = build_tokenizer(kind, folder / "tokenizer")
    model_dir.write(
        folder / "ours", params, model=config, decimals=2, chat_template="plain", tokenizer=tokenizer, provenance={}
    )
    return folder / "ours"


# name -> kind of tokenizer, stage, overrides
CASES = {
    "plain": ("llama2", "align", ()),
    "merged": ("llama2", "instruct", ()),
    "tied head": ("smollm2", "align", ("model.llm.tied_head=True", "model.llm.head_size=32")),
    "llama3": (
        "llama3", "align",
        ("model.llm.rope_scaling.kind=llama3", "model.llm.rope_scaling.factor=32.0",
         "model.llm.rope_scaling.original_positions=8192", "model.llm.rope_theta=500000.0"),
    ),
    "qwen": ("qwen", "align", ("model.llm.qkv_bias=True", "model.llm.vocab_size=704", "model.llm.tokenizer_size=640")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_transformers_and_our_importer_read_the_same_model(tmp_path, case):
    kind, stage, overrides = CASES[case]
    ours = _model(tmp_path, kind, *overrides, stage=stage)
    folder = export_gguf(ours, tmp_path / "gguf", dtype=np.dtype("float32"))
    plain = exporter.export_llama(ours, tmp_path / "llama", dtype=np.dtype("float32"))
    if case in ("plain", "tied head"):  # transformers' reader drops biases and the factors of RoPE
        load = transformers.AutoModelForCausalLM.from_pretrained
        with torch.no_grad():
            expected, got = (
                load(path, **options).eval()(torch.from_numpy(IDS)).logits
                for path, options in ((plain, {}), (folder, {"gguf_file": "model.gguf"}))
            )
        np.testing.assert_allclose(got, expected, atol=1e-5)
    # Our importer reads the file as it reads `--to llama`, bit for bit.
    base = exporter.export_hf(ours, tmp_path / "hf", dtype=np.dtype("float32"))
    model = model_dir.read_config(ours)
    imported = []
    for source in (folder, plain):
        parts = {"model": base, "llm": source}
        derived = derive_model(parts, model.model, tokenizer=model.tokenizer)
        values = read_params(prepare_import(parts, derived), seed=0, progress=False)
        imported.append((derived.llm, {(path, layer): value for path, layer, value in values}))
    (llm, values), (other, reference) = imported
    # transformers' LLaMA has no biases on q, k and v alone: `--to llama` adds zeros to o.
    assert llm == (model.model.llm if case == "qwen" else other)
    assert reference.keys() - values.keys() == {
        key for key in reference if case == "qwen" and key[0] == "llm/blocks/attn/o/bias"
    }
    for key, value in values.items():
        np.testing.assert_array_equal(value, reference[key], err_msg=str(key))


def test_the_tokenizer_is_in_the_file(tmp_path):
    ours = _model(tmp_path, "qwen", *CASES["qwen"][2])
    reader = gguf.GGUFReader(export_gguf(ours, tmp_path / "gguf") / "model.gguf")
    content = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    fields = {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in reader.fields.items()}
    vocabulary = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    assert (fields["model"], fields["pre"], len(fields["tokens"])) == ("gpt2", "qwen2", 704)
    assert all(fields["tokens"][index] == text for text, index in vocabulary.items())
    assert fields["token_type"][vocabulary["<|im_end|>"]] == 3 and fields["token_type"][703] == 5
    assert fields["eos_token_id"] == vocabulary["<|im_end|>"] and not fields["add_bos_token"]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.bias"] == kinds["output_norm.weight"] == "F32"


def test_what_gguf_cannot_say_is_refused(tmp_path):
    ours = _model(
        tmp_path, "llama2", "model.llm.rope_scaling.kind=yarn", "model.llm.rope_scaling.factor=4.0",
        "model.llm.rope_scaling.original_positions=2048",
    )  # fmt: skip
    with pytest.raises(EarthGPTError, match="got yarn"):
        export_gguf(ours, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()
