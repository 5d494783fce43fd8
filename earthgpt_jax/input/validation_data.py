"""The data that a run is validated on: every question of a split once, packed by a schedule of its own.

For a dataset without the split, it is the records that `packing.held_out` left out of the training data.

Validation uses the datasets, tasks, prompts and sequence length of training, but no weights and no augmentation, so
each question counts once. The sequences of the split fill batches of the training's shape; the last batch is padded
with empty sequences, which have no supervised tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Generator, Sequence

import numpy as np
from jaxtyping import Int32

from earthgpt_jax.common import files
from earthgpt_jax.common.digests import fingerprint_json, sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Augment, Config
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.packing.length_cache import load_length_index
from earthgpt_jax.input.packing.lengths import SENSORS
from earthgpt_jax.input.packing.mixture import load_mixture
from earthgpt_jax.input.packing.schedule import PackingSchedule, Source
from earthgpt_jax.input.packing.training_data import TrainingData, prompt_config_of
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences, train_batches
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import annotation_task
from earthgpt_jax.input.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ValidationData:
    """The packed sequences of a split, and the group of every supervised token.

    Attributes:
        split: name of the split, or where its records are held out of.
        data: its packing schedule, which has one epoch, and the record sources.
        spec: how its sequences are built.
    """

    split: str
    data: TrainingData
    spec: InputSpec

    @property
    def sequences(self) -> int:
        """Number of packed sequences."""
        return self.data.schedule.sequences_per_cycle

    @property
    def batches(self) -> int:
        """Number of batches, the padded last one included."""
        return -(-self.sequences // self.spec.batch_size)

    @functools.cached_property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """The (task, sensor) pairs that questions have."""
        pairs = set()
        for source, samples in zip(self.data.schedule.sources, self.data.schedule.samples[0], strict=True):
            index, questions = source.index, samples.questions
            columns = np.stack([index.task[questions], index.sensors[index.record[questions]]])
            pairs |= {(index.tasks[task], SENSORS[sensor].value) for task, sensor in np.unique(columns, axis=1).T}
        return tuple(sorted(pairs))

    def digest(self) -> str:
        """Return a short digest of everything that the figures depend on apart from the model."""
        return fingerprint_json([self.split, self.data.schedule.identity(), self.data.prompt_config.identity()])

    def load(self, *, local: Sequence[int], workers: int) -> Generator[tuple[int, Batch]]:
        """Yield `(number, this process's part of the batch)` for every batch; see `pipeline.train_batches`."""
        source = _OneEpoch(**vars(PackedSequences.of(self.data, self.spec)))
        batches = train_batches(source, local=local, workers=workers)
        try:
            yield from itertools.islice(batches, self.batches)
        finally:
            batches.close()

    def token_groups(self, batch: Batch, numbers: Sequence[int]) -> Int32[np.ndarray, "B T"]:
        """Return the index into `groups` of every supervised token; 0 for all other tokens.

        The answers of a sequence are its runs of supervised tokens, in the order of the questions in `Batch.ids`.

        Args:
            numbers: number of each sequence in the schedule.
        """
        groups = np.zeros(batch.tokens.shape, np.int32)
        for row, number in enumerate(numbers):
            supervised = batch.loss_weights[row] > 0
            runs = np.cumsum(supervised & ~np.append(False, supervised[:-1]))
            answers = self._answer_groups(batch.ids[row], number)
            if runs[-1] != len(answers):
                raise AssertionError(f"sequence {number}: {len(answers)} questions, but {runs[-1]} supervised answers")
            groups[row, supervised] = np.array(answers, np.int32)[runs[supervised] - 1]
        return groups

    def _answer_groups(self, ids: Sequence[str], number: int) -> list[int]:
        """Return the group of each question of a sequence. A damaged sample of the schedule is not in `ids`."""
        if not ids:
            return []
        sensors = {}
        for sample in self.data.schedule[number]:
            index = self.data.schedule.sources[sample.source].index
            sensors[int(index.digests[sample.record])] = SENSORS[index.sensors[sample.record]].value
        groups = []
        for sample_id in ids:
            record, _, questions = sample_id.rpartition(":")
            sensor = sensors[sha256_int(record, size=8, byteorder="little")]
            groups += [self.groups.index((key.partition("#")[0], sensor)) for key in questions.split(",")]
        return groups


class _OneEpoch(PackedSequences):
    """The sequences of the first epoch, followed by empty ones."""

    def __getitem__(self, number: int) -> Batch:
        samples = self.schedule[number] if number < self.schedule.sequences_per_cycle else ()
        return self.build(samples, number=number)


def load_validation_data(config: Config, training: TrainingData, *, tokenizer: Tokenizer) -> ValidationData:
    """Open the records that a run is validated on, and pack every question about them once.

    These are the validation split of the datasets that the run trains on, and the records that were held out of those
    without it.

    Args:
        config: recipe whose `data.source` is a dataset directory or a folder of several.
        training: the data that the run trains on.

    Raises:
        EarthGPTError: none of the datasets has the split or held-out records, or a question of the recipe's tasks in
            them.
    """
    prompt_config, budget = prompt_config_of(config, tokenizer)
    mixture = load_mixture(config.data.mixture)
    in_split = _split_records(config, training, prompt_config)
    held_out = [(dataset, records) for dataset, records in training.held_out.items() if len(records)]
    datasets = [*in_split, *held_out]
    if not datasets:
        raise EarthGPTError(
            f"validation.share: expected a share that holds out at least one image, got {config.validation.share}; "
            "raise it"
        )
    if missing := sorted({source.name for source in training.sources} - {dataset.name for dataset, _ in datasets}):
        _log.warning(
            "validation: no split %r in %s; their tasks are not validated (validation.share holds out training images)",
            config.validation.split, ", ".join(missing),
        )  # fmt: skip
    sources, records_of = [], []
    for dataset, records in datasets:
        cached = load_length_index(dataset, prompt_config=prompt_config, on_damaged=config.data.on_damaged)
        used = [mixture.sensor_weight(SENSORS[number]) > 0 for number in cached.index.sensors[records]]
        kept = records[np.array(used, bool)]
        sources.append(Source(name=dataset.name, index=cached.index, records=kept, identity=cached.identity))
        records_of.append(dataset)
    schedule = PackingSchedule(
        sources,
        weights=dict.fromkeys(prompt_config.tasks, 1.0),
        budget=budget,
        max_images=training.schedule.max_images,
        seed=config.seed,
    )
    names = [config.validation.split] * bool(in_split) + [f"held out of {config.data.split}"] * bool(held_out)
    return ValidationData(
        split=" and ".join(names),
        data=TrainingData(schedule=schedule, sources=tuple(records_of), prompt_config=prompt_config),
        spec=dataclasses.replace(InputSpec.of(config), augment=Augment.NONE),
    )


def _split_records(
    config: Config, training: TrainingData, prompt_config: PromptConfig
) -> list[tuple[RecordSource, np.ndarray]]:
    """Return the records of the validation split of each dataset of the run that has it."""
    split, trained = config.validation.split, {source.name for source in training.sources}
    if trained <= {dataset.name for dataset in training.held_out}:  # none has it
        return []
    try:
        opened = open_records(
            files.path(config.data.source), split, tasks=sorted(map(annotation_task, prompt_config.tasks))
        )
        datasets = [(dataset, records) for dataset, records in opened.parts() if dataset.name in trained]
        if not datasets:
            raise EarthGPTError(f"no dataset of the run has the split {split!r}")
    except EarthGPTError as error:
        raise EarthGPTError(
            f"validation.split: {error}. Choose another split, hold out training images with "
            "--config.validation.share=0.02, or set --config.validation.every_steps=0 to train without validation"
        ) from error
    return datasets
