"""Loading of the model that a run starts from: each device receives its own shards only."""

from __future__ import annotations

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config, MeshConfig
from earthgpt_jax.models import earthgpt, loading, model_dir
from earthgpt_jax.models.quantized import Int8, cast_frozen
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import Placement, build_mesh
from earthgpt_jax.training.checkpoints import fingerprint
from earthgpt_jax.training.initial import initial_model, load_initial_params
from earthgpt_jax.training.stages import trainable_paths
from tests.support import nano

# Sharded over eight devices, the replicated parameters are small compared with the others.
SIZES = ("model.llm.heads=8", "model.llm.kv_heads=8", "model.llm.dim=128", "model.llm.ffn_dim=256")


PIECE = 4096  # bytes; several pieces for each large parameter


def _placement(config: Config, mesh: MeshConfig) -> Placement:
    _, shapes = earthgpt.abstract(config.model)
    return rules.placement(config.model, shapes, mesh=build_mesh(mesh, rows=8))


def _load(config: Config, mesh: MeshConfig) -> tuple[dict, dict]:
    _, shapes = earthgpt.abstract(config.model)
    trainable = trainable_paths(config, shapes)
    return loading.load(
        initial_model(config).source, config.model, seed=config.seed, placement=_placement(config, mesh),
        trainable=trainable, frozen_dtype=config.frozen_dtype,
    )  # fmt: skip


def _bytes_per_device() -> dict[jax.Device, int]:
    """Return the bytes of all live arrays on each device."""
    held = dict.fromkeys(jax.devices(), 0)
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return held


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_no_device_holds_more_than_its_share_and_one_piece(tmp_path, monkeypatch, dtype):
    base = nano.model_dir(tmp_path / "base", nano.config("align", *SIZES).model)
    config = nano.config("instruct", *SIZES, f"init={base}", f"frozen_dtype={dtype}")
    gc.collect()
    before, most = _bytes_per_device(), dict.fromkeys(jax.devices(), 0)

    def sample(name: str) -> None:
        function = getattr(loading, name)

        def sampled(*args):
            result = function(*args)
            for device, held in _bytes_per_device().items():
                most[device] = max(most[device], held - before[device])
            return result

        monkeypatch.setattr(loading, name, sampled)

    sample("_put")
    sample("_write")
    sample("_quantize")
    monkeypatch.setattr(loading, "PIECE_BYTES", PIECE)
    trainable, frozen = _load(config, MeshConfig(data=1, fsdp=8))
    share = {device: held - before[device] for device, held in _bytes_per_device().items()}
    layer = max(leaf.size // leaf.shape[0] * 4 for leaf in earthgpt.abstract(config.model)[1].values())
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((trainable, frozen)))
    for device in jax.devices():
        assert most[device] <= share[device] + max(PIECE, layer), device
        assert share[device] < 0.4 * whole, (device, share[device], whole)


def test_values_do_not_depend_on_the_mesh_nor_on_the_pieces(tmp_path, monkeypatch):
    """Stored parameters, new adapters, quantized kernels and random weights; also their fingerprint."""
    base = nano.model_dir(tmp_path / "base", nano.config("align", *SIZES).model)
    _, arrays = model_dir.read(base)
    for stage, words in (("instruct", (f"init={base}", "frozen_dtype=int8")), ("align", ("init=random",))):
        config = nano.config(stage, *SIZES, *words, *(("model.llm.vocab_size=1024",) if stage == "align" else ()))
        seen = set()
        loaded = []
        for mesh in (MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)):
            trainable, frozen = _load(config, mesh)
            replicated = _placement(config, mesh).replicated
            seen.add((fingerprint(trainable, replicated=replicated), fingerprint(frozen, replicated=replicated)))
            loaded.append((trainable, frozen))
            monkeypatch.setattr(loading, "PIECE_BYTES", PIECE)
        monkeypatch.undo()
        assert len(seen) == 1
        for found in loaded[1:]:
            jax.tree.map(np.testing.assert_array_equal, found, loaded[0])
        if stage == "instruct":
            expected = cast_frozen({path: jnp.asarray(arrays[path]) for path in loaded[0][1]}, config.frozen_dtype)
            for path, value in expected.items():
                assert type(loaded[0][1][path]) is type(value), path
                for one, other in zip(jax.tree.leaves(value), jax.tree.leaves(loaded[0][1][path]), strict=True):
                    # The program that quantizes divides in another way than operations one by one.
                    tolerance = 1e-6 if isinstance(value, Int8) else 0
                    np.testing.assert_allclose(
                        np.asarray(other, np.float32), np.asarray(one, np.float32), rtol=tolerance, atol=0, err_msg=path
                    )


def test_a_file_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    base = nano.model_dir(tmp_path / "base", nano.config("align").model)
    config = nano.config("align", f"init={base}")
    initial = initial_model(config)
    (base / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("earthgpt_jax.training.initial.initial_model", lambda _: initial)
    with pytest.raises(EarthGPTError, match=r"model\.safetensors.*cannot be read"):
        load_initial_params(config)
