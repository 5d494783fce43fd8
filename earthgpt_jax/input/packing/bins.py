"""Which samples share a row: a packing of lengths, computed once, and from it any row of any epoch.

Packing depends on how many samples there are of each length, not on which they are, and that is the same in
every epoch. So the patterns (rows of 900 + 700 + 448 tokens: 312 of them) are solved once; an epoch only
deals its shuffled samples out to them. Every epoch has the same number of rows, and any row is found without
the rows before it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import fingerprint
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.packing.bin_filling import Remaining, Size


@dataclasses.dataclass(frozen=True)
class SequencePattern:
    """`rows` rows that hold one sample of each of `sizes`."""

    sizes: tuple[Size, ...]
    rows: int


def pack(counts: Mapping[Size, int], *, tokens: int, images: int) -> tuple[SequencePattern, ...]:
    """Rows for `counts` samples of each size, nearly full ones.

    Again and again the longest sample left opens a row, the fullest company for it is found among all that is left
    (minimum bin slack: Gupta and Ho, 1999), and as many rows are filled alike as there are samples for. The time
    depends on the number of sizes, not of samples.

    Raises:
        EarthGPTError: a sample is larger than a row.
    """
    sizes = sorted(size for size, count in counts.items() if count)
    for length, shown in sizes:
        if length > tokens or shown > images:
            raise EarthGPTError(
                f"packing: {counts[length, shown]} samples of {length} tokens and {shown} images do not fit into rows "
                f"of {tokens} tokens and {images} images; make rows longer, or split such samples"
            )
    remaining, patterns = Remaining(counts, tokens=tokens), []
    while (first := remaining.longest()) is not None:
        row = collections.Counter([first, *remaining.company(first, images=images)])
        patterns.append(SequencePattern(tuple(row.elements()), remaining.take(row)))
    return tuple(patterns)


class EpochPacking:
    """The rows of every epoch over samples of known sizes.

    Args:
        lengths: i[N], tokens of each sample, shared image tokens included.
        images: i[N], images of each sample.
        tokens: T, of a row.
        max_images: I, of a row.
        seed: another seed is another order and another company in every row.

    Every sample occurs exactly once in an epoch. The order depends on (seed, epoch) alone.
    """

    def __init__(self, lengths: np.ndarray, images: np.ndarray, *, tokens: int, max_images: int, seed: int):
        lengths, images = np.asarray(lengths, np.int64), np.asarray(images, np.int64)
        base = int(images.max(initial=0)) + 1
        every = lengths * base + images
        times = np.bincount(every, minlength=1)
        codes = np.flatnonzero(times)
        counts, places = times[codes], np.cumsum(times > 0) - 1
        # Sixteen bits, where they do, are sorted in linear time.
        self._kind = places.astype(np.min_scalar_type(len(codes)))[every]
        names = [divmod(int(code), base) for code in codes]
        self.patterns = pack(dict(zip(names, counts.tolist(), strict=True)), tokens=tokens, images=max_images)
        self.tokens, self._seed, self._size = tokens, seed, len(lengths)
        self._ends = np.cumsum([pattern.rows for pattern in self.patterns])
        # For each slot of each pattern: where its samples begin in the samples sorted by size.
        taken = np.concatenate([[0], np.cumsum(counts)])[:-1]
        index = {name: i for i, name in enumerate(names)}
        self._starts: list[np.ndarray] = []
        for pattern in self.patterns:
            starts = np.empty(len(pattern.sizes), np.int64)
            for slot, size in enumerate(pattern.sizes):
                starts[slot] = taken[index[size]]
                taken[index[size]] += pattern.rows
            self._starts.append(starts)
        self.packing_efficiency = float(lengths.sum()) / max(1, self.rows * tokens)

    @property
    def rows(self) -> int:
        """Of an epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> Sequence[int]:
        """The samples of row `row`, counted through all epochs."""
        epoch, place = divmod(int(row), self.rows)
        rows, samples = self._order(epoch)
        slot = int(rows[place])
        which = int(np.searchsorted(self._ends, slot, side="right"))
        within = slot - (int(self._ends[which - 1]) if which else 0)
        return samples[self._starts[which] + within].tolist()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}  # made again where needed

    @functools.cached_property
    def _order(self):
        @functools.lru_cache(maxsize=2)
        def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            rng = np.random.default_rng((self._seed, epoch))
            rows, shuffled = rng.permutation(self.rows), rng.permutation(self._size)
            return rows, shuffled[np.argsort(self._kind[shuffled], kind="stable")]

        return order

    def fingerprint(self) -> str:
        """Of everything that the order depends on."""
        return fingerprint(repr((self.tokens, self._seed, self.patterns)), self._kind.astype("<i4").tobytes())
