"""The compiled programs of generation, on a state of fixed size: images in, questions in, tokens out.

The devices that share a place along the mesh's row axes are a *group*: they hold the same rows, and split heads, ffn
channels and vocabulary. A group has G images in work at a time and M rows for each of them, B = G * M rows; arrays have
the groups' shares one behind the other. A question never leaves its image's group, so no cache is ever sent.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.inference.reference import StopCondition
from earthgpt_jax.inference.sampling import Sampling, sample_tokens
from earthgpt_jax.inference.shared_prefix import each_group, extend, heads_first
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.models.llama import Cache, empty_cache
from earthgpt_jax.params import Params, merge_module
from earthgpt_jax.sharding import mesh as mesh_lib
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import AXES, ROWS, Placement, constrain

# Whatever is within these has the same programs.
_LEAST_QUESTION, _LEAST_QUESTION_SLOTS, _LEAST_ANSWER_SLOTS = 16, 64, 16
_MOST_ENCODES = 8


def bucket(length: int, least: int = _LEAST_QUESTION) -> int:
    """What a length is padded to: a power of two."""
    return max(least, 1 << (length - 1).bit_length())


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateShape:
    """Sizes of the state; a group's.

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
        cls,
        questions: Sequence[int],
        *,
        longest_question: int,
        longest_answer: int,
        batch_size: int,
        groups: int = 1,
        tensor: int = 1,
    ) -> StateShape:
        """For so many questions an image: few rows an image, but enough that all are busy.

        Args:
            questions: of each image.
            batch_size: rows of all groups together; rounded up to what divides.
            tensor: devices of a group; each encodes other images.
        """
        rows = -(-batch_size // groups)
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
            encodes=-(-min(-(-images // 4), _MOST_ENCODES) // tensor) * tensor,
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


class NewRequests(NamedTuple):
    """Questions for free rows; `row` is B where there is none.

    Attributes:
        row, image, length, limit: i32[I]; counted within the group.
        tokens: i32[I, T].
        seed: u32[I].
    """

    row: Any
    image: Any
    tokens: Any
    length: Any
    limit: Any
    seed: Any


class RefillThreshold(NamedTuple):
    """When to stop decoding: when so many rows are free, or all.

    Attributes:
        useful: bool[groups], whose free rows count: those with questions to put there.
        free: i32[], of these groups together.
    """

    useful: Any
    free: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled functions. Their arguments' sizes are those of all groups together.

    Attributes:
        start: `() -> (prefixes, rows)`, nothing in them.
        encode: `(params, images u8[E, S, S, 3]) -> visual tokens [E, P, D]`.
        prefill: `(params, prefixes, visual, slot i32[E]) -> prefixes`; slot G: no image.
        insert: `(params, prefixes, rows, Insert) -> rows`.
        decode: `(params, prefixes, rows, Until) -> rows`.
        placement: where parameters live, and arrays of rows (`batch`).
        images: where images to encode live.
        groups: how many there are.
    """

    start: Callable[[], tuple[Cache, Rows]]
    encode: Callable[..., jax.Array]
    prefill: Callable[..., Cache]
    insert: Callable[..., Rows]
    decode: Callable[..., Rows]
    placement: Placement
    images: NamedSharding
    groups: int


@functools.lru_cache(maxsize=16)
def placement(config: ModelConfig, mesh: Mesh) -> Placement:
    """Where the parameters of a model live; raises EarthGPTError where the mesh does not divide them."""
    return rules.placement(config, earthgpt.abstract(config)[1], mesh=mesh)


@functools.lru_cache(maxsize=16)
def _shardings(config: ModelConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    return placement(config, mesh).shardings(earthgpt.abstract(config)[1])


@functools.lru_cache(maxsize=16)
def _encoder(graphdef: nnx.GraphDef, config: ModelConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    """Apart from the other programs because it takes longest to compile and does not depend on a layout.

    Every device encodes its own images, those along `tensor` too, with whole encoders: they are small.
    """
    place = placement(config, mesh)

    def encode(params: Params, images: jax.Array) -> jax.Array:
        model: EarthGPT = merge_module(graphdef, params)
        return model.perceive(model.encode(images))

    small = ("vit/", "convnext/", "perception/", "projector/")
    given = {path: P() if path.startswith(small) else spec for path, spec in place.specs.items()}
    mapped = jax.shard_map(encode, mesh=mesh, in_specs=(given, P(AXES)), out_specs=P(AXES), check_vma=False)
    each = NamedSharding(mesh, P(AXES))
    return jax.jit(mapped, in_shardings=(_shardings(config, mesh), each), out_shardings=place.batch)


@functools.lru_cache(maxsize=16)
def build_programs(
    graphdef: nnx.GraphDef,
    *,
    config: ModelConfig,
    prefix: tuple[tuple[int, ...], tuple[int, ...]],
    layout: StateShape,
    stop: StopCondition,
    sampling: Sampling,
    mesh: Mesh,
) -> Programs:
    """Programs for a model and a layout; compiled at their first call, and shared by all who ask for the same.

    Args:
        prefix: tokens and image slots in front of every question.
        mesh: with the axes of `sharding.mesh`; its devices need not be there if nothing is run.
    """
    place = placement(config, mesh)
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    slots = layout.question_slots + layout.answer_slots
    window = max((len(separator) for separator in stop.separators), default=1)
    length = len(prefix[0])
    grouped = functools.partial(each_group, groups)

    def empty(batch: int, slots: int) -> Cache:
        cache = empty_cache(config.llm, batch=batch, slots=slots, dtype=config.compute_dtype)
        return Cache(*(constrain(x, None, ROWS, None, "tensor") for x in cache))

    def start() -> tuple[Cache, Rows]:
        rows = groups * layout.rows
        zeros = jnp.zeros(rows, jnp.int32)
        return heads_first(empty(groups * layout.images, length)), Rows(
            cache=heads_first(empty(rows, slots)),
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
            cache=empty(len(visual), length),
        )
        assert cache is not None
        return Cache(
            *(
                grouped(lambda old, at, new: old.at[:, at].set(new), old, slot, new, axes=(1, 0, 1), out=1)
                for old, new in zip(prefixes, heads_first(cache), strict=True)
            )
        )

    def ended(tail: jax.Array) -> jax.Array:
        found = tail[:, -1] == stop.eos_id
        for separator in stop.separators:
            found |= jnp.all(tail[:, -len(separator) :] == jnp.asarray(separator), axis=1)
        return found

    def insert(params: Params, prefixes: Cache, rows: Rows, new: NewRequests) -> Rows:
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
            groups=groups,
        )
        last = jnp.take_along_axis(hidden, (new.length - 1)[:, None, None], axis=1)
        zeros = jnp.zeros_like(new.length)
        token, logprob = sample_tokens(model.llm.logits(last)[:, 0], sampling=sampling, seeds=new.seed, steps=zeros)
        tail = jnp.full((len(token), window), -1).at[:, -1].set(token)

        def put(old: jax.Array, values: jax.Array) -> jax.Array:
            return grouped(lambda old, at, values: old.at[at].set(values), old, new.row, values, axes=(0, 0, 0))

        def put_first(old: jax.Array, values: jax.Array) -> jax.Array:
            return grouped(lambda old, at, values: old.at[at, 0].set(values), old, new.row, values, axes=(0, 0, 0))

        def put_cache(old: jax.Array, values: jax.Array) -> jax.Array:
            return grouped(
                lambda old, at, values: old.at[:, at, :, :width].set(values),
                old, new.row, values, axes=(1, 0, 1), out=1,
            )  # fmt: skip

        return Rows(
            cache=Cache(*map(put_cache, rows.cache, cache)),
            length=put(rows.length, new.length),
            token=put(rows.token, token),
            tail=put(rows.tail, tail),
            made=put(rows.made, jnp.ones_like(new.length)),
            limit=put(rows.limit, new.limit),
            active=put(rows.active, ~ended(tail) & (new.limit > 1)),
            output=put_first(rows.output, token),
            logprobs=put_first(rows.logprobs, logprob),
            seed=put(rows.seed, new.seed),
        )

    def decode(params: Params, prefixes: Cache, rows: Rows, until: RefillThreshold) -> Rows:
        model: EarthGPT = merge_module(graphdef, params)
        row = jnp.tile(jnp.arange(layout.rows), groups)

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
            token, logprob = sample_tokens(logits, sampling=sampling, seeds=rows.seed, steps=rows.made)
            token = jnp.where(rows.active, token, rows.token)
            tail = jnp.concatenate([rows.tail[:, 1:], token[:, None]], axis=1)
            # A row that has ended writes nowhere: index B is beyond the arrays.
            at = jnp.where(rows.active, row, layout.rows)

            def put(old: jax.Array, values: jax.Array) -> jax.Array:
                return grouped(
                    lambda old, at, made, values: old.at[at, made].set(values), old, at, rows.made, values,
                    axes=(0, 0, 0, 0),
                )  # fmt: skip

            def put_cache(old: jax.Array, new: jax.Array) -> jax.Array:
                return grouped(
                    lambda old, at, slot, new: old.at[:, at, :, slot].set(new[:, :, :, 0].swapaxes(0, 1)),
                    old, at, rows.length, new, axes=(1, 0, 0, 1), out=1,
                )  # fmt: skip

            made = rows.made + rows.active
            return Rows(
                cache=Cache(*map(put_cache, rows.cache, cache)),
                length=rows.length + rows.active,
                token=token,
                tail=tail,
                made=made,
                limit=rows.limit,
                active=rows.active & ~ended(tail) & (made < rows.limit),
                output=put(rows.output, token),
                logprobs=put(rows.logprobs, logprob),
                seed=rows.seed,
            )

        def more(rows: Rows) -> jax.Array:
            free = jnp.sum(~rows.active.reshape(groups, layout.rows), axis=1)
            return jnp.any(rows.active) & (jnp.sum(jnp.where(until.useful, free, 0)) < until.free)

        return jax.lax.while_loop(more, step, rows)

    weights = _shardings(config, mesh)
    cached = NamedSharding(mesh, P(None, ROWS, "tensor"))  # L B K S H
    # The same tuples with a sharding at each place; `_make`, unlike their constructors, is not typed for arrays.
    prefixes = Cache._make([cached] * len(Cache._fields))
    state = Rows._make([prefixes, *[place.batch] * (len(Rows._fields) - 1)])
    new = NewRequests._make([place.batch] * len(NewRequests._fields))
    until = RefillThreshold._make([place.batch, place.whole])

    def compiled(function: Callable, *arguments: Any, out: Any, donated: int | None = None) -> Callable:
        def about(*values: Any) -> Any:
            with mesh_lib.use(mesh):
                return function(*values)

        about.__name__ = function.__name__  # what profiles call it
        return jax.jit(
            about, in_shardings=arguments, out_shardings=out, donate_argnums=() if donated is None else donated
        )

    return Programs(
        start=compiled(start, out=(prefixes, state)),
        encode=_encoder(graphdef, config, mesh),
        prefill=compiled(prefill, weights, prefixes, place.batch, place.batch, out=prefixes, donated=1),
        insert=compiled(insert, weights, prefixes, state, new, out=state, donated=2),
        decode=compiled(decode, weights, prefixes, state, until, out=state, donated=2),
        placement=place,
        images=NamedSharding(mesh, P(AXES)),
        groups=groups,
    )
