"""Epoch sampling: questions become samples, each one image with questions about it that share its visual tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt8, UInt64

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.input.packing.lengths import LengthIndex

_MAX_EPOCHS = 8
_Key = TypeVar("_Key", bound=Hashable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingCycle(Generic[_Key]):
    """The number of epochs after which every weight is met, and how often each question is asked within them.

    For example, weights of 1 and 0.5 give a cycle of two epochs, in which questions are asked twice and once.

    Attributes:
        times: How often a question of each key is asked in all `epochs` together, at least once.
        rounded: `(wanted weight, actual weight)` of the keys whose weight had to be rounded.
    """

    epochs: int
    times: Mapping[_Key, int]
    rounded: Mapping[_Key, tuple[float, float]]


def sampling_cycle(weights: Mapping[_Key, float]) -> SamplingCycle[_Key]:
    """Return the shortest cycle of up to 8 epochs that meets the weights best.

    A weight is the number of times per epoch that a question is asked: 2 is twice per epoch, 0.5 every other epoch.
    Cycles are compared by the largest relative error of a weight. Positive weights are met at least once per cycle;
    keys with other weights are left out.
    """
    positive = {key: weight for key, weight in weights.items() if weight > 0}
    best: tuple[float, SamplingCycle[_Key]] | None = None
    for epochs in range(1, _MAX_EPOCHS + 1):
        times = {key: max(1, round(weight * epochs)) for key, weight in positive.items()}
        pairs = {key: (wanted, times[key] / epochs) for key, wanted in positive.items()}
        error = max((abs(actual - wanted) / wanted for wanted, actual in pairs.values()), default=0.0)
        if best is None or error < best[0] - 1e-9:
            rounded = {key: pair for key, pair in pairs.items() if abs(pair[0] - pair[1]) > 1e-9 * pair[0]}
            best = error, SamplingCycle(epochs=epochs, times=times, rounded=rounded)
    assert best
    return best[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """Limits of one sample.

    Attributes:
        prefix_tokens: Tokens of the prefix that every sample begins with (`sequences.image_prefix`).
        seq_len: Tokens of a packed sequence, which a sample may fill alone.
        max_questions: Questions per sample.
    """

    prefix_tokens: int
    seq_len: int
    max_questions: int

    @property
    def question_tokens(self) -> int:
        """Tokens that the questions of a sample may have together."""
        return self.seq_len - self.prefix_tokens

    def fits(self, index: LengthIndex) -> Bool[np.ndarray, " Q"]:
        """Return a mask of the questions that fit into a sequence."""
        return index.tokens <= max(0, self.question_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The S samples of one source in one epoch, sorted by record.

    Attributes:
        record: Number of the sample's record.
        first: Where a sample's questions begin in `questions`.
        count: Questions of a sample.
        tokens: Tokens of a sample, with the shared prefix counted once.
        images: Images of a sample, always 1.
        questions: Question numbers in the length index; a question asked twice in the epoch occurs twice.
        too_long: Task -> questions that do not fit into a sequence, each counted once.
    """

    record: Int32[np.ndarray, " S"]
    first: Int64[np.ndarray, " S"]
    count: Int32[np.ndarray, " S"]
    tokens: Int32[np.ndarray, " S"]
    images: UInt8[np.ndarray, " S"]
    questions: Int64[np.ndarray, " A"]
    too_long: Mapping[str, int]

    def __len__(self) -> int:
        """Return S."""
        return len(self.record)

    def questions_of(self, sample: int) -> Int64[np.ndarray, " count"]:
        """Return the question numbers of a sample."""
        start = int(self.first[sample])
        return self.questions[start : start + int(self.count[sample])]


class EpochSampler:
    """Form the samples of a source, epoch by epoch of a sampling cycle.

    A record's questions are shuffled by its id, the seed and the epoch, and grouped into samples. Each sample takes as
    many questions as its budget allows; the next question opens another sample. Repetitions of a question are in
    different samples. A question that does not fit into a sequence is left out, never cut.

    Args:
        times: Task -> how often its questions are asked in all `epochs`; other tasks are not asked.
        epochs: Epochs of the cycle.
        records: Numbers of the only records to ask about, i[n], sorted; None for all.
    """

    def __init__(
        self,
        index: LengthIndex,
        *,
        times: Mapping[str, int],
        epochs: int,
        budget: TokenBudget,
        seed: int,
        records: Int[np.ndarray, " n"] | None = None,
    ):
        rate = np.array([times.get(task, 0) for task in index.tasks], np.int64)[index.task]
        if records is not None:
            rate[~index.about(records)] = 0
        wanted, fits = rate > 0, budget.fits(index)
        self._too_long = index.count_by_task(wanted & ~fits)
        self._pool = np.flatnonzero(wanted & fits)
        self._rate, self._record = rate[self._pool], index.record[self._pool]
        self._tokens = index.tokens[self._pool].astype(np.int64)
        self._keys = _random_keys(index, self._pool, seed)
        self._epochs, self._budget = epochs, budget

    def epoch(self, epoch: int) -> Samples:
        """Return the samples of an epoch of the cycle, counted from 0."""
        # A random phase spreads questions that are not asked in every epoch over the epochs.
        phase = (self._keys % np.uint64(self._epochs)).astype(np.int64)
        before = (epoch * self._rate + phase) // self._epochs
        repeats = ((epoch + 1) * self._rate + phase) // self._epochs - before
        chosen = np.repeat(np.arange(len(self._pool)), repeats)
        repetition = np.arange(len(chosen)) - np.repeat(np.cumsum(repeats) - repeats, repeats)  # 0, then 1, ...
        salt = _mix(np.uint64(epoch + 1) + (np.arange(repeats.max(initial=0), dtype=np.uint64) << np.uint64(32)))
        order = _shuffled_order(self._record[chosen], repetition, _mix(self._keys[chosen] + salt[repetition]))
        chosen, repetition = chosen[order], repetition[order]

        record, tokens = self._record[chosen], self._tokens[chosen]
        first = np.flatnonzero(_sample_starts(record, tokens, _previous_position(chosen, repetition), self._budget))
        count = np.diff(np.append(first, len(chosen)))
        question_tokens = np.add.reduceat(tokens, first) if len(first) else np.zeros(0, np.int64)
        return Samples(
            record=record[first],
            first=first,
            count=count.astype(np.int32),
            tokens=(question_tokens + self._budget.prefix_tokens).astype(np.int32),
            images=np.ones(len(first), np.uint8),
            questions=self._pool[chosen],
            too_long=self._too_long,
        )


