"""Checkpoints without a training loop: damage, preservation policy, size, and checksums."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from earthgpt_jax import config as config_lib
from earthgpt_jax import params as params_lib
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import CheckpointConfig
from earthgpt_jax.models import earthgpt
from earthgpt_jax.training.checkpoints import Checkpoints, checksums
from earthgpt_jax.training.optim import make_optimizer
from earthgpt_jax.training.stages import Trainable, trainable_paths
from earthgpt_jax.training.state import State

# TensorStore raises these for reads that fail half-way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
METADATA = {"identity": {"synthetic: dataset": "abcd", "frozen weights": "1234"}, "data_position": 6}


def _state(step: int, *, devices: int = 8, rows: int = 64) -> State:
    """Return a state of random numbers, which do not compress; one of its two parameters is sharded."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("fsdp",))
    rng = np.random.default_rng(step)

    def put(value, spec):
        return jax.device_put(value, NamedSharding(mesh, spec))

    trainable = {
        f"llm/{name}": put(rng.normal(size=(rows, 32)).astype(np.float32), spec)
        for name, spec in (("a", P("fsdp")), ("b", P()))
    }
    moments = {"mu": dict(trainable), "count": put(np.int32(step), P())}
    return State(put(np.int32(step), P()), trainable, moments)


def _same(one: State, other: State) -> bool:
    return all(
        np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def _save(workdir: Path, *steps: int, **config: float) -> None:
    checkpoints = Checkpoints(workdir, CheckpointConfig(**{"keep": 9, **config}))
    for step in steps:
        checkpoints.save(step, _state(step), METADATA)
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("saved")
    _save(workdir, 2, 4, 6)
    return workdir


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


DAMAGES = {"truncated": _truncated, "flipped": _flipped, "missing": None}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_or_restored_exactly(saved, tmp_path, damage):
    refused = 0
    folder = saved / "checkpoints" / "6"
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for number, name in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        victim, change = workdir / "checkpoints" / "6" / name, DAMAGES[damage]
        victim.write_bytes(change(victim.read_bytes())) if change else victim.unlink()
        checkpoints = Checkpoints(workdir, CheckpointConfig())
        assert checkpoints.latest() == 6
        try:
            state, extra = checkpoints.restore(6, _state(0))
        except EarthGPTError as error:
            text = str(error)
            assert f"{workdir / 'checkpoints' / '6'}: damaged" in text and "step 4" in text and "mv " in text
            refused += 1
        else:
            assert _same(state, _state(6)) and extra["identity"] == METADATA["identity"], name
        checkpoints.close()
    assert refused >= 4, "at least the arrays, their index and the metadata"


def test_after_a_damaged_checkpoint_is_moved_away_the_previous_one_is_restored(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "6").rename(tmp_path / "run" / "damaged-6")
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig())
    assert checkpoints.latest() == 4
    assert _same(checkpoints.restore(4, _state(0, devices=2))[0], _state(4))
    checkpoints.close()


def test_an_unfinished_checkpoint_is_reported_and_never_restored(saved, tmp_path, caplog, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(saved, workdir)
    unfinished = workdir / "checkpoints" / "8.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "6", unfinished)
    assert main(["inspect", str(workdir / "checkpoints")]) == 1
    assert f"{unfinished}: UNFINISHED" in capsys.readouterr().out
    with caplog.at_level(logging.WARNING):
        checkpoints = Checkpoints(workdir, CheckpointConfig())
    assert "8.orbax-checkpoint-tmp: removed" in caplog.text
    assert checkpoints.latest() == 6
    checkpoints.save(8, _state(8), METADATA)
    checkpoints.close()
    assert {path.name for path in unfinished.parent.iterdir()} == {"6", "8"}  # keep=2


def test_a_partly_deleted_older_checkpoint_does_no_harm(saved, tmp_path, capsys):
    for number, remaining in enumerate((0, 1, 5)):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        files = sorted(path for path in (workdir / "checkpoints" / "2").rglob("*") if path.is_file())
        for path in files[remaining:]:
            path.unlink()
        assert main(["inspect", str(workdir / "checkpoints" / "2")]) == 1
        assert "DAMAGED" in capsys.readouterr().out
        checkpoints = Checkpoints(workdir, CheckpointConfig(keep=2, keep_every_hours=1))
        assert _same(checkpoints.restore(6, _state(0))[0], _state(6))
        checkpoints.save(8, _state(8), METADATA)
        checkpoints.close()
        assert _same(_restored(workdir, 8), _state(8))


def _restored(workdir: Path, step: int) -> State:
    checkpoints = Checkpoints(workdir, CheckpointConfig())
    state, _ = checkpoints.restore(step, _state(0))
    checkpoints.close()
    return state


def test_the_error_names_the_arrays_of_another_config(saved):
    checkpoints = Checkpoints(saved, CheckpointConfig())
    with pytest.raises(EarthGPTError, match=r"got 5 others \(trainable/llm/a, trainable/llm/b, "):
        checkpoints.restore(6, _state(0, rows=32)._replace(opt_state={"mu": {"llm/a": jnp.zeros(3)}}))
    checkpoints.close()


@pytest.mark.parametrize("version", [None, 1])
def test_a_checkpoint_of_another_format_is_refused(saved, tmp_path, capsys, version):
    shutil.copytree(saved, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "6" / "extra" / "metadata"
    metadata = json.loads(path.read_text())
    del metadata["digest"], metadata["format"]  # format 1 has neither
    if version is not None:
        metadata["format"] = version
    path.write_text(json.dumps(metadata))
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig())
    with pytest.raises(EarthGPTError, match=r"expected checkpoint format 3, got 1.*another --workdir"):
        checkpoints.restore(6, _state(0))
    checkpoints.close()
    assert main(["inspect", str(path.parents[1])]) == 1
    assert "checkpoint of format 1" in capsys.readouterr().out


def test_checkpoints_are_preserved_by_step(tmp_path):
    _save(tmp_path, *range(2, 16, 2), every_steps=2, keep=2, keep_every_steps=4)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 8, 12, 14]


