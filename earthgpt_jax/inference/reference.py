"""Prefill and greedy decoding with a KV cache, static shapes, one compilation a shape."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.models.llama import Cache, empty_cache
from earthgpt_jax.params import Params, merge_module


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopCondition:
    """Where an answer ends: at `eos_id`, or behind any of the id sequences `separators` (kept in the output)."""

    eos_id: int
    separators: tuple[tuple[int, ...], ...]


class Prompts(NamedTuple):
    """Right-padded prompts, one image a row.

    Attributes:
        tokens, image_slots: i32[B, T].
        lengths: i32[B], tokens of each prompt, image slots included.
        images: u8[B, S, S, 3].
    """

    tokens: jax.Array
    image_slots: jax.Array
    lengths: jax.Array
    images: jax.Array


class _Loop(NamedTuple):
    step: jax.Array
    token: jax.Array
    done: jax.Array
    output: jax.Array
    cache: Cache | None


@functools.partial(jax.jit, static_argnames=("graphdef", "config", "max_new_tokens", "stop"))
def generate(
    graphdef: nnx.GraphDef,
    params: Params,
    prompts: Prompts,
    *,
    config: ModelConfig,
    max_new_tokens: int,
    stop: StopCondition,
) -> jax.Array:
    """Greedy continuations, i32[B, max_new_tokens]; 0 after the end of each.

    The rows' lengths may differ: positions, masks and the logits taken after prefill are each row's
    own, so a row's answer does not depend on what it is batched with.
    """
    model: EarthGPT = merge_module(graphdef, params)
    rows, length = prompts.tokens.shape
    slots = length + max_new_tokens
    slot = jnp.arange(slots)
    cache: Cache | None = empty_cache(config.llm, batch=rows, slots=slots, dtype=config.compute_dtype)

    # Prefill: a prompt token sees the prompt up to itself. Padding beyond a row's length is never seen.
    visual = model.perceive(model.encode(prompts.images))
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    causal = jnp.broadcast_to(slot[None, None, :] <= positions[..., None], (rows, length, slots))
    hidden, cache = model.llm(
        model.embed(prompts.tokens, prompts.image_slots, visual),
        positions=positions,
        mask=causal,
        cache=cache,
    )
    last = jnp.take_along_axis(hidden, (prompts.lengths - 1)[:, None, None], axis=1)
    first = jnp.argmax(model.llm.logits(last)[:, 0], axis=-1).astype(jnp.int32)
    # `output` has a head of zeros, so that looking back from the first tokens needs no special case.
    head = max((len(separator) for separator in stop.separators), default=1) - 1

    def ended(output: jax.Array, step: jax.Array) -> jax.Array:
        tail = jax.lax.dynamic_slice_in_dim(output, step, head + 1, axis=1)
        found = tail[:, -1] == stop.eos_id
        for separator in stop.separators:
            found |= jnp.all(tail[:, -len(separator) :] == jnp.asarray(separator), axis=1)
        return found

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.step < max_new_tokens) & ~jnp.all(loop.done)

    def decode(loop: _Loop) -> _Loop:
        token = jnp.where(loop.done, 0, loop.token)
        output = loop.output.at[:, head + loop.step].set(token)
        done = loop.done | ended(output, loop.step)
        written = length + loop.step
        seen = (slot[None] < prompts.lengths[:, None]) | ((slot >= length) & (slot <= written))[None]
        hidden, cache = model.llm(
            model.llm.embed_tokens(token[:, None]),
            positions=(prompts.lengths + loop.step)[:, None],
            mask=seen[:, None],
            cache=loop.cache,
            slot=written,
        )
        chosen = jnp.argmax(model.llm.logits(hidden)[:, 0], axis=-1).astype(jnp.int32)
        return _Loop(loop.step + 1, chosen, done, output, cache)

    start = _Loop(
        step=jnp.zeros((), jnp.int32),
        token=first,
        done=jnp.zeros(rows, bool),
        output=jnp.zeros((rows, head + max_new_tokens), jnp.int32),
        cache=cache,
    )
    return jax.lax.while_loop(unfinished, decode, start).output[:, head:]
