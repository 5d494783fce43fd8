"""Checksums against NumPy's, on several meshes, and against single changed bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from earthgpt_jax.training.checksums import checksums


def _by_numpy(array: np.ndarray) -> int:
    """Word by word, in Python's own integers."""
    kind = {2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
    total = 0
    for place, word in enumerate(np.ascontiguousarray(array).reshape(-1).view(kind).tolist()):
        x = (word + place * 0x9E3779B9) % 2**32
        x = ((x ^ x >> 16) * 0x85EBCA6B) % 2**32
        x = ((x ^ x >> 13) * 0xC2B2AE35) % 2**32
        total += x ^ x >> 16
    return total % 2**32


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    return {
        "fp32": rng.normal(size=(4, 8, 16)).astype(np.float32),
        "bf16": rng.normal(size=(8, 24)).astype(jnp.bfloat16),
        "count": np.int32(7),
        "odd": np.array([np.nan, -0.0, 1e-42, np.inf] * 2, np.float32),
    }


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (2, 4)])
def test_the_same_number_on_every_mesh(tree, shape):
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = Mesh(devices, ("a", "b"))
    specs = {"fp32": P(None, "a", "b"), "bf16": P("a"), "count": P(), "odd": P("a")}
    placed = {name: jax.device_put(tree[name], NamedSharding(mesh, spec)) for name, spec in specs.items()}
    expected = {name: _by_numpy(np.asarray(array)) for name, array in tree.items()}
    assert checksums(placed, whole=NamedSharding(mesh, P())) == expected


def test_one_changed_bit_or_two_swapped_numbers_show(tree):
    def of(array):
        placed = jax.device_put(array, jax.devices()[0])
        return checksums({"x": placed}, whole=placed.sharding)["x"]

    array = tree["fp32"]
    rng = np.random.default_rng(1)
    for _ in range(20):
        changed = array.copy()
        changed.view(np.uint32).reshape(-1)[rng.integers(array.size)] ^= np.uint32(1 << rng.integers(32))
        assert of(changed) != of(array)
    swapped = array.copy().reshape(-1)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert of(swapped.reshape(array.shape)) != of(array)
