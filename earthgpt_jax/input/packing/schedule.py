"""The plan of a run: which samples of which sources stand in any row, found without the rows before it.

A cycle is a few epochs, after which every question was asked by its weight; each epoch of it has its own samples and
packing, and every further cycle another order and other company in the rows.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import fingerprint, sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.packing.bins import EpochPacking
from earthgpt_jax.input.packing.lengths import LengthIndex
from earthgpt_jax.input.packing.sampler import (
    EpochSampler,
    SamplingCycle,
    TokenBudget,
    count_by_task,
    questions_about,
    sampling_cycle,
)

_VERSION = 1  # raise it when the same inputs give other rows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One source of a mixture.

    Attributes:
        records: i64[n], sorted, of the index's records those that occur.
        weight: how often an epoch of the plan goes through the source; multiplies the weights of the kinds.
        identity: what the index depends on, for `Plan.identity`.
    """

    name: str
    index: LengthIndex
    records: np.ndarray
    weight: float = 1.0
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSample:
    """A sample in a row: a record of a source, by their numbers, and the questions as `(kind, index)`."""

    source: int
    record: int
    questions: tuple[tuple[str, int], ...]


class PackingSchedule:
    """The rows of all epochs.

    Args:
        sources: with names of their own.
        weights: kind -> how often an epoch asks each question of it.
        room: of a sample; a row has the same tokens.
        max_images: I, at most.
        seed: of all orders.

    Attributes:
        cycle: the epochs until all weights are met, and what rounding loses; its keys are (source, kind), where
            there are such questions.
        samples: of each epoch of the cycle, of each source.
        epochs: the packing of each epoch of the cycle.

    Raises:
        EarthGPTError: two sources of one name; no question to ask is short enough for a row.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        weights: Mapping[str, float],
        room: TokenBudget,
        max_images: int,
        seed: int,
    ):
        names = collections.Counter(source.name for source in sources)
        if twice := [name for name, count in names.items() if count > 1]:
            raise EarthGPTError(
                f"plan: expected every source once, got {', '.join(twice)} twice; leave one of them out"
            )
        self.sources, self.room = tuple(sources), room
        self.weights, self.max_images, self._seed = dict(weights), max_images, seed
        self.cycle: SamplingCycle[tuple[str, str]] = sampling_cycle(
            {
                (source.name, kind): source.weight * weights[kind]
                for source in sources
                for kind in count_by_task(source.index, questions_about(source.index, source.records))
                if kind in weights
            }
        )
        drawings = [self._drawing(source) for source in sources]
        self.samples = [[drawing.epoch(epoch) for drawing in drawings] for epoch in range(self.cycle.epochs)]
        self.epochs = [
            EpochPacking(
                np.concatenate([each.tokens for each in drawn]), np.concatenate([each.images for each in drawn]),
                tokens=room.seq_len, max_images=max_images, seed=seed + epoch,
            )
            for epoch, drawn in enumerate(self.samples)
        ]  # fmt: skip
        self._starts = [np.cumsum([0, *map(len, drawn)]) for drawn in self.samples]
        self._ends = np.cumsum([epoch.rows for epoch in self.epochs])
        if not self.rows:
            raise EarthGPTError(
                f"plan: no question of the kinds {', '.join(weights) or 'none'} has room in rows of "
                f"{room.seq_len} tokens, {room.shared} of them an image's; make rows longer, or ask other kinds"
            )

    def _drawing(self, source: Source) -> EpochSampler:
        times = {kind: count for (name, kind), count in self.cycle.times.items() if name == source.name}
        return EpochSampler(
            source.index, times=times, epochs=self.cycle.epochs, room=self.room, seed=self._seed,
            records=source.records,
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Of a cycle."""
        return int(self._ends[-1])

    @property
    def left_out(self) -> dict[str, int]:
        """Kind -> questions longer than a row."""
        total: collections.Counter[str] = collections.Counter()
        for each in self.samples[0]:
            total.update(each.left_out)
        return dict(total)

    @property
    def packing_efficiency(self) -> float:
        """Share of the cycle's tokens that are not padding."""
        return sum(epoch.packing_efficiency * epoch.rows for epoch in self.epochs) / self.rows

    def __getitem__(self, row: int) -> tuple[PackedSample, ...]:
        """What stands in row `row`, counted through all cycles."""
        number, place = divmod(int(row), self.rows)
        epoch = int(np.searchsorted(self._ends, place, side="right"))
        packing, starts = self.epochs[epoch], self._starts[epoch]
        within = place - int(self._ends[epoch]) + packing.rows
        placed = []
        for sample in packing[number * packing.rows + within]:
            source = int(np.searchsorted(starts, sample, side="right")) - 1
            drawn, local = self.samples[epoch][source], sample - int(starts[source])
            asked = self.sources[source].index.named(drawn.of(local))
            placed.append(PackedSample(source=source, record=int(drawn.record[local]), questions=asked))
        return tuple(placed)

    def epoch(self, rows: int) -> float:
        """How many epochs so many rows are."""
        return rows / self.rows * self.cycle.epochs

    def epochs_per_source(self, rows: int) -> dict[str, float]:
        """Source -> how often it was gone through after so many rows: questions asked, over those of one pass.

        One pass asks each question as often as the weight of its kind says. After a whole cycle this is `weight`
        times its epochs, but for what rounding changed; within one it is in proportion.
        """
        return {name: passed * rows / self.rows for name, passed in self._passed.items()}

    @functools.cached_property
    def _passed(self) -> dict[str, float]:
        """Source -> passes of a cycle."""
        passed = {}
        for place, source in enumerate(self.sources):
            asked: collections.Counter[str] = collections.Counter()
            for epoch in self.samples:
                asked.update(count_by_task(source.index, epoch[place].questions))
            once = sum(self.weights[kind] * n / self.cycle.times[source.name, kind] for kind, n in asked.items())
            passed[source.name] = asked.total() / once if asked else 0.0
        return passed

    def digest(self, rows: Iterable[int]) -> str:
        """Of what stands in some rows, for logs: equal where the rows are, whoever makes them."""
        return sha256(repr([self[row] for row in rows]))[:8]

    def identity(self) -> dict[str, Any]:
        """Everything that the rows depend on, by name."""
        said: dict[str, Any] = {
            "seq_len": self.room.seq_len,
            "max_images": self.max_images,
            "max_questions": self.room.max_questions,
            "tokens of an image and the system text": self.room.shared,
            "seed": self._seed,
            "sources": [source.name for source in self.sources],
            "version": _VERSION,
            # NumPy may change its streams from version to version.
            "permutations": np.random.default_rng(self._seed).permutation(8).tolist(),
            "packing": [epoch.fingerprint() for epoch in self.epochs],
        }
        said |= {f"weight of {kind}": weight for kind, weight in sorted(self.weights.items())}
        for source in self.sources:
            own = {
                **source.identity,
                "weight": source.weight,
                "questions": source.index.fingerprint(),
                "records": fingerprint(np.asarray(source.records, "<i8").tobytes()),
            }
            said |= {f"{source.name}: {name}": value for name, value in own.items()}
        return said


def identity_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same in two identities of plans, a line each; [] if they are equal."""
    names = [*before, *(name for name in now if name not in before)]
    nothing = "nothing"
    return [
        f"{name}: {before.get(name, nothing)} before, {now.get(name, nothing)} now"
        for name in names
        if before.get(name, nothing) != now.get(name, nothing)
    ]
