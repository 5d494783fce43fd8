"""The packing schedule: which samples of which sources make up each packed sequence of a run.

It maps the number of a sequence to its samples without computing the sequences before it. A sampling cycle is a few
epochs, after which every question has been asked according to its weight. Each epoch of a cycle has its own samples and
packing. Every further cycle has another order, and other samples share a sequence.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from earthgpt_jax.common.digests import fingerprint, sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.packing.epoch_packing import EpochPacking
from earthgpt_jax.input.packing.lengths import LengthIndex
from earthgpt_jax.input.packing.sampler import EpochSampler, SamplingCycle, TokenBudget, sampling_cycle

_VERSION = 2  # raise it when the same inputs give other sequences or another identity


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One source of a mixture.

    Attributes:
        records: Numbers of the records to train on, sorted.
        weight: Epochs of the source per epoch of the schedule; it multiplies the weights of the tasks.
        identity: What the index depends on, for `PackingSchedule.identity`.
    """

    name: str
    index: LengthIndex
    records: Int[np.ndarray, " n"]
    weight: float = 1.0
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSample:
    """A sample of a packed sequence: the numbers of its source and record, and its questions as `(task, index)`."""

    source: int
    record: int
    questions: tuple[tuple[str, int], ...]


class PackingSchedule:
    """Random access to the packed sequences of all epochs.

    Args:
        sources: Sources with distinct names.
        weights: Task -> how often each of its questions is asked per epoch.
        budget: Limits of one sample.
        max_images: I, the most images per sequence.
        seed: Seeds all orders.

    Attributes:
        cycle: The sampling cycle; its keys are (source, task), where the source has such questions.
        samples: For each epoch of the cycle, the samples of each source.
        epochs: The packing of each epoch of the cycle.

    Raises:
        EarthGPTError: Two sources have the same name, or no question fits into a sequence.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        weights: Mapping[str, float],
        budget: TokenBudget,
        max_images: int,
        seed: int,
    ):
        names = collections.Counter(source.name for source in sources)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise EarthGPTError(
                f"packing schedule: expected distinct sources, got {', '.join(repeated)} more than once; "
                "leave one of them out"
            )
        self.sources, self.budget = tuple(sources), budget
        self.weights, self.max_images, self._seed = dict(weights), max_images, seed
        self.cycle: SamplingCycle[tuple[str, str]] = sampling_cycle(
            {
                (source.name, task): source.weight * weights[task]
                for source in sources
                for task in source.index.count_by_task(source.index.about(source.records))
                if task in weights
            }
        )
        samplers = [self._sampler(source) for source in sources]
        self.samples = [[sampler.epoch(epoch) for sampler in samplers] for epoch in range(self.cycle.epochs)]
        self.epochs = [
            EpochPacking(
                np.concatenate([part.tokens for part in samples]),
                np.concatenate([part.images for part in samples]),
                seq_len=budget.seq_len,
                max_images=max_images,
                seed=seed + epoch,
            )
            for epoch, samples in enumerate(self.samples)
        ]
        self._starts = [np.cumsum([0, *map(len, samples)]) for samples in self.samples]
        self._ends = np.cumsum([epoch.sequences_per_epoch for epoch in self.epochs])
        if not self.sequences_per_cycle:
            raise EarthGPTError(
                f"packing schedule: expected a question of {', '.join(weights) or 'no task'} that fits into sequences "
                f"of {budget.seq_len} tokens, {budget.prefix_tokens} of which are image and system text, got none; "
                "raise data.seq_len, or give other tasks a weight"
            )

    def _sampler(self, source: Source) -> EpochSampler:
        return EpochSampler(
            source.index,
            times={task: times for (name, task), times in self.cycle.times.items() if name == source.name},
            epochs=self.cycle.epochs,
            budget=self.budget,
            seed=self._seed,
            records=source.records,
        )

    @property
    def sequences_per_cycle(self) -> int:
        """Packed sequences in each cycle."""
        return int(self._ends[-1])

    @property
    def too_long(self) -> dict[str, int]:
        """Task -> questions that do not fit into a sequence."""
        total: collections.Counter[str] = collections.Counter()
        for samples in self.samples[0]:
            total.update(samples.too_long)
        return dict(total)

    @property
    def packing_efficiency(self) -> float:
        """Share of the cycle's tokens that are not padding."""
        used = sum(epoch.packing_efficiency * epoch.sequences_per_epoch for epoch in self.epochs)
        return used / self.sequences_per_cycle

    def __getitem__(self, number: int) -> tuple[PackedSample, ...]:
        """Return the samples of a sequence, numbered through all cycles."""
        cycle, place = divmod(int(number), self.sequences_per_cycle)
        epoch = int(np.searchsorted(self._ends, place, side="right"))
        packing, starts = self.epochs[epoch], self._starts[epoch]
        within = place - int(self._ends[epoch]) + packing.sequences_per_epoch
        packed = []
        for sample in packing.sequence(cycle * packing.sequences_per_epoch + within):
            source = int(np.searchsorted(starts, sample, side="right")) - 1
            samples, local = self.samples[epoch][source], sample - int(starts[source])
            questions = self.sources[source].index.keys(samples.questions_of(local))
            packed.append(PackedSample(source=source, record=int(samples.record[local]), questions=questions))
        return tuple(packed)

    def epoch(self, sequences: int) -> float:
        """Return the number of epochs that a number of sequences amounts to."""
        return sequences / self.sequences_per_cycle * self.cycle.epochs

    def epochs_per_source(self, sequences: int) -> dict[str, float]:
        """Return how many epochs of each source a number of sequences amounts to.

        One epoch of a source asks each question as often as the weight of its task says. A cycle amounts to `weight`
        times its number of epochs, up to rounding (`SamplingCycle.rounded`); within a cycle the value is proportional.
        """
        share = sequences / self.sequences_per_cycle
        return {name: epochs * share for name, epochs in self._epochs_per_cycle.items()}

    @functools.cached_property
    def _epochs_per_cycle(self) -> dict[str, float]:
        """Source -> its epochs per cycle: questions asked, divided by those of one epoch of the source."""
        epochs = {}
        for number, source in enumerate(self.sources):
            asked: collections.Counter[str] = collections.Counter()
            for samples in self.samples:
                asked.update(source.index.count_by_task(samples[number].questions))
            once = sum(self.weights[task] * n / self.cycle.times[source.name, task] for task, n in asked.items())
            epochs[source.name] = asked.total() / once if asked else 0.0
        return epochs

    def digest(self, numbers: Iterable[int]) -> str:
        """Return a short digest of some sequences, for logs that are compared between runs and hosts."""
        return sha256(repr([self[number] for number in numbers]))[:8]

    def identity(self) -> dict[str, Any]:
        """Return everything that the sequences depend on, by name."""
        identity: dict[str, Any] = {
            "seq_len": self.budget.seq_len,
            "max_images": self.max_images,
            "max_questions": self.budget.max_questions,
            "prefix_tokens": self.budget.prefix_tokens,
            "seed": self._seed,
            "sources": [source.name for source in self.sources],
            "version": _VERSION,
            # NumPy may change its random streams between versions.
            "permutations": np.random.default_rng(self._seed).permutation(8).tolist(),
            "packing": [epoch.fingerprint() for epoch in self.epochs],
        }
        identity |= {f"weight of {task}": weight for task, weight in sorted(self.weights.items())}
        for source in self.sources:
            values = {
                **source.identity,
                "weight": source.weight,
                "questions": source.index.fingerprint(),
                "records": fingerprint(np.asarray(source.records, "<i8").tobytes()),
            }
            identity |= {f"{source.name}: {name}": value for name, value in values.items()}
        return identity


def identity_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line for each difference between two identities of schedules."""
    names = [*before, *(name for name in now if name not in before)]
    missing = "nothing"
    return [
        f"{name}: {before.get(name, missing)} before, {now.get(name, missing)} now"
        for name in names
        if before.get(name, missing) != now.get(name, missing)
    ]
