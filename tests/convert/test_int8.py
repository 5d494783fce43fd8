"""Exports with 8 bits: compressed-tensors, by which transformers and vLLM read them, gets the weights that we meant."""

from __future__ import annotations

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import SafetensorsReader
from earthgpt_jax.convert import exporter
from earthgpt_jax.convert.export_info import read_export_info
from earthgpt_jax.convert.int8 import Quantization
from earthgpt_jax.models import earthgpt, model_dir
from tests.support import nano

torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")
FLOAT32 = np.dtype("float32")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A random model, and its export with all bits."""
    folder = tmp_path_factory.mktemp("int8")
    config = nano.config("align").model
    rng = np.random.default_rng(0)
    params = {
        path: np.asarray(value) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for path, value in earthgpt.init(config)[1].items()
    }
    tokenizer = model_dir.read_config(nano.model_dir(folder / "nano", config)).tokenizer
    model_dir.write(
        folder / "ours", params, model=config, decimals=2, chat_template="plain", tokenizer=tokenizer, provenance={}
    )
    return folder / "ours", exporter.export_hf(folder / "ours", folder / "hf", dtype=FLOAT32)


def _load(folder, **options):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, **options).eval()


@pytest.mark.parametrize("kind", [Quantization.INT8, Quantization.W8A8])
def test_compressed_tensors_reads_the_weights(tmp_path, plain, kind):
    from transformers import AutoProcessor, CompressedTensorsConfig

    ours, reference = plain
    folder = exporter.export_hf(ours, tmp_path / "hf", dtype=FLOAT32, quantization=kind)
    files = {path: SafetensorsReader([path / "model.safetensors"]) for path in (reference, folder)}
    exact = _load(reference)
    model = _load(folder, quantization_config=CompressedTensorsConfig(run_compressed=False))
    weights, expected = model.state_dict(), exact.state_dict()
    linears = [key for key in expected if "language_model.layers." in key and key.endswith("_proj.weight")]
    assert len(linears) == 7 * model.config.text_config.num_hidden_layers
    for key in linears:
        scale = torch.from_numpy(files[folder].read(f"{key}_scale"))
        assert torch.all((weights[key] - expected[key]).abs() <= 0.5001 * scale), key
        codes = (weights[key] / scale).round()
        assert codes.abs().max() == 127 and torch.allclose(codes * scale, weights[key], atol=1e-6)
    others = expected.keys() - set(linears)
    assert all(torch.equal(weights[key], expected[key]) for key in others)
    if kind is Quantization.W8A8:
        return
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    inputs = AutoProcessor.from_pretrained(folder, trust_remote_code=True)(
        images=square, text="How many ships?", return_tensors="pt"
    )
    with torch.no_grad():
        got, wanted = model(**inputs).logits, exact(**inputs).logits
    assert 0 < float((got - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_a_quantized_export_is_not_imported(tmp_path, plain):
    folder = exporter.export_hf(plain[0], tmp_path / "hf", quantization=Quantization.INT8)
    assert SafetensorsReader([folder / "model.safetensors"]).dtypes["lm_head.weight"] == np.dtype("bfloat16")
    with pytest.raises(EarthGPTError, match="weights of 8 bits; import the model from which it was made"):
        read_export_info(folder)
