"""Model directories: sharded loading, and what happens with damaged ones and those of another version."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import MeshConfig
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.mesh import build_mesh
from earthgpt_jax.inference.programs import placement
from earthgpt_jax.models import model_dir
from tests.support import nano


def test_each_device_loads_its_shard_of_the_weights(tmp_path):
    """bfloat16 arrays and replicated arrays included."""
    config = nano.config("align", "model.llm.heads=8", "model.llm.kv_heads=8", "model.compute_dtype=bfloat16").model
    path = nano.model_dir(tmp_path / "nano", config)
    model, arrays = model_dir.read(path)
    halves = {key: value.astype(jnp.bfloat16) if key.startswith("llm") else value for key, value in arrays.items()}
    model_dir.write(
        path, halves, model=config, decimals=2, chat_template="plain", provenance={},
        tokenizer=tmp_path / "nano.tokenizer.model",
    )  # fmt: skip
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2), batch_size=4)
    place = placement(config, mesh)
    for key, value in model_dir.load_sharded(model, place).items():
        assert value.dtype == halves[key].dtype and value.sharding.spec == place.specs[key], key
        np.testing.assert_array_equal(value, halves[key], err_msg=key)
    assert params_lib.fingerprint(model_dir.load_sharded(model, place)) == params_lib.fingerprint(halves)


def test_a_damaged_model_directory_is_refused(tmp_path):
    with pytest.raises(EarthGPTError, match=r"lacks model\.safetensors"):
        model_dir.read(tmp_path)
    path = nano.model_dir(tmp_path / "model", nano.config("align").model)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for load in (model_dir.read, Engine.from_model_dir):
        with pytest.raises(EarthGPTError, match="truncated"):
            load(path)
    for content in ("{", "[]", json.dumps({"format_version": model_dir.FORMAT_VERSION})):
        (path / "config.json").write_text(content)
        with pytest.raises(EarthGPTError, match="expected the config of a model"):
            model_dir.read_config(path)


def _edit(path: Path, **changes: object) -> None:
    """Change keys of a model directory's config.json; None removes a key."""
    values = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_another_format_version_is_refused_with_what_to_do(tmp_path):
    path = nano.model_dir(tmp_path / "model", nano.config("align").model)
    _edit(path, format_version=None)
    with pytest.raises(
        EarthGPTError, match=r"expected format_version 2, got 1.*rename `dtype` in `model` to `compute_dtype`"
    ):
        model_dir.read_config(path)
    _edit(path, format_version=3)
    with pytest.raises(EarthGPTError, match=r"expected format_version 2, got 3.*another version of earthgpt-jax"):
        model_dir.read_config(path)
    _edit(path, format_version=model_dir.FORMAT_VERSION)
    assert model_dir.read_config(path).chat_template == "plain"