def _random_keys(index: LengthIndex, pool: Int64[np.ndarray, " P"], seed: int) -> UInt64[np.ndarray, " P"]:
    """Return a random number for each question of the pool, from its record's id, its task, its index and the seed."""
    tasks = np.array([sha256_int(f"{seed}/{task}", size=8, byteorder="little") for task in index.tasks], np.uint64)
    question = _mix(tasks[index.task[pool]] + index.index[pool].astype(np.uint64))
    return _mix(index.digests[index.record[pool]] ^ question)


def _shuffled_order(
    record: Int32[np.ndarray, " A"], repetition: Int64[np.ndarray, " A"], key: UInt64[np.ndarray, " A"]
) -> Int64[np.ndarray, " A"]:
    """Return an order by record (as the input already is), then by repetition, then by random key.

    Each question of a record gets one number to sort by, whose last bits are its position. Records with similar
    numbers of questions (up to the next power of two) form a table, because NumPy sorts many short rows ten times
    faster than one long array.
    """
    order = np.empty(len(record), np.int64)
    begins, counts = _groups(record)
    low = np.uint64(int(counts.max(initial=1) - 1).bit_length())
    high = np.uint64(64 - int(repetition.max(initial=0)).bit_length())
    codes = key >> (np.uint64(64) - high + low) << low
    if high < 64:
        codes |= repetition.astype(np.uint64) << high
    width = 1
    while len(begins):
        chosen = counts <= width
        begin, inside = begins[chosen][:, None], np.arange(width) < counts[chosen][:, None]
        positions = begin + np.arange(width)
        table = np.full(positions.shape, ~np.uint64(0))
        table[inside] = codes[positions[inside]]
        table |= np.arange(width, dtype=np.uint64)
        table.sort(axis=1)
        sorted_positions = begin + (table & ((np.uint64(1) << low) - np.uint64(1))).astype(np.int64)
        order[positions[inside]] = sorted_positions[inside]
        begins, counts, width = begins[~chosen], counts[~chosen], 2 * width
    return order


def _groups(record: Int32[np.ndarray, " A"]) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """Return where each record's questions begin, and how many there are."""
    begins = np.flatnonzero(np.append(True, record[1:] != record[:-1])) if len(record) else np.zeros(0, np.int64)
    return begins, np.diff(np.append(begins, len(record)))


def _mix(values: UInt64[np.ndarray, ...]) -> UInt64[np.ndarray, ...]:
    """Apply SplitMix64's output function (Steele, Lea and Flood, 2014), the same on every machine and NumPy version."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _previous_position(chosen: Int64[np.ndarray, " A"], repetition: Int64[np.ndarray, " A"]) -> Int64[np.ndarray, " A"]:
    """Return the position of the previous repetition of each question; -1 for the first."""
    previous = np.full(len(chosen), -1, np.int64)
    if repetition.any():
        repeated = np.flatnonzero(np.isin(chosen, chosen[repetition > 0]))
        order = repeated[np.lexsort((repetition[repeated], chosen[repeated]))]
        previous[order[1:]] = order[:-1]
        previous[repetition == 0] = -1
    return previous


def _sample_starts(
    record: Int32[np.ndarray, " A"],
    tokens: Int64[np.ndarray, " A"],
    previous: Int64[np.ndarray, " A"],
    budget: TokenBudget,
) -> Bool[np.ndarray, " A"]:
    """Return a mask of the questions that open a sample.

    All records are processed in step: the first question of each record, then the second of each, and so on.
    """
    starts = np.zeros(len(record), bool)
    if not len(record):
        return starts
    begins, counts = _groups(record)
    order = np.argsort(-counts, kind="stable")
    begins, counts = begins[order], counts[order]  # records that still have questions come first
    used, held, opened = np.zeros(len(begins), np.int64), np.zeros(len(begins), np.int64), begins.copy()
    for step in range(int(counts[0])):
        active = int(np.searchsorted(-counts, -step, side="left"))
        position = begins[:active] + step
        new = (used[:active] + tokens[position] > budget.question_tokens) | (held[:active] == budget.max_questions)
        new |= previous[position] >= opened[:active]
        if step == 0:
            new[:] = True
        used[:active] = np.where(new, 0, used[:active]) + tokens[position]
        held[:active] = np.where(new, 0, held[:active]) + 1
        opened[:active] = np.where(new, position, opened[:active])
        starts[position] = new
    return starts
