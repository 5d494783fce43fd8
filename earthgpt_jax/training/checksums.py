"""Checksums of arrays on their devices: the same number on any mesh, another one if a bit is.

A storage layer that finds a truncated file may still hand back a changed byte. These sums go from the arrays that were
saved to the arrays that were restored, so they cover everything between.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def named(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their paths (`trainable/llm/norm/scale`)."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def checksums(tree: Any, *, whole: Sharding) -> dict[str, int]:
    """Of each leaf, by its path: the sum, modulo 2**32, of its mixed words.

    Integer sums do not depend on their order, hence not on how an array is spread. Each word is mixed with its place;
    the mixing is one to one, so that a change in a single word always shows, in several all but surely.

    Args:
        tree: arrays of at most four bytes an element, anywhere.
        whole: of a value that all devices of the arrays hold.
    """
    leaves = named(tree)
    sums = jax.device_get(_sums(list(leaves.values()), whole=whole))
    return dict(zip(leaves, map(int, sums), strict=True))


@functools.partial(jax.jit, static_argnames="whole")
def _sums(leaves: list[jax.Array], *, whole: Sharding) -> jax.Array:
    """u32[number of leaves]."""
    return jax.lax.with_sharding_constraint(jnp.stack([_sum(leaf) for leaf in leaves]), whole)


def _sum(x: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mix(words + place * jnp.uint32(0x9E3779B9)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finalizer (A. Appleby, public domain): a permutation of all words."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
