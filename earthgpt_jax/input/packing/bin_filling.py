"""Samples that no row has yet, and of them the fullest company for one that opens a row."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping

Size = tuple[int, int]  # tokens, images


class Remaining:
    """Samples by size, of which some are taken again and again.

    Args:
        counts: size -> samples; none is larger than a row.
        tokens: T, of a row.
    """

    def __init__(self, counts: Mapping[Size, int], *, tokens: int):
        self._left = {size: count for size, count in sorted(counts.items()) if count}
        self._tokens = tokens
        shown = {images for _, images in self._left}
        self._images = shown.pop() if len(shown) == 1 else None  # of every sample, where it is the same
        # Sets of lengths are the bits of an integer: bit t of one, bit T - t of the other.
        self._present = sum(1 << length for length, _ in self._left) if self._images is not None else 0
        self._mirrored = sum(1 << (tokens - length) for length, _ in self._left) if self._images is not None else 0

    def longest(self) -> Size | None:
        """Of the samples that are left; None if none are."""
        return next(reversed(self._left), None)

    def take(self, sizes: collections.Counter[Size]) -> int:
        """Takes these samples as often as they are there, and says how often."""
        times = min(self._left[size] // count for size, count in sizes.items())
        for size, count in sizes.items():
            self._left[size] -= times * count
            if not self._left[size]:
                del self._left[size]
                if self._images is not None:
                    self._present ^= 1 << size[0]
                    self._mirrored ^= 1 << (self._tokens - size[0])
        return times

    def company(self, first: Size, *, images: int) -> list[Size]:
        """What fills a row best that `first` opens: nothing more of the samples left would fit.

        Args:
            images: I, of a row.
        """
        room, shown = self._tokens - first[0], images - first[1]
        self._left[first] -= 1
        try:
            if self._images is None:
                return _fill(self._left, room=(room, shown))
            if room < next(iter(self._left))[0]:
                return []
            most = shown // self._images if self._images else room
            lengths = self._largest(room, most) or self._exact(room, most)
            if lengths is None:
                return _fill(self._left, room=(room, shown))
            return [(length, self._images) for length in lengths]
        finally:
            self._left[first] += 1

    def _largest(self, room: int, most: int) -> list[int] | None:
        """The longest that are left, where as many as a row shows do not fill it."""
        every = itertools.chain.from_iterable(
            itertools.repeat(length, count) for (length, _), count in reversed(self._left.items())
        )
        chosen = []
        for length in itertools.islice(every, most):
            room -= length
            if room < 0:
                return None
            chosen.append(length)
        return chosen

    def _exact(self, room: int, most: int) -> list[int] | None:
        """Lengths that fill the room to the token, as few as are found at once."""
        (longest, shown), (shortest, _) = next(reversed(self._left)), next(iter(self._left))
        for count in range(-(-room // longest), min(most, room // shortest) + 1):
            for lengths in self._sums(room, count, shortest=shortest, longest=longest):
                wanted = collections.Counter((length, shown) for length in lengths)
                if all(self._left[size] >= times for size, times in wanted.items()):
                    return lengths
        return None

    def _sums(self, room: int, count: int, *, shortest: int, longest: int) -> Iterator[list[int]]:
        """So many lengths whose sum is the room; one may stand there more often than there are samples of it.

        All but three are near their share of the room; the shortest of three is tried from a third of it down; the
        last two are a lookup. What is short is left for rows that nothing else fills.
        """
        chosen: list[int] = []
        while count > 3:
            chosen.append(self._below(room // count))
            room, count = room - chosen[-1], count - 1
        if count == 1 and self._present >> room & 1:
            yield [room]
        elif count == 2:
            yield from ([length, room - length] for length in self._halves(room))
        elif count == 3:
            least = max(shortest, room - 2 * longest)
            length = self._below(room // 3)
            while length >= least:
                if half := next(self._halves(room - length), 0):
                    yield [*chosen, half, room - length - half, length]
                length = self._below(length - 1)

    def _below(self, length: int) -> int:
        """The longest length up to this one; 0 if there is none."""
        return max(0, (self._present & ((2 << length) - 1)).bit_length() - 1)

    def _halves(self, total: int) -> Iterator[int]:
        """Lengths of at least half of the total that another one makes up to it, from the shortest on."""
        half = -(-total // 2)
        found = (self._present & (self._mirrored >> (self._tokens - total))) >> half
        while found:
            lowest = found & -found
            yield half + lowest.bit_length() - 1
            found ^= lowest


def _fill(left: dict[Size, int], *, room: Size) -> list[Size]:
    """Sizes, no more often than `left`, that fill the room best: a subset sum, the longest tried first.

    Sets of sums are bits of an integer: `tokens` of `images` is bit `images * stride + tokens`, and to add a size is
    to shift. A stride is twice the room, so that what is too long stands where no sum is.
    """
    tokens, images = room
    stride = 2 * (tokens + 1)
    lane = (1 << (tokens + 1)) - 1
    allowed = sum(lane << (used * stride) for used in range(images + 1))
    full = sum(1 << (used * stride + tokens) for used in range(images + 1))
    reached, steps = 1, []
    for size, count in reversed(left.items()):
        length, shown = size
        if length > tokens:
            continue
        new = reached
        for _ in range(min(count, tokens // length)):
            new = (new << (shown * stride + length)) & allowed & ~reached
            if not new:
                break
            reached |= new
            steps.append((size, new))
        if reached & full:
            break
    lanes = [reached >> (used * stride) & lane for used in range(images + 1)]
    total = max(found.bit_length() for found in lanes) - 1
    used = next(used for used, found in enumerate(lanes) if found.bit_length() == total + 1)
    chosen, bit = [], used * stride + total
    for size, new in reversed(steps):  # a sum was reached in a later step than the one that it continues
        if new >> bit & 1:
            chosen.append(size)
            bit -= size[1] * stride + size[0]
    return chosen
