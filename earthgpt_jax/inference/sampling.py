"""How a token is chosen of its logits."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.common.errors import EarthGPTError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Greedy at temperature 0; otherwise drawn from the nucleus (arXiv 1904.09751).

    Attributes:
        temperature: logits are divided by it.
        top_p: only the likeliest tokens that together reach this probability are drawn from.
        seed: with a question's id it decides every draw, so that an answer does not depend on its batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or not 0 <= self.seed < 2**32:
            raise EarthGPTError(
                "sampling: expected a temperature from 0 on, top_p in (0, 1] and a seed from 0 to 2^32 - 1, "
                f"got {self.temperature}, {self.top_p} and {self.seed}"
            )

    def describe(self) -> str:
        """What the header of predictions says."""
        if not self.temperature:
            return "greedy"
        return f"temperature {self.temperature}, top_p {self.top_p}, seed {self.seed}"


GREEDY = Sampling()


def request_seed(name: str) -> int:
    """A question's own number, uint32."""
    return sha256_int(name, size=4, byteorder="little")


def sample_tokens(
    logits: jax.Array, *, sampling: Sampling, seeds: jax.Array, steps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Tokens i32[B] and their log-probabilities f32[B] under the model itself (temperature 1, all tokens).

    Args:
        logits: f32[B, V].
        seeds: u32[B], `seed_of` the questions.
        steps: i32[B], how many tokens each answer has.
    """
    if sampling.temperature:
        keys = jax.vmap(lambda seed, step: jax.random.fold_in(jax.random.fold_in(_key(sampling), seed), step))(
            seeds, steps
        )
        tokens = jax.vmap(jax.random.categorical)(keys, nucleus(logits / sampling.temperature, top_p=sampling.top_p))
    else:
        tokens = jnp.argmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def _key(sampling: Sampling) -> jax.Array:
    return jax.random.key(sampling.seed)


def nucleus(logits: jax.Array, *, top_p: float) -> jax.Array:
    """Logits f32[B, V] with -inf outside the smallest set of likeliest tokens that reaches `top_p`."""
    if top_p == 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)
