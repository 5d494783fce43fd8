"""A plain loop of prefill and greedy decoding with a KV cache, as the reference for the engine.

The engine does not use it. Tests compare the engine and exported models with it, and `scripts/bench/generate.py`
measures what the engine gains over it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, UInt8

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.inference.decode import StopCondition, has_ended
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.models.llama import CachedAttention
from earthgpt_jax.ops.kv_cache import Cache, empty_cache
from earthgpt_jax.params import Params, merge_module


class Prompts(NamedTuple):
    """A batch of prompts, padded on the right, with one image each.

    Attributes:
        tokens: token ids.
        image_slots: see `EarthGPT.embed`.
        lengths: tokens of each prompt, including image slots.
        images: the square images.
    """

    tokens: Int[Array, "B T"]
    image_slots: Int[Array, "B T"]
    lengths: Int[Array, " B"]
    images: UInt8[Array, "B S S 3"]


class _Loop(NamedTuple):
    """State of the decoding loop.

    Attributes:
        step: number of generated tokens.
        token: the newest token, not yet in `output` or the cache.
        done: which answers have ended.
        output: the answers, after W - 1 zeros, so that looking back from the first tokens needs no special case.
        cache: keys and values.
    """

    step: Int[Array, ""]
    token: Int[Array, " B"]
    done: jax.Array
    output: Int[Array, "B A"]
    cache: Cache


@functools.partial(jax.jit, static_argnames=("graphdef", "config", "max_new_tokens", "stop"))
def generate(
    graphdef: nnx.GraphDef,
    params: Params,
    prompts: Prompts,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    stop: StopCondition,
) -> Int[Array, "B A"]:
    """Return greedy continuations, i32[B, max_new_tokens], with zeros after the end of each answer.

    The prompts may differ in length: positions, masks and the logits after prefill are taken per sequence, so an answer
    does not depend on what it is batched with.
    """
    model: EarthGPT = merge_module(graphdef, params)
    batch, length = prompts.tokens.shape
    slots = length + max_new_tokens
    slot = jnp.arange(slots)

    # Prefill: a token of the prompt attends to the prompt up to itself, never to the padding after it.
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    causal = jnp.broadcast_to(slot[None, None, :] <= positions[..., None], (batch, length, slots))
    cache = empty_cache(config.llm, batch=batch, slots=slots, dtype=config.compute_dtype)
    out = model(
        prompts.tokens,
        image_slots=prompts.image_slots,
        images=prompts.images,
        attention=CachedAttention(cache=cache, mask=causal),
    )
    last = jnp.take_along_axis(out.hidden, (prompts.lengths - 1)[:, None, None], axis=1)
    first = jnp.argmax(model.llm.logits(last)[:, 0], axis=-1).astype(jnp.int32)

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.step < max_new_tokens) & ~jnp.all(loop.done)

    def decode(loop: _Loop) -> _Loop:
        token = jnp.where(loop.done, 0, loop.token)
        output = loop.output.at[:, stop.window - 1 + loop.step].set(token)
        tail = jax.lax.dynamic_slice_in_dim(output, loop.step, stop.window, axis=1)
        new = length + loop.step  # slot of the new token
        mask = (slot[None] < prompts.lengths[:, None]) | ((slot >= length) & (slot <= new))[None]
        out = model(
            token[:, None],
            positions=(prompts.lengths + loop.step)[:, None],
            attention=CachedAttention(cache=loop.cache, mask=mask[:, None], slot=new),
        )
        assert out.cache is not None
        chosen = jnp.argmax(model.llm.logits(out.hidden)[:, 0], axis=-1).astype(jnp.int32)
        return _Loop(loop.step + 1, chosen, loop.done | has_ended(tail, stop), output, out.cache)

    assert out.cache is not None
    start = _Loop(
        step=jnp.zeros((), jnp.int32),
        token=first,
        done=jnp.zeros(batch, bool),
        output=jnp.zeros((batch, stop.window - 1 + max_new_tokens), jnp.int32),
        cache=out.cache,
    )
    return jax.lax.while_loop(unfinished, decode, start).output[:, stop.window - 1 :]