def test_checkpoints_are_preserved_by_time(tmp_path):
    _save(tmp_path, 1, 2, 3, 4, 5, 6, 7)
    for step in range(1, 8):  # as if they were saved 40 minutes apart
        path = tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
        values = json.loads(path.read_text())
        values["commit_timestamp_nsecs"] -= (8 - step) * 40 * 60 * 10**9
        path.write_text(json.dumps(values))
    _save(tmp_path, 8, keep=1, keep_every_hours=2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [1, 4, 7, 8]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"every_steps": 4, "keep_every_steps": 6}, "multiple of every_steps=4"),
        ({"keep_every_hours": -1.0}, "expected hours"),
        ({"every_steps": 0, "keep_every_steps": 6}, "expected a positive number"),
    ],
)
def test_invalid_settings_are_refused(values, error):
    assert any(error in line for line in CheckpointConfig(**values).check())


def test_inspect_describes_a_checkpoint(saved, capsys):
    assert main(["inspect", str(saved / "checkpoints" / "6")]) == 0
    out = capsys.readouterr().out
    for text in ("checkpoint of step 6", "step 6", "synthetic, fingerprint abcd", "2 arrays, 4,096 parameters, 0.02 MB",
                 "fingerprint 1234", "by earthgpt-jax"):  # fmt: skip
        assert text in out


def _instruct(*overrides: str) -> tuple[dict[str, Trainable], dict[str, jax.ShapeDtypeStruct]]:
    config = config_lib.load("earthgpt_13b:instruct", [f"--config.model.llm.{item}" for item in overrides])
    _, shapes = earthgpt.abstract(config.model)
    rules = trainable_paths(config, shapes)
    return rules, {path: jax.ShapeDtypeStruct(shapes[path].shape, jnp.float32) for path in rules}


def _count(state: State) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def test_a_checkpoint_of_instruct_at_13b_is_at_most_60_megabytes():
    rules, trainable = _instruct()
    assert params_lib.count(trainable) == 4_259_840
    config = config_lib.load("earthgpt_13b:instruct")
    moments = jax.eval_shape(make_optimizer(config.optim, rules).init, trainable)
    state = State(jax.ShapeDtypeStruct((), jnp.int32), trainable, moments)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) == 51_119_132


def test_at_a_hundredth_of_the_size_a_checkpoint_on_disk_is_as_large_as_its_arrays(tmp_path):
    rules, shapes = _instruct("depth=4", "dim=512", "ffn_dim=1384", "heads=4", "kv_heads=4")
    assert params_lib.count(shapes) == pytest.approx(42_598, rel=0.01)
    rng = np.random.default_rng(0)

    def random(like):
        return jnp.asarray(rng.normal(size=like.shape).astype(like.dtype))

    trainable = {path: random(like) for path, like in shapes.items()}
    moments = jax.tree.map(
        random, make_optimizer(config_lib.load("earthgpt_13b:instruct").optim, rules).init(trainable)
    )
    state = State(jnp.int32(1), trainable, moments)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, state, {"config": config_lib.to_dict(config_lib.load("earthgpt_13b:instruct"))})
    checkpoints.close()
    folder = tmp_path / "checkpoints" / "1"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    expected = 4 * _count(state)
    assert 0.9 * expected < size <= 600_000, (size, expected)  # a hundredth of 60 MB


# ---------------------------------------------------------------------------------------------------------- checksums


def _by_numpy(array: np.ndarray) -> int:
    """Compute a checksum element by element with Python integers."""
    dtype = {2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
    total = 0
    for index, word in enumerate(np.ascontiguousarray(array).reshape(-1).view(dtype).tolist()):
        x = (word + index * 0x9E3779B9) % 2**32
        x = ((x ^ x >> 16) * 0x85EBCA6B) % 2**32
        x = ((x ^ x >> 13) * 0xC2B2AE35) % 2**32
        total += x ^ x >> 16
    return total % 2**32


@pytest.fixture(scope="module")
def tree() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "fp32": rng.normal(size=(4, 8, 16)).astype(np.float32),
        "bf16": rng.normal(size=(8, 24)).astype(jnp.bfloat16),
        "count": np.int32(7),
        "odd": np.array([np.nan, -0.0, 1e-42, np.inf] * 2, np.float32),
    }


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_a_checksum_is_the_same_on_every_mesh(tree, shape):
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = Mesh(devices, ("a", "b"))
    specs = {"fp32": P(None, "a", "b"), "bf16": P("a"), "count": P(), "odd": P("a")}
    placed = {name: jax.device_put(tree[name], NamedSharding(mesh, spec)) for name, spec in specs.items()}
    expected = {name: _by_numpy(np.asarray(array)) for name, array in tree.items()}
    assert checksums(placed, replicated=NamedSharding(mesh, P())) == expected


def test_a_changed_bit_or_two_swapped_elements_change_the_checksum(tree):
    def checksum(array: np.ndarray) -> int:
        placed = jax.device_put(array, jax.devices()[0])
        return checksums({"x": placed}, replicated=placed.sharding)["x"]

    array = tree["fp32"]
    rng = np.random.default_rng(1)
    for _ in range(20):
        changed = array.copy()
        changed.view(np.uint32).reshape(-1)[rng.integers(array.size)] ^= np.uint32(1 << rng.integers(32))
        assert checksum(changed) != checksum(array)
    swapped = array.copy().reshape(-1)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert checksum(swapped.reshape(array.shape)) != checksum(array)
