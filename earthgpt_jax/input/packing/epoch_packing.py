"""The packed sequences of every epoch over samples of known lengths.

How samples pack depends on how many there are of each length, not on which they are, and that is the same in every
epoch. Bin packing therefore runs once and gives patterns, such as "312 sequences of 900 + 700 + 448 tokens". An epoch
only shuffles its samples and assigns them to the patterns. Every epoch has the same number of sequences, and any
sequence is found without computing those before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from earthgpt_jax.common.digests import fingerprint
from earthgpt_jax.input.packing.bins import pack


class EpochPacking:
    """Random access to the packed sequences of all epochs; each epoch holds every sample exactly once.

    Args:
        tokens: Tokens of each of N samples, with the image's.
        images: Images of each sample.
        seq_len: T, tokens of a sequence.
        max_images: I, images of a sequence.
        seed: Seeds the order of the sequences and which samples share one. Both depend on (seed, epoch) alone.

    Attributes:
        patterns: The result of bin packing.
        packing_efficiency: Share of tokens that are not padding.
    """

    def __init__(
        self,
        tokens: Int[np.ndarray, " N"],
        images: Int[np.ndarray, " N"],
        *,
        seq_len: int,
        max_images: int,
        seed: int,
    ):
        tokens, images = np.asarray(tokens, np.int64), np.asarray(images, np.int64)
        base = int(images.max(initial=0)) + 1
        codes = tokens * base + images
        histogram = np.bincount(codes, minlength=1)
        distinct = np.flatnonzero(histogram)
        counts, numbers = histogram[distinct], np.cumsum(histogram > 0) - 1
        # NumPy sorts integers of up to 16 bits in linear time.
        self._size_number = numbers.astype(np.min_scalar_type(len(distinct)))[codes]
        sizes = [divmod(int(code), base) for code in distinct]
        self.patterns = pack(dict(zip(sizes, counts.tolist(), strict=True)), seq_len=seq_len, max_images=max_images)
        self._seq_len, self._seed, self._samples = seq_len, seed, len(tokens)
        self._ends = np.cumsum([pattern.count for pattern in self.patterns])
        # For each slot of each pattern: where its samples begin among all samples sorted by size.
        next_sample = np.concatenate([[0], np.cumsum(counts)])[:-1]
        number = {size: i for i, size in enumerate(sizes)}
        self._starts: list[np.ndarray] = []
        for pattern in self.patterns:
            starts = np.empty(len(pattern.sizes), np.int64)
            for slot, size in enumerate(pattern.sizes):
                starts[slot] = next_sample[number[size]]
                next_sample[number[size]] += pattern.count
            self._starts.append(starts)
        self.packing_efficiency = float(tokens.sum()) / max(1, self.sequences_per_epoch * seq_len)

    @property
    def sequences_per_epoch(self) -> int:
        """Number of sequences in each epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def sequence(self, number: int) -> Sequence[int]:
        """Return the samples of a sequence, numbered through all epochs."""
        epoch, place = divmod(int(number), self.sequences_per_epoch)
        sequences, samples = self._order(epoch)
        slot = int(sequences[place])
        pattern = int(np.searchsorted(self._ends, slot, side="right"))
        within = slot - (int(self._ends[pattern - 1]) if pattern else 0)
        return samples[self._starts[pattern] + within].tolist()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}  # recomputed after unpickling

    @functools.cached_property
    def _order(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """A function of the epoch that returns its order of sequences, and its samples sorted by size."""

        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng((self._seed, epoch))
            sequences, shuffled = rng.permutation(self.sequences_per_epoch), rng.permutation(self._samples)
            return sequences, shuffled[np.argsort(self._size_number[shuffled], kind="stable")]

        return order

    def fingerprint(self) -> str:
        """Return a fingerprint of everything that the sequences depend on."""
        patterns = [(pattern.sizes, pattern.count) for pattern in self.patterns]
        return fingerprint(repr((self._seq_len, self._seed, patterns)), self._size_number.astype("<i4").tobytes())
