"""Questions -> samples: one image, once, with questions about it that share its visual tokens in a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.input.packing.lengths import LengthIndex

_LONGEST = 8  # epochs
_Key = TypeVar("_Key", bound=Hashable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingCycle(Generic[_Key]):
    """After how many epochs everything was asked by its weight, and how often within them.

    Attributes:
        times: key -> how often a question of it is asked in all `epochs` together, at least once.
        lost: key -> (weight wanted, weight got), where rounding changed it.
    """

    epochs: int
    times: Mapping[_Key, int]
    lost: Mapping[_Key, tuple[float, float]]


def sampling_cycle(weights: Mapping[_Key, float]) -> SamplingCycle[_Key]:
    """The shortest of the cycles of up to 8 epochs in which the weights are most nearly whole numbers.

    A weight of 1 is once an epoch, 2 twice, 0.5 every other epoch. The relative error of the worst weight counts; what
    has a positive weight is asked at least once a cycle. Weights that are not positive are left out.
    """
    asked = {key: weight for key, weight in weights.items() if weight > 0}
    best: tuple[float, SamplingCycle[_Key]] | None = None
    for epochs in range(1, _LONGEST + 1):
        times = {key: max(1, round(weight * epochs)) for key, weight in asked.items()}
        got = {key: (asked[key], times[key] / epochs) for key in asked}
        error = max((abs(have - want) / want for want, have in got.values()), default=0.0)
        if best is None or error < best[0] - 1e-9:
            lost = {key: pair for key, pair in got.items() if abs(pair[0] - pair[1]) > 1e-9 * pair[0]}
            best = error, SamplingCycle(epochs=epochs, times=times, lost=lost)
    assert best
    return best[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """What one sample may hold.

    Attributes:
        shared: tokens that every sample begins with: `rows.image_prefix`'s.
    """

    shared: int
    seq_len: int
    max_questions: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """S samples of one epoch, sorted by record.

    Attributes:
        record: i32[S].
        first: i64[S], where a sample's questions begin in `questions`.
        count: i32[S], how many they are.
        tokens: i32[S], of all of it, the shared part once.
        images: u8[S].
        questions: i64[A], numbers into the index; one that is asked twice an epoch occurs twice.
        left_out: kind -> questions that are longer than a row, each counted once.
    """

    record: np.ndarray
    first: np.ndarray
    count: np.ndarray
    tokens: np.ndarray
    images: np.ndarray
    questions: np.ndarray
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.record)

    def of(self, sample: int) -> np.ndarray:
        """i64[count], the questions of a sample."""
        start = int(self.first[sample])
        return self.questions[start : start + int(self.count[sample])]


class EpochSampler:
    """The samples of a source, epoch by epoch of a cycle.

    A record's questions are put together in an order shuffled by its id, the seed and the epoch, as many as there is
    room for; the next one opens another sample. A question that is asked more than once is in different samples. One
    that is longer than a row is left out, never cut.

    Args:
        times: kind -> how often its questions are asked in all `epochs`; other kinds are not asked.
        epochs: of the cycle.
        records: i[n], the only ones that are asked about, sorted; None: all.
    """

    def __init__(
        self,
        index: LengthIndex,
        *,
        times: Mapping[str, int],
        epochs: int,
        room: TokenBudget,
        seed: int,
        records: np.ndarray | None = None,
    ):
        rate = np.array([times.get(kind, 0) for kind in index.kinds], np.int64)[index.kind]
        if records is not None:
            rate[~questions_about(index, records)] = 0
        asked, short = rate > 0, fits_budget(index, room)
        self._left_out = count_by_task(index, asked & ~short)
        self._pool = np.flatnonzero(asked & short)
        self._rate, self._record = rate[self._pool], index.record[self._pool]
        self._tokens = index.tokens[self._pool].astype(np.int64)
        self._keys = _keys(index, self._pool, seed)
        self._epochs, self._room = epochs, room

    def epoch(self, epoch: int) -> Samples:
        """Of the cycle, from 0."""
        phase = (self._keys % np.uint64(self._epochs)).astype(np.int64)  # spreads what is not asked in every epoch
        due = (epoch * self._rate + phase) // self._epochs
        repeats = ((epoch + 1) * self._rate + phase) // self._epochs - due
        drawn = np.repeat(np.arange(len(self._pool)), repeats)
        again = np.arange(len(drawn)) - np.repeat(np.cumsum(repeats) - repeats, repeats)  # 0 the first time, 1, ...
        salt = _mixed(np.uint64(epoch + 1) + (np.arange(repeats.max(initial=0), dtype=np.uint64) << np.uint64(32)))
        order = _sorted(self._record[drawn], again, _mixed(self._keys[drawn] + salt[again]))
        drawn, again = drawn[order], again[order]

        record, tokens = self._record[drawn], self._tokens[drawn]
        first = np.flatnonzero(_cut(record, tokens, _previous(drawn, again), self._room))
        count = np.diff(np.append(first, len(drawn)))
        whole = np.add.reduceat(tokens, first) if len(first) else np.zeros(0, np.int64)
        return Samples(
            record=record[first],
            first=first,
            count=count.astype(np.int32),
            tokens=(whole + self._room.shared).astype(np.int32),
            images=np.ones(len(first), np.uint8),
            questions=self._pool[drawn],
            left_out=self._left_out,
        )


def questions_about(index: LengthIndex, records: np.ndarray) -> np.ndarray:
    """bool[Q], the questions about these records."""
    wanted = np.zeros(len(index.digests), bool)
    wanted[records] = True
    return wanted[index.record]


def fits_budget(index: LengthIndex, room: TokenBudget) -> np.ndarray:
    """bool[Q], the questions that are no longer than a row."""
    return index.tokens <= max(0, room.seq_len - room.shared)


def count_by_task(index: LengthIndex, questions: np.ndarray) -> dict[str, int]:
    """Kind -> how many of these questions, given as bool[Q] or by their numbers; only kinds of which there are any."""
    counts = np.bincount(index.kind[questions], minlength=len(index.kinds)).tolist()
    return {kind: count for kind, count in sorted(zip(index.kinds, counts, strict=True)) if count}


def _keys(index: LengthIndex, pool: np.ndarray, seed: int) -> np.ndarray:
    """u64[P], a random number of each question, by its record's id, its kind and index, and the seed alone."""
    kinds = np.array([sha256_int(f"{seed}/{kind}", size=8, byteorder="little") for kind in index.kinds], np.uint64)
    own = _mixed(kinds[index.kind[pool]] + index.index[pool].astype(np.uint64))
    return _mixed(index.digests[index.record[pool]] ^ own)


