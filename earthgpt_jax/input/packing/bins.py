"""Bin packing over a histogram of sample sizes, by minimum bin slack (Gupta and Ho, 1999).

The longest remaining sample opens a sequence, and the remaining samples that fill it best are added. The result is
used for as many sequences as there are samples for. The time depends on the number of distinct sizes, not on the number
of samples. `scripts/bench/bin_packing.py` compares it with best-fit decreasing.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from earthgpt_jax.common.errors import EarthGPTError

Size = tuple[int, int]  # tokens and images of a sample


@dataclasses.dataclass(frozen=True)
class SequencePattern:
    """`count` sequences, each of which holds one sample of each of `sizes`."""

    sizes: tuple[Size, ...]
    count: int


def pack(counts: Mapping[Size, int], *, seq_len: int, max_images: int) -> tuple[SequencePattern, ...]:
    """Pack samples into sequences of at most `seq_len` tokens and `max_images` images.

    Args:
        counts: Size -> number of samples.

    Raises:
        EarthGPTError: A sample does not fit into a sequence.

    Example:
        >>> pack({(8, 1): 5, (2, 1): 5}, seq_len=10, max_images=2)
        (SequencePattern(sizes=((8, 1), (2, 1)), count=5),)
    """
    for tokens, images in sorted(size for size, count in counts.items() if count):
        if tokens > seq_len or images > max_images:
            raise EarthGPTError(
                f"packing: {counts[tokens, images]} samples of {tokens} tokens and {images} images do not fit into "
                f"sequences of {seq_len} tokens and {max_images} images; raise data.seq_len, or split such samples"
            )
    remaining, patterns = Remaining(counts, seq_len=seq_len), []
    while (first := remaining.longest()) is not None:
        sizes = collections.Counter([first, *remaining.best_fill(first, max_images=max_images)])
        patterns.append(SequencePattern(tuple(sizes.elements()), remaining.take(sizes)))
    return tuple(patterns)


class Remaining:
    """The samples that are not packed yet, counted by size.

    Args:
        counts: Size -> number of samples, all of which fit into a sequence.
        seq_len: Tokens of a sequence.
    """

    def __init__(self, counts: Mapping[Size, int], *, seq_len: int):
        self._counts = {size: count for size, count in sorted(counts.items()) if count}
        self._seq_len = seq_len
        images = {images for _, images in self._counts}
        self._images = images.pop() if len(images) == 1 else None  # images per sample, if all have the same number
        # Bit sets of the lengths t that remain: bit t of one, bit seq_len - t of the other.
        self._lengths = self._mirrored = 0
        if self._images is not None:
            self._lengths = sum(1 << tokens for tokens, _ in self._counts)
            self._mirrored = sum(1 << (seq_len - tokens) for tokens, _ in self._counts)

    def longest(self) -> Size | None:
        """Return the size with the most tokens, or None if no sample remains."""
        return next(reversed(self._counts), None)

    def take(self, sizes: collections.Counter[Size]) -> int:
        """Remove these samples as often as possible, and return how often."""
        times = min(self._counts[size] // count for size, count in sizes.items())
        for size, count in sizes.items():
            self._counts[size] -= times * count
            if not self._counts[size]:
                del self._counts[size]
                if self._images is not None:
                    self._lengths ^= 1 << size[0]
                    self._mirrored ^= 1 << (self._seq_len - size[0])
        return times

    def best_fill(self, first: Size, *, max_images: int) -> list[Size]:
        """Return the samples that fill a sequence opened by `first` best: no other choice has more tokens."""
        free, free_images = self._seq_len - first[0], max_images - first[1]
        self._counts[first] -= 1
        try:
            if self._images is None:
                return _subset_sum(self._counts, free=free, free_images=free_images)
            if free < next(iter(self._counts))[0]:
                return []
            # Two shortcuts find most fills without the subset sum over all sizes.
            most = free_images // self._images if self._images else free
            lengths = self._longest_ones(free, most) or self._exact_fill(free, most)
            if lengths is None:
                return _subset_sum(self._counts, free=free, free_images=free_images)
            return [(length, self._images) for length in lengths]
        finally:
            self._counts[first] += 1

    def _longest_ones(self, free: int, most: int) -> list[int] | None:
        """Return the `most` longest lengths if they fit together: then the limit on images decides, not the tokens."""
        descending = itertools.chain.from_iterable(
            itertools.repeat(length, count) for (length, _), count in reversed(self._counts.items())
        )
        chosen = []
        for length in itertools.islice(descending, most):
            free -= length
            if free < 0:
                return None
            chosen.append(length)
        return chosen

    def _exact_fill(self, free: int, most: int) -> list[int] | None:
        """Return up to `most` lengths whose sum is `free`, as few as a quick search finds; None if it finds none."""
        (longest, images), (shortest, _) = next(reversed(self._counts)), next(iter(self._counts))
        for count in range(-(-free // longest), min(most, free // shortest) + 1):
            for lengths in self._sums(free, count, shortest=shortest, longest=longest):
                needed = collections.Counter((length, images) for length in lengths)
                if all(self._counts[size] >= times for size, times in needed.items()):
                    return lengths
        return None

    def _sums(self, free: int, count: int, *, shortest: int, longest: int) -> Iterator[list[int]]:
        """Yield lists of `count` lengths whose sum is `free`; a length may occur more often than samples remain.

        All but three lengths are close to an equal share. The shortest of the last three is tried from a third of the
        rest downwards, and the other two follow from the bit sets. Short samples are thus kept for sequences that
        nothing else fills.
        """
        chosen: list[int] = []
        while count > 3:
            chosen.append(self._at_most(free // count))
            free, count = free - chosen[-1], count - 1
        if count == 1 and self._lengths >> free & 1:
            yield [free]
        elif count == 2:
            yield from ([length, free - length] for length in self._larger_halves(free))
        elif count == 3:
            least = max(shortest, free - 2 * longest)
            length = self._at_most(free // 3)
            while length >= least:
                if half := next(self._larger_halves(free - length), 0):
                    yield [*chosen, half, free - length - half, length]
                length = self._at_most(length - 1)

    def _at_most(self, length: int) -> int:
        """Return the longest remaining length up to `length`, or 0."""
        return max(0, (self._lengths & ((2 << length) - 1)).bit_length() - 1)

    def _larger_halves(self, total: int) -> Iterator[int]:
        """Yield the larger of two remaining lengths whose sum is `total`, in ascending order."""
        half = -(-total // 2)
        pairs = (self._lengths & (self._mirrored >> (self._seq_len - total))) >> half
        while pairs:
            lowest = pairs & -pairs
            yield half + lowest.bit_length() - 1
            pairs ^= lowest


def _subset_sum(counts: dict[Size, int], *, free: int, free_images: int) -> list[Size]:
    """Return the sizes with the largest sum of tokens up to `free`, trying the longest first.

    Reachable sums are bits of an integer: `tokens` of `images` images is bit `images * stride + tokens`, so adding a
    sample is a shift. A stride is twice as long as `free`, so that sums beyond it stay in bits that are masked.
    """
    stride = 2 * (free + 1)
    lane = (1 << (free + 1)) - 1
    allowed = sum(lane << (images * stride) for images in range(free_images + 1))
    full = sum(1 << (images * stride + free) for images in range(free_images + 1))
    reached, steps = 1, []
    for size, count in reversed(counts.items()):
        tokens, images = size
        if tokens > free:
            continue
        new = reached
        for _ in range(min(count, free // tokens)):
            new = (new << (images * stride + tokens)) & allowed & ~reached
            if not new:
                break
            reached |= new
            steps.append((size, new))
        if reached & full:
            break
    lanes = [reached >> (images * stride) & lane for images in range(free_images + 1)]
    best = max(sums.bit_length() for sums in lanes) - 1
    used = next(images for images, sums in enumerate(lanes) if sums.bit_length() == best + 1)
    chosen, bit = [], used * stride + best
    for size, new in reversed(steps):  # each sum was reached in a later step than the sum that it extends
        if new >> bit & 1:
            chosen.append(size)
            bit -= size[1] * stride + size[0]
    return chosen
