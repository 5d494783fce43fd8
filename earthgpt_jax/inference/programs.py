"""The compiled programs of generation, on a state of fixed size: images in, questions in, tokens out.

G images are in work at a time, M rows belong to each; rows B = G * M. Every device has its share of the images with
their rows, and runs for itself: no program communicates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.inference.generate import Stop
from earthgpt_jax.inference.sampling import Sampling, choose
from earthgpt_jax.inference.shared import extend, heads_first
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.models.llama import Cache, empty_cache
from earthgpt_jax.params import Params, merge_module

# Whatever is within these has the same programs.
_LEAST_QUESTION, _LEAST_QUESTION_SLOTS, _LEAST_ANSWER_SLOTS = 16, 64, 16
_MOST_ENCODES = 8


def bucket(length: int, least: int = _LEAST_QUESTION) -> int:
    """What a length is padded to: a power of two."""
    return max(least, 1 << (length - 1).bit_length())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the state; a device's.

    Attributes:
        images: G.
        rows_per_image: M.
        question_slots: of the longest question.
        answer_slots: of the longest answer.
        inserts: rows that an insertion fills.
        encodes: images that an encoding takes.
    """

    images: int
    rows_per_image: int
    question_slots: int
    answer_slots: int
    inserts: int
    encodes: int

    @property
    def rows(self) -> int:
        return self.images * self.rows_per_image

    @classmethod
    def of(
        cls, questions: Sequence[int], *, longest_question: int, longest_answer: int, batch_size: int, devices: int
    ) -> Layout:
        """For so many questions an image: few rows an image, but enough that all are busy.

        Args:
            questions: of each image.
            batch_size: rows of all devices together; rounded up to what divides.
        """
        rows = -(-batch_size // devices)
        most = max(questions)
        wanted = max(sum(questions) / len(questions) / 8, batch_size / len(questions))
        share = 1
        while share < wanted and share < most and share * 2 <= rows:
            share *= 2
        images = -(-rows // share)
        return cls(
            images=images,
            rows_per_image=share,
            question_slots=bucket(longest_question, _LEAST_QUESTION_SLOTS),
            answer_slots=bucket(longest_answer, _LEAST_ANSWER_SLOTS),
            inserts=-(-images * share // 4),
            encodes=min(-(-images // 4), _MOST_ENCODES),
        )


class Rows(NamedTuple):
    """Questions in work.

    Attributes:
        cache: of own tokens, [L, B, K, S, H].
        length: i32[B], tokens that are in the cache.
        token: i32[B], the newest one, which is not.
        tail: i32[B, W], the newest tokens of the answer, as many as the longest separator has; -1 before the first.
        made: i32[B], tokens of the answer; at most `limit`, i32[B].
        active: bool[B].
        output: i32[B, answer_slots], and its log-probabilities f32[B, answer_slots].
        seed: u32[B].
    """

    cache: Cache
    length: jax.Array
    token: jax.Array
    tail: jax.Array
    made: jax.Array
    limit: jax.Array
    active: jax.Array
    output: jax.Array
    logprobs: jax.Array
    seed: jax.Array


class Insert(NamedTuple):
    """Questions for free rows; `row` is B where there is none.

    Attributes:
        row, image, length, limit: i32[I]; within the device.
        tokens: i32[I, T].
        seed: u32[I].
    """

    row: Any
    image: Any
    tokens: Any
    length: Any
    limit: Any
    seed: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled functions. Arrays have their devices' shares one behind the other.

    Attributes:
        start: `() -> (prefixes, rows)`, nothing in them.
        encode: `(params, images u8[E, S, S, 3]) -> visual tokens [E, P, D]`.
        prefill: `(params, prefixes, visual, slot i32[E]) -> prefixes`; slot G: no image.
        insert: `(params, prefixes, rows, Insert) -> rows`.
        decode: `(params, prefixes, rows, until i32[devices]) -> rows`: until so many of a device's rows are free.
        whole: where what all devices hold is.
    """

    start: Callable[[], tuple[Cache, Rows]]
    encode: Callable[..., jax.Array]
    prefill: Callable[..., Cache]
    insert: Callable[..., Rows]
    decode: Callable[..., Rows]
    whole: NamedSharding
    spread: NamedSharding


def _compiled(function: Callable, mesh: Mesh, *, arguments: tuple, result: Any, donated: int | None = None) -> Callable:
    mapped = jax.shard_map(function, mesh=mesh, in_specs=arguments, out_specs=result, check_vma=False)
    return jax.jit(mapped, donate_argnums=() if donated is None else donated)


@functools.lru_cache(maxsize=16)
def _encoder(graphdef: nnx.GraphDef, mesh: Mesh) -> Callable[..., jax.Array]:
    """Apart from the other programs because it takes longest to compile and does not depend on a layout."""

    def encode(params: Params, images: jax.Array) -> jax.Array:
        model: EarthGPT = merge_module(graphdef, params)
        return model.perceive(model.encode(images))

    return _compiled(encode, mesh, arguments=(P(), _EACH), result=_EACH)


# Caches have their rows on the second axis, everything else on the first.
_CACHED: Any = Cache(*[P(None, "data")] * 2)  # type: ignore[arg-type]
_EACH: Any = P("data")


@functools.lru_cache(maxsize=16)
def programs(
    graphdef: nnx.GraphDef,
    *,
    config: ModelConfig,
    prefix: tuple[tuple[int, ...], tuple[int, ...]],
    layout: Layout,
    stop: Stop,
    sampling: Sampling,
    devices: tuple[jax.Device, ...],
) -> Programs:
    """Programs for a model and a layout; compiled at their first call, and shared by all who ask for the same.

    Args:
        prefix: tokens and image slots in front of every question.
    """
    mesh = Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))
    slots = layout.question_slots + layout.answer_slots
    window = max((len(separator) for separator in stop.separators), default=1)
    length = len(prefix[0])

    def start() -> tuple[Cache, Rows]:
        llm, rows = config.llm, layout.rows
        prefixes = heads_first(empty_cache(llm, batch=layout.images, slots=length, dtype=config.dtype))
        zeros = jnp.zeros(rows, jnp.int32)
        return prefixes, Rows(
            cache=heads_first(empty_cache(llm, batch=rows, slots=slots, dtype=config.dtype)),
            length=zeros, token=zeros, tail=jnp.zeros((rows, window), jnp.int32), made=zeros, limit=zeros,
            active=jnp.zeros(rows, bool), output=jnp.zeros((rows, layout.answer_slots), jnp.int32),
            logprobs=jnp.zeros((rows, layout.answer_slots)), seed=zeros.astype(jnp.uint32),
        )  # fmt: skip

    def prefill(params: Params, prefixes: Cache, visual: jax.Array, slot: jax.Array) -> Cache:
        model: EarthGPT = merge_module(graphdef, params)
        tokens, image_slots = (jnp.broadcast_to(jnp.asarray(of), (len(visual), length)) for of in prefix)
        order = jnp.arange(length)
        _, cache = model.llm(
            model.embed(tokens, image_slots, visual),
            positions=jnp.broadcast_to(order, tokens.shape),
            mask=jnp.broadcast_to(order[:, None] >= order, (len(visual), length, length)),
            cache=empty_cache(config.llm, batch=len(visual), slots=length, dtype=config.dtype),
        )
        assert cache is not None
        return Cache(*(old.at[:, slot].set(new) for old, new in zip(prefixes, heads_first(cache), strict=True)))

    def ended(tail: jax.Array) -> jax.Array:
        found = tail[:, -1] == stop.eos_id
        for separator in stop.separators:
            found |= jnp.all(tail[:, -len(separator) :] == jnp.asarray(separator), axis=1)
        return found

    def insert(params: Params, prefixes: Cache, rows: Rows, new: Insert) -> Rows:
        model: EarthGPT = merge_module(graphdef, params)
        width = new.tokens.shape[1]
        order = jnp.arange(width)
        hidden, cache = extend(
            model.llm,
            model.llm.embed_tokens(new.tokens),
            positions=jnp.broadcast_to(length + order, new.tokens.shape),
            mask=jnp.broadcast_to(order[:, None] >= order, (len(new.tokens), width, width)),
            prefixes=prefixes,
            of=new.image,
        )
        last = jnp.take_along_axis(hidden, (new.length - 1)[:, None, None], axis=1)
        zeros = jnp.zeros_like(new.length)
        token, logprob = choose(model.llm.logits(last)[:, 0], sampling=sampling, seeds=new.seed, steps=zeros)
        tail = jnp.full((len(token), window), -1).at[:, -1].set(token)
        at = new.row
        return Rows(
            cache=Cache(*(old.at[:, at, :, :width].set(values) for old, values in zip(rows.cache, cache, strict=True))),
            length=rows.length.at[at].set(new.length),
            token=rows.token.at[at].set(token),
            tail=rows.tail.at[at].set(tail),
            made=rows.made.at[at].set(1),
            limit=rows.limit.at[at].set(new.limit),
            active=rows.active.at[at].set(~ended(tail) & (new.limit > 1)),
            output=rows.output.at[at, 0].set(token),
            logprobs=rows.logprobs.at[at, 0].set(logprob),
            seed=rows.seed.at[at].set(new.seed),
        )

    def decode(params: Params, prefixes: Cache, rows: Rows, until: jax.Array) -> Rows:
        model: EarthGPT = merge_module(graphdef, params)
        row = jnp.arange(layout.rows)

        def step(rows: Rows) -> Rows:
            hidden, cache = extend(
                model.llm,
                model.llm.embed_tokens(rows.token[:, None]),
                positions=(length + rows.length)[:, None],
                mask=None,
                prefixes=prefixes,
                own=rows.cache,
                written=rows.length,
            )
            logits = model.llm.logits(hidden)[:, 0]
            token, logprob = choose(logits, sampling=sampling, seeds=rows.seed, steps=rows.made)
            token = jnp.where(rows.active, token, rows.token)
            tail = jnp.concatenate([rows.tail[:, 1:], token[:, None]], axis=1)
            # A row that has ended writes nowhere: index B is beyond the arrays.
            at = jnp.where(rows.active, row, layout.rows)
            made = rows.made + rows.active
            return Rows(
                cache=Cache(
                    *(
                        old.at[:, at, :, rows.length].set(new[:, :, :, 0].swapaxes(0, 1))
                        for old, new in zip(rows.cache, cache, strict=True)
                    )
                ),
                length=rows.length + rows.active,
                token=token,
                tail=tail,
                made=made,
                limit=rows.limit,
                active=rows.active & ~ended(tail) & (made < rows.limit),
                output=rows.output.at[at, rows.made].set(token),
                logprobs=rows.logprobs.at[at, rows.made].set(logprob),
                seed=rows.seed,
            )

        return jax.lax.while_loop(lambda rows: jnp.sum(~rows.active) < until[0], step, rows)

    state = Rows(_CACHED, *[_EACH] * (len(Rows._fields) - 1))
    new = Insert(*[_EACH] * len(Insert._fields))
    return Programs(
        start=_compiled(start, mesh, arguments=(), result=(_CACHED, state)),
        encode=_encoder(graphdef, mesh),
        prefill=_compiled(prefill, mesh, arguments=(P(), _CACHED, _EACH, _EACH), result=_CACHED, donated=1),
        insert=_compiled(insert, mesh, arguments=(P(), _CACHED, state, new), result=state, donated=2),
        decode=_compiled(decode, mesh, arguments=(P(), _CACHED, state, _EACH), result=state, donated=2),
        whole=NamedSharding(mesh, P()),
        spread=NamedSharding(mesh, _EACH),
    )
