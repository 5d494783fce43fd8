"""Generation on a state of fixed size: prefill image prefixes, insert questions into slots, generate tokens.

The pure functions are here; `inference.programs` compiles them for a mesh. Vocabulary, as in JetStream:

    slot      the place of one answer in the decode state; a slot whose answer has ended takes the next question
    prefix    the tokens in front of every question about an image (BOS, the image, the system text); prefilled once
    prefill   write the prefix of an image into the prefix cache
    insert    prefill questions and put them into free slots
    generate  extend the answers in all slots, one token each per step

The devices at one coordinate of the `data` and `fsdp` axes form a *group*: they hold the same slots and split heads,
ffn channels and vocabulary among them. Each group holds `StateShape.images` images with `slots_per_image` slots each;
the arrays of all groups are concatenated. A question stays in the group of its image, so no cache is ever sent.

Dim letters: B slots of all groups, R inserted requests, I image prefixes of all groups, P tokens of a prefix, S cached
tokens of a slot (question and answer), A answer tokens, W tokens that a stop sequence may have.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.inference.sampling import Sampling, sample_tokens
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.models.llama import CachedAttention
from earthgpt_jax.ops.kv_cache import Cache, empty_cache
from earthgpt_jax.ops.shared_prefix import SharedPrefixAttention, per_group
from earthgpt_jax.sharding.mesh import BATCH_AXES, constrain

# Sizes are rounded up to powers of two from these on, so that similar workloads share their compiled programs.
_MIN_QUESTION_BUCKET, _MIN_QUESTION_TOKENS, _MIN_ANSWER_TOKENS = 16, 64, 16
_MAX_ENCODE_BATCH = 8


def bucket(length: int, least: int = _MIN_QUESTION_BUCKET) -> int:
    """Return the length that `length` is padded to: the next power of two, at least `least`."""
    return max(least, 1 << (length - 1).bit_length())


NO_TOKEN = -1  # no token has this id


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopCondition:
    """When an answer ends: at `eos_id`, or after any of the token sequences `separators`, which stay in the output.

    `eos_id` is NO_TOKEN if the tokenizer has no EOS.
    """

    eos_id: int
    separators: tuple[tuple[int, ...], ...]

    @property
    def window(self) -> int:
        """Number of tokens that must be kept to recognize the end."""
        return max((len(separator) for separator in self.separators), default=1)


class ImagePrefix(NamedTuple):
    """The tokens in front of every question, and their image slots (see `EarthGPT.embed`)."""

    tokens: tuple[int, ...]
    image_slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateShape:
    """Sizes of the decode state of one device group.

    Attributes:
        images: images that are resident at a time.
        slots_per_image: slots of each image.
        question_tokens: capacity of a slot for the question.
        answer_tokens: capacity of a slot for the answer.
        insert_batch: requests that one insertion takes.
        encode_batch: images that one encoder call takes.
    """

    images: int
    slots_per_image: int
    question_tokens: int
    answer_tokens: int
    insert_batch: int
    encode_batch: int

    @property
    def slots(self) -> int:
        """Slots of the group."""
        return self.images * self.slots_per_image

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
        """Choose sizes for a workload: few slots per image, but enough to keep all slots busy.

        Args:
            questions: number of questions about each image.
            longest_question: in tokens.
            longest_answer: in tokens.
            batch_size: slots of all groups together; rounded up to what divides.
            groups: number of device groups.
            tensor: devices per group; each encodes other images.
        """
        slots = -(-batch_size // groups)
        most = max(questions)
        wanted = max(sum(questions) / len(questions) / 8, batch_size / len(questions))
        per_image = 1
        while per_image < wanted and per_image < most and per_image * 2 <= slots:
            per_image *= 2
        images = -(-slots // per_image)
        return cls(
            images=images,
            slots_per_image=per_image,
            question_tokens=bucket(longest_question, _MIN_QUESTION_TOKENS),
            answer_tokens=bucket(longest_answer, _MIN_ANSWER_TOKENS),
            insert_batch=-(-images * per_image // 4),
            encode_batch=-(-min(-(-images // 4), _MAX_ENCODE_BATCH) // tensor) * tensor,
        )


class DecodeState(NamedTuple):
    """The answers being generated, one per slot.

    Attributes:
        cache: keys and values of the tokens after the image prefix, [L, B, K, S, H].
        length: number of tokens in the cache.
        token: the newest token, which is not in the cache yet.
        tail: the newest W tokens of the answer, to recognize stop sequences; -1 before the first token.
        generated: number of tokens of the answer.
        max_tokens: the answer is cut off at this number of tokens.
        active: whether the answer is unfinished.
        tokens: the answer.
        logprobs: log-probability of each token of the answer, under the model itself.
        seed: selects the random numbers of the request.
    """

    cache: Cache
    length: Int[Array, " B"]
    token: Int[Array, " B"]
    tail: Int[Array, "B W"]
    generated: Int[Array, " B"]
    max_tokens: Int[Array, " B"]
    active: Bool[Array, " B"]
    tokens: Int[Array, "B A"]
    logprobs: Float[Array, "B A"]
    seed: UInt[Array, " B"]


class NewRequests(NamedTuple):
    """Requests to insert, as NumPy or JAX arrays; indices count within the device group.

    Attributes:
        slot: i32[R], slot of each request; `StateShape.slots`, which is out of bounds, for padding.
        image: i32[R], index of the image prefix.
        tokens: i32[R, T], the questions, padded on the right.
        length: i32[R], tokens of each question.
        max_tokens: i32[R], longest answer.
        seed: u32[R], see `sampling.request_seed`.
    """

    slot: Any
    image: Any
    tokens: Any
    length: Any
    max_tokens: Any
    seed: Any


class RefillThreshold(NamedTuple):
    """When to stop generating and insert new requests.

    Attributes:
        groups: bool[groups], the device groups that have requests waiting.
        free_slots: i32[], generation stops once these groups together have this many free slots.
    """

    groups: Any
    free_slots: Any


def init(
    config: ModelConfig, shape: StateShape, *, prefix_length: int, stop: StopCondition, groups: int
) -> tuple[Cache, DecodeState]:
    """Return an empty prefix cache, [L, I, K, P, H], and a decode state whose slots are all free."""
    slots = groups * shape.slots
    zeros = jnp.zeros(slots, jnp.int32)
    state = DecodeState(
        cache=_empty(config, slots, shape.question_tokens + shape.answer_tokens).heads_first(),
        length=zeros,
        token=zeros,
        tail=jnp.zeros((slots, stop.window), jnp.int32),
        generated=zeros,
        max_tokens=zeros,
        active=jnp.zeros(slots, bool),
        tokens=jnp.zeros((slots, shape.answer_tokens), jnp.int32),
        logprobs=jnp.zeros((slots, shape.answer_tokens)),
        seed=zeros.astype(jnp.uint32),
    )
    return _empty(config, groups * shape.images, prefix_length).heads_first(), state


def _empty(config: ModelConfig, batch: int, slots: int) -> Cache:
    cache = empty_cache(config.llm, batch=batch, slots=slots, dtype=config.compute_dtype)
    return Cache(*(constrain(x, None, BATCH_AXES, None, "tensor") for x in cache))


def prefill(
    model: EarthGPT,
    prefixes: Cache,
    visual_tokens: Float[Array, "E P D"],
    index: Int[Array, " E"],
    *,
    prefix: ImagePrefix,
    groups: int,
) -> Cache:
    """Prefill the prefixes of E images and write them into the prefix cache.

    Args:
        model: the model.
        prefixes: [L, I, K, P, H].
        visual_tokens: result of `EarthGPT.project`.
        index: entry of the prefix cache for each image, within its group; out of bounds for padding.
        prefix: text and image slots of the prefix, the same for all images.
        groups: number of device groups.

    Returns:
        The updated prefix cache.
    """
    batch, length = len(visual_tokens), len(prefix.tokens)
    tokens, image_slots = (jnp.broadcast_to(jnp.asarray(of), (batch, length)) for of in prefix)
    order = jnp.arange(length)
    causal = jnp.broadcast_to(order[:, None] >= order, (batch, length, length))
    attention = CachedAttention(cache=_empty(model.config, batch, length), mask=causal)
    out = model(tokens, image_slots=image_slots, visual_tokens=visual_tokens, attention=attention)
    assert out.cache is not None

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        return per_group(groups, lambda old, i, new: old.at[:, i].set(new), old, index, new, axes=(1, 0, 1), out=1)

    return Cache(*map(write, prefixes, out.cache.heads_first()))


def insert(
    model: EarthGPT,
    prefixes: Cache,
    state: DecodeState,
    new: NewRequests,
    *,
    stop: StopCondition,
    sampling: Sampling,
    groups: int,
) -> DecodeState:
    """Prefill questions after their image prefixes, sample their first tokens, and put them into their slots."""
    batch, width = new.tokens.shape
    order = jnp.arange(width)
    attention = SharedPrefixAttention(
        prefixes=prefixes,
        mask=jnp.broadcast_to(order[:, None] >= order, (batch, width, width)),
        prefix_index=new.image,
        groups=groups,
    )
    positions = jnp.broadcast_to(_prefix_length(prefixes) + order, new.tokens.shape)
    out = model(new.tokens, positions=positions, attention=attention)
    last = jnp.take_along_axis(out.hidden, (new.length - 1)[:, None, None], axis=1)
    first_step = jnp.zeros_like(new.length)
    token, logprob = sample_tokens(model.llm.logits(last)[:, 0], sampling=sampling, seeds=new.seed, steps=first_step)
    tail = jnp.full((batch, stop.window), -1).at[:, -1].set(token)

    def put(old: jax.Array, values: jax.Array) -> jax.Array:
        return per_group(groups, lambda old, i, x: old.at[i].set(x), old, new.slot, values, axes=(0, 0, 0))

    def put_first(old: jax.Array, values: jax.Array) -> jax.Array:
        return per_group(groups, lambda old, i, x: old.at[i, 0].set(x), old, new.slot, values, axes=(0, 0, 0))

    def put_cache(old: jax.Array, values: jax.Array) -> jax.Array:
        return per_group(
            groups, lambda old, i, x: old.at[:, i, :, :width].set(x), old, new.slot, values, axes=(1, 0, 1), out=1
        )

    assert out.cache is not None
    return DecodeState(
        cache=Cache(*map(put_cache, state.cache, out.cache)),
        length=put(state.length, new.length),
        token=put(state.token, token),
        tail=put(state.tail, tail),
        generated=put(state.generated, jnp.ones_like(new.length)),
        max_tokens=put(state.max_tokens, new.max_tokens),
        active=put(state.active, ~has_ended(tail, stop) & (new.max_tokens > 1)),
        tokens=put_first(state.tokens, token),
        logprobs=put_first(state.logprobs, logprob),
        seed=put(state.seed, new.seed),
    )


def generate(
    model: EarthGPT,
    prefixes: Cache,
    state: DecodeState,
    threshold: RefillThreshold,
    *,
    stop: StopCondition,
    sampling: Sampling,
    groups: int,
) -> DecodeState:
    """Generate tokens in all active slots until enough slots are free for new requests, or none is active."""

    def unfinished(state: DecodeState) -> Bool[Array, ""]:
        free = jnp.sum(~state.active.reshape(groups, -1), axis=1)
        free = jnp.sum(jnp.where(threshold.groups, free, 0))
        return jnp.any(state.active) & (free < threshold.free_slots)

    step = functools.partial(generate_step, model, prefixes, stop=stop, sampling=sampling, groups=groups)
    return jax.lax.while_loop(unfinished, step, state)


def generate_step(
    model: EarthGPT, prefixes: Cache, state: DecodeState, *, stop: StopCondition, sampling: Sampling, groups: int
) -> DecodeState:
    """Extend the answer in every active slot by one token."""
    attention = SharedPrefixAttention(prefixes=prefixes, own=state.cache, own_length=state.length)
    positions = (_prefix_length(prefixes) + state.length)[:, None]
    out = model(state.token[:, None], positions=positions, attention=attention)
    logits = model.llm.logits(out.hidden)[:, 0]
    token, logprob = sample_tokens(logits, sampling=sampling, seeds=state.seed, steps=state.generated)
    token = jnp.where(state.active, token, state.token)
    tail = jnp.concatenate([state.tail[:, 1:], token[:, None]], axis=1)
    # A slot whose answer has ended writes nothing: its index is out of bounds.
    slots = len(state.active) // groups
    slot = jnp.where(state.active, jnp.tile(jnp.arange(slots), groups), slots)

    def put(old: jax.Array, values: jax.Array) -> jax.Array:
        return per_group(
            groups, lambda old, i, j, x: old.at[i, j].set(x), old, slot, state.generated, values, axes=(0, 0, 0, 0)
        )

    def put_cache(old: jax.Array, new: jax.Array) -> jax.Array:
        def write(old: jax.Array, i: jax.Array, j: jax.Array, new: jax.Array) -> jax.Array:
            return old.at[:, i, :, j].set(new[:, :, :, 0].swapaxes(0, 1))

        return per_group(groups, write, old, slot, state.length, new, axes=(1, 0, 0, 1), out=1)

    assert out.cache is not None
    generated = state.generated + state.active
    return DecodeState(
        cache=Cache(*map(put_cache, state.cache, out.cache)),
        length=state.length + state.active,
        token=token,
        tail=tail,
        generated=generated,
        max_tokens=state.max_tokens,
        active=state.active & ~has_ended(tail, stop) & (generated < state.max_tokens),
        tokens=put(state.tokens, token),
        logprobs=put(state.logprobs, logprob),
        seed=state.seed,
    )


def has_ended(tail: Int[Array, "B W"], stop: StopCondition) -> Bool[Array, " B"]:
    """Return which answers have ended, given their newest tokens."""
    ended = tail[:, -1] == stop.eos_id
    for separator in stop.separators:
        ended |= jnp.all(tail[:, -len(separator) :] == jnp.asarray(separator), axis=1)
    return ended


def _prefix_length(prefixes: Cache) -> int:
    return prefixes.k.shape[3]
