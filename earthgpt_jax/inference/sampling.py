"""Choose the next token: greedily, or drawn from the nucleus of its distribution."""

from __future__ import annotations

import dataclasses
import hashlib
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from earthgpt_jax.common.errors import EarthGPTError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Greedy decoding at temperature 0; otherwise nucleus sampling (arXiv 1904.09751).

    Attributes:
        temperature: the logits are divided by it.
        top_p: tokens are drawn from the smallest set of most likely tokens whose probabilities reach this sum.
        seed: together with the id of a request it determines all random numbers of its answer, which therefore does
            not depend on the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or not 0 <= self.seed < 2**32:
            raise EarthGPTError(
                "sampling: expected temperature >= 0, top_p in (0, 1] and seed in 0 to 2^32 - 1, "
                f"got temperature {self.temperature}, top_p {self.top_p} and seed {self.seed}"
            )

    def describe(self) -> str:
        """Return the entry in the header of a predictions file."""
        if not self.temperature:
            return "greedy"
        return f"temperature {self.temperature}, top_p {self.top_p}, seed {self.seed}"


GREEDY = Sampling()


def request_seed(request_id: str) -> int:
    """Return the seed of a request, a uint32 that depends on its id alone."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:4], "little")


def sample_tokens(
    logits: Float[Array, "B V"], *, sampling: Sampling, seeds: UInt[Array, " B"], steps: Int[Array, " B"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Choose one token per sequence.

    Args:
        logits: next-token logits.
        sampling: how to choose.
        seeds: `request_seed` of each sequence.
        steps: number of tokens that each answer has so far.

    Returns:
        The tokens, and their log-probabilities under the model itself (temperature 1, all tokens).
    """
    if sampling.temperature:
        key = jax.random.key(sampling.seed)
        keys = jax.vmap(lambda seed, step: jax.random.fold_in(jax.random.fold_in(key, seed), step))(seeds, steps)
        tokens = jax.vmap(jax.random.categorical)(keys, nucleus(logits / sampling.temperature, top_p=sampling.top_p))
    else:
        tokens = jnp.argmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, axis=-1)


def nucleus(logits: Float[Array, "B V"], *, top_p: float) -> Float[Array, "B V"]:
    """Set the logits outside of the nucleus to -inf.

    The nucleus is the smallest set of most likely tokens whose probabilities add up to `top_p`.
    """
    if top_p == 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # probability of all likelier tokens
    smallest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)