def _sorted(record: np.ndarray, again: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """i64[A], an order by record, which they come in, then by `again`, then by the random number.

    Within each record, one number a question is sorted, in whose last bits is its place: a table a power of two of
    questions, since NumPy sorts short rows ten times faster than all in one.
    """
    order = np.empty(len(record), np.int64)
    begins, counts = _runs(record)
    low = np.uint64(int(counts.max(initial=1) - 1).bit_length())
    high = np.uint64(64 - int(again.max(initial=0)).bit_length())
    codes = shuffled >> (np.uint64(64) - high + low) << low
    if high < 64:
        codes |= again.astype(np.uint64) << high
    width = 1
    while len(begins):
        now = counts <= width
        begin, inside = begins[now][:, None], np.arange(width) < counts[now][:, None]
        places = begin + np.arange(width)
        table = np.full(places.shape, ~np.uint64(0))
        table[inside] = codes[places[inside]]
        table |= np.arange(width, dtype=np.uint64)
        table.sort(axis=1)
        order[places[inside]] = (begin + (table & ((np.uint64(1) << low) - np.uint64(1))).astype(np.int64))[inside]
        begins, counts, width = begins[~now], counts[~now], 2 * width
    return order


def _runs(record: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(i64[R], i64[R]), where each record's questions begin, and how many they are."""
    begins = np.flatnonzero(np.append(True, record[1:] != record[:-1])) if len(record) else np.zeros(0, np.int64)
    return begins, np.diff(np.append(begins, len(record)))


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood, 2014): the same on every machine and in every version."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _previous(asked: np.ndarray, again: np.ndarray) -> np.ndarray:
    """i64[A], the place where the same question was asked before; -1 the first time."""
    before = np.full(len(asked), -1, np.int64)
    if again.any():
        often = np.flatnonzero(np.isin(asked, asked[again > 0]))
        order = often[np.lexsort((again[often], asked[often]))]
        before[order[1:]] = order[:-1]
        before[again == 0] = -1
    return before


def _cut(record: np.ndarray, tokens: np.ndarray, previous: np.ndarray, room: TokenBudget) -> np.ndarray:
    """bool[A], True where a sample begins: the first question of each record, then the second of each, and so on."""
    opens = np.zeros(len(record), bool)
    if not len(record):
        return opens
    begins, counts = _runs(record)
    order = np.argsort(-counts, kind="stable")
    begins, counts = begins[order], counts[order]  # those that still have questions stand in front
    used, held, opened = np.zeros(len(begins), np.int64), np.zeros(len(begins), np.int64), begins.copy()
    for place in range(int(counts[0])):
        still = int(np.searchsorted(-counts, -place, side="left"))
        now = begins[:still] + place
        new = (used[:still] + tokens[now] > room.seq_len - room.shared) | (held[:still] == room.max_questions)
        new |= previous[now] >= opened[:still]
        if place == 0:
            new[:] = True
        used[:still] = np.where(new, 0, used[:still]) + tokens[now]
        held[:still] = np.where(new, 0, held[:still]) + 1
        opened[:still] = np.where(new, now, opened[:still])
        opens[now] = new
    return opens
