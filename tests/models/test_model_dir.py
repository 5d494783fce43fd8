"""Model directories: sharded loading, and what happens with damaged ones and those of another version."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import SafetensorsWriter
from earthgpt_jax.config import DType, FrozenDType, MeshConfig
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.mesh import build_mesh
from earthgpt_jax.inference.programs import placement
from earthgpt_jax.models import model_dir, model_writer
from earthgpt_jax.models.quantized import cast_frozen, dequantize
from tests.support import nano


def test_each_device_loads_its_shard_of_the_weights(tmp_path):
    """bfloat16 arrays and replicated arrays included."""
    config = nano.config("align", "model.llm.heads=8", "model.llm.kv_heads=8", "model.compute_dtype=bfloat16").model
    path = nano.model_dir(tmp_path / "nano", config)
    _, arrays = model_dir.read(path)
    halves = {key: value.astype(jnp.bfloat16) if key.startswith("llm") else value for key, value in arrays.items()}
    model_dir.write(
        path, halves, model=config, decimals=2, chat_template="plain", provenance={},
        tokenizer=tmp_path / "nano.tokenizer.model",
    )  # fmt: skip
    model = model_dir.read_config(path)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2), batch_size=4)
    place = placement(config, mesh)
    for key, value in model_dir.load_sharded(model, place).items():
        assert value.dtype == halves[key].dtype and value.sharding.spec == place.specs[key], key
        np.testing.assert_array_equal(value, halves[key], err_msg=key)
    assert params_lib.fingerprint(model_dir.load_sharded(model, place)) == params_lib.fingerprint(halves)


def test_an_array_is_written_in_pieces_of_rows(tmp_path):
    """Sharded and replicated arrays, bfloat16, quantized kernels and more rows than fit into a piece."""
    config = nano.config("align", "model.llm.heads=8", "model.llm.kv_heads=8").model
    path = nano.model_dir(tmp_path / "nano", config)
    _, arrays = model_dir.read(path)
    params = {key: jnp.asarray(value) for key, value in arrays.items()}
    params |= cast_frozen({key: value for key, value in params.items() if "/mlp/" in key}, FrozenDType.INT8)
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2), batch_size=4)
    for piece_bytes in (1, 5_000, model_writer.PIECE_BYTES):
        model_writer.write(
            tmp_path / "out", placement(config, mesh).put(params), compute_dtype=DType.BFLOAT16, model=config,
            decimals=2, chat_template="plain", tokenizer=tmp_path / "nano.tokenizer.model", provenance={},
            piece_bytes=piece_bytes,
        )  # fmt: skip
        _, written = model_dir.read(tmp_path / "out")
        for key, value in dequantize(params, DType.BFLOAT16).items():
            assert written[key].dtype == value.dtype, key
            np.testing.assert_array_equal(written[key], value, err_msg=key)


def test_processes_get_about_equal_bytes():
    sizes = {"a": 1, "b": 8, "c": 3, "d": 4, "e": 2}
    assert model_writer.assign(sizes, processes=2) == [["a", "b"], ["c", "d", "e"]]
    assert model_writer.assign(sizes, processes=1) == [list(sizes)]
    assert model_writer.assign({"a": 1}, processes=4) == [["a"]]


def test_a_model_in_several_files_is_read_and_its_damage_is_reported(tmp_path):
    path = nano.model_dir(tmp_path / "model", nano.config("align").model)
    _, arrays = model_dir.read(path)
    tensors = {key: (value.shape, value.dtype) for key, value in arrays.items()}
    groups = [sorted(arrays)[::2], sorted(arrays)[1::2]]
    for process in (1, 0):
        writer = SafetensorsWriter(path, tensors, groups=groups, only=process)
        for key in groups[process]:
            writer.write(key, arrays[key])
        writer.close()
    (path / "model.safetensors").unlink()
    assert params_lib.fingerprint(model_dir.read(path)[1]) == params_lib.fingerprint(arrays)
    assert model_dir.read_config(path).weight_bytes == sum(value.nbytes for value in arrays.values())
    (path / "model-00002-of-00002.safetensors").unlink()
    for load in (model_dir.read, Engine.from_model_dir):
        with pytest.raises(EarthGPTError, match="shards are missing: model-00002-of-00002"):
            load(path)


def test_a_damaged_model_directory_is_refused(tmp_path):
    with pytest.raises(EarthGPTError, match=r"lacks model\.safetensors"):
        model_dir.read(tmp_path)
    path = nano.model_dir(tmp_path / "model", nano.config("align").model)
    with pytest.raises(EarthGPTError, match=f"It is a training run: give {path}"):
        model_dir.read(tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for load in (model_dir.read, Engine.from_model_dir):
        with pytest.raises(EarthGPTError, match="truncated"):
            load(path)
    for content in ("{", "[]", json.dumps({"format_version": model_dir.FORMAT_VERSION})):
        (path / "config.json").write_text(content)
        with pytest.raises(EarthGPTError, match=r"copy the directory again|model: missing; expected"):
            model_dir.read_config(path)


def _edit(path: Path, **changes: object) -> None:
    """Change keys of a model directory's config.json; None removes a key."""
    values = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_another_format_version_is_refused_with_what_to_do(tmp_path):
    path = nano.model_dir(tmp_path / "model", nano.config("align").model)
    _edit(path, format_version=None)
    with pytest.raises(
        EarthGPTError, match=r"expected format_version 3 or 2, got 1.*rename `dtype` in `model` to `compute_dtype`"
    ):
        model_dir.read_config(path)
    _edit(path, format_version=4)
    with pytest.raises(EarthGPTError, match=r"expected format_version 3 or 2, got 4.*another version of earthgpt-jax"):
        model_dir.read_config(path)
    _edit(path, format_version=model_dir.FORMAT_VERSION)
    assert model_dir.read_config(path).chat_template == "plain"


def test_any_flipped_bit_of_the_weights_is_noticed(tmp_path):
    path = nano.model_dir(tmp_path / "model", nano.config("align").model)
    file = path / "model.safetensors"
    intact = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(15):
        place = int(rng.integers(len(intact)))
        file.write_bytes(intact[:place] + bytes([intact[place] ^ (1 << int(rng.integers(8)))]) + intact[place + 1 :])
        with pytest.raises(EarthGPTError, match=r"fingerprint|cannot be read|expected"):
            model_dir.read(path)
    file.write_bytes(intact)
    model_dir.read(path)
