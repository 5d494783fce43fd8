"""PEFT loads our LoRA adapters onto the model without them and computes what the merged model computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.convert import exporter
from earthgpt_jax.convert.peft_export import export_peft
from earthgpt_jax.models import earthgpt, model_dir
from tests.support import nano

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")


def test_peft_computes_what_the_merged_model_computes(tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    config = nano.config(
        "lora", "model.adapter.rank=3", "model.adapter.alpha=12.0", "model.adapter.targets=('q','v','o','gate','down')"
    ).model
    folder = nano.model_dir(tmp_path / "model", config)
    rng = np.random.default_rng(0)
    params = {
        path: np.asarray(value) + rng.normal(0, 0.1, value.shape).astype(np.float32)
        for path, value in earthgpt.init(config)[1].items()
    }
    tokenizer = model_dir.read_config(folder).tokenizer
    ours = tmp_path / "ours"
    model_dir.write(ours, params, model=config, decimals=2, chat_template="plain", tokenizer=tokenizer, provenance={})
    base = exporter.export_hf(ours, tmp_path / "base", adapter="separate")
    merged = exporter.export_hf(ours, tmp_path / "merged")
    adapter = export_peft(ours, tmp_path / "adapter")

    load, options = AutoModelForImageTextToText.from_pretrained, {"trust_remote_code": True}
    tuned = peft.PeftModel.from_pretrained(load(base, **options), adapter).eval()
    square = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    inputs = AutoProcessor.from_pretrained(base, **options)(images=square, text="What?", return_tensors="pt")
    with torch.no_grad():
        expected, plain = (load(path, **options).eval()(**inputs).logits for path in (merged, base))
        got = tuned(**inputs).logits
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert float((plain - expected).abs().max()) > 0.1
    # PEFT saves the same tensors under the same names.
    tuned.save_pretrained(tmp_path / "again")
    ours_file, theirs_file = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "again"))
    assert ours_file.keys() == theirs_file.keys()
    assert all(np.array_equal(value, theirs_file[key]) for key, value in ours_file.items())
    values = json.loads((adapter / "adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"]) == (3, 12.0)


def test_other_adapters_are_refused(tmp_path):
    folder = nano.model_dir(tmp_path / "model", nano.config("instruct").model)
    with pytest.raises(EarthGPTError, match=r"expected LoRA adapters.*merge them instead"):
        export_peft(folder, tmp_path / "adapter")
