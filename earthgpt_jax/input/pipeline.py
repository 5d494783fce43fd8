"""The Grain pipeline: packed sequences of a schedule become batches.

The i-th sequence of a step's batch is sequence `step * batch_size + i` of the schedule, and its random draws come from
a generator seeded with that number. A batch therefore depends on the schedule and the step alone, not on the number of
hosts, worker processes or threads, nor on the step at which a run starts: a run's data position is one integer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import pickle
import signal
from collections.abc import Generator, Sequence
from typing import cast

import grain
import numpy as np
from absl import flags

from earthgpt_jax.common import processes
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Augment, Config, OnDamaged, QuestionContext
from earthgpt_jax.input.augment import Symmetry, is_symmetry_invariant, sample_symmetry
from earthgpt_jax.input.batch import Batch, concatenate_batches
from earthgpt_jax.input.features import FeatureStore, IdentifiedRecords
from earthgpt_jax.input.images import to_square
from earthgpt_jax.input.packing.schedule import PackedSample, PackingSchedule
from earthgpt_jax.input.packing.training_data import RandomAccessRecords, TrainingData
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.sequences import Sample, build_sample, image_prefix, pack_samples
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import Record

_log = logging.getLogger(__name__)
_PREFETCHED_SEQUENCES = 8  # per worker process, or for all threads together


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Everything about a batch that the schedule does not determine; fields as in `DataConfig` and `ModelConfig`.

    Attributes:
        features: features to read in place of images; None reads images.
    """

    batch_size: int
    image_size: int
    visual_tokens: int
    question_context: QuestionContext = QuestionContext.INDEPENDENT
    augment: Augment = Augment.NONE
    on_damaged: OnDamaged = OnDamaged.REFUSE
    features: FeatureStore | None = None

    @classmethod
    def of(cls, config: Config) -> InputSpec:
        """Return the spec of a recipe."""
        return cls(
            batch_size=config.data.batch_size,
            image_size=config.model.image_size,
            visual_tokens=config.model.visual_tokens,
            question_context=config.data.question_context,
            augment=config.data.augment,
            on_damaged=config.data.on_damaged,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceBuilder:
    """Read, tokenize and pack the samples of one sequence. Instances can be pickled for worker processes.

    Attributes:
        sources: Records by `PackedSample.source`.
    """

    sources: Sequence[RandomAccessRecords]
    prompt_config: PromptConfig
    spec: InputSpec
    seq_len: int
    max_images: int

    def __call__(self, samples: Sequence[PackedSample], *, number: int = 0) -> Batch:
        """Build the packed sequence of some samples, as a batch with B = 1.

        Args:
            number: Number of the sequence in the schedule, which seeds its random draws together with the seed.

        Raises:
            EarthGPTError: A record or an image cannot be read and `spec` does not skip damaged ones; names the record.
        """
        size, features = self.spec.image_size, self.spec.features
        shape, dtype = ((size, size, 3), np.uint8) if features is None else ((features.size,), np.uint16)
        images = np.zeros((self.max_images, *shape), dtype)
        built: list[Sample] = []
        for place, sample in enumerate(samples):
            rng = np.random.default_rng((self.prompt_config.seed, number, place))
            if (tokens := self._build_sample(sample, rng, image=images[len(built)])) is not None:
                built.append(tokens)
        return pack_samples(
            built,
            seq_len=self.seq_len,
            visual_tokens=self.spec.visual_tokens,
            images=images,
            damaged=len(samples) - len(built),
        )

    def _build_sample(self, sample: PackedSample, rng: np.random.Generator, *, image: np.ndarray) -> Sample | None:
        """Build a sample and write its square or its features to `image`; return None for a damaged record to skip."""
        source, features = self.sources[sample.source], self.spec.features
        name = f"record {sample.record} of {source.name}"
        try:
            record = source[sample.record]
            name = f"record {record.id}"
            pixels = record_pixels(record) if features is None else None
        except EarthGPTError as error:
            message = f"{name}: {error}; `earthgpt data check` finds all such records"
            if self.spec.on_damaged is OnDamaged.SKIP:
                _log.warning("%s; left out", message)
                return None
            raise EarthGPTError(f"{message}, and --config.data.on_damaged=skip trains without them") from error
        # A dialogue keeps the record's order of questions; independent questions keep the schedule's.
        dialogue = self.spec.question_context is QuestionContext.DIALOGUE
        keys = sorted(sample.questions) if dialogue else sample.questions

        def questions(record: Record) -> list[Question]:
            return [self.prompt_config.question(record, *key, annotated=source.annotated) for key in keys]

        id = f"{record.id}:" + ",".join(f"{task}#{index}" for task, index in keys)
        original = questions(record)
        built = self._tokenize(original, id)
        if features is not None:
            features.read(cast(IdentifiedRecords, source), sample.record, out=image)
            return built
        assert pixels is not None
        symmetry = sample_symmetry(self.spec.augment, rng)
        if symmetry is not Symmetry.IDENTITY and all(map(is_symmetry_invariant, original)):
            transformed = self._tokenize(questions(symmetry.record(record)), id)
            # The schedule relies on the length, which changes if another of several equally large boxes is listed.
            if len(transformed) == len(built):
                built, pixels = transformed, symmetry.pixels(pixels)
        to_square(pixels, self.spec.image_size, out=image)
        return built

    def _tokenize(self, questions: Sequence[Question], id: str) -> Sample:
        return build_sample(
            questions,
            prefix=self._prefix,
            tokenizer=self.prompt_config.tokenizer,
            chat_template=chat_template(self.prompt_config.chat_template),
            question_context=self.spec.question_context,
            id=id,
        )

    @functools.cached_property
    def _prefix(self) -> tuple[np.ndarray, np.ndarray]:
        template = chat_template(self.prompt_config.chat_template)
        return image_prefix(self.prompt_config.tokenizer, template, visual_tokens=self.spec.visual_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSequences:
    """Random access to the packed sequences of a schedule, numbered through all epochs, each a batch with B = 1."""

    schedule: PackingSchedule
    build: SequenceBuilder

    @classmethod
    def of(cls, data: TrainingData, spec: InputSpec) -> PackedSequences:
        """Return the sequences of a run's data."""
        schedule = data.schedule
        build = SequenceBuilder(
            sources=data.sources,
            prompt_config=data.prompt_config,
            spec=spec,
            seq_len=schedule.budget.seq_len,
            max_images=schedule.max_images,
        )
        return cls(schedule=schedule, build=build)

    def __getitem__(self, number: int) -> Batch:
        return self.build(self.schedule[number], number=number)


def train_batches(
    sequences: PackedSequences,
    *,
    start_step: int = 0,
    local: Sequence[int] | None = None,
    workers: int = 0,
    threads: int = 4,
) -> Generator[tuple[int, Batch]]:
    """Yield `(step, batch)` from `start_step` on, endlessly. Close the generator to stop its workers.

    Args:
        local: Which sequences of each batch to build in this process, in order; None builds all.
        workers: Number of worker processes; 0 uses `threads` threads of this process instead.

    Raises:
        EarthGPTError: A sequence cannot be built, or a worker process was killed.
    """
    batch_size = sequences.build.spec.batch_size
    wanted = range(batch_size) if local is None else local
    count = len(wanted)

    def load(position: int) -> Batch:
        step, place = divmod(int(position), count)
        sequence = sequences[step * batch_size + wanted[place]]
        used = max(1, int(sequence.segments.max()))  # padding images need not travel between processes
        return dataclasses.replace(sequence, images=sequence.images[:, :used])

    options = grain.ReadOptions(num_threads=threads if workers == 0 else 1, prefetch_buffer_size=_PREFETCHED_SEQUENCES)
    dataset = grain.MapDataset.range(start_step * count, 2**62).map(load).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags
        dataset = dataset.map(_to_shared_memory).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_PREFETCHED_SEQUENCES),
            # Workers ignore SIGTERM: a preempted run still needs sequences until it has saved a checkpoint.
            worker_init_fn=lambda *_: processes.init_worker(signal.SIGTERM),
        )
    iterator = iter(dataset)
    loaded = map(_from_shared_memory, iterator) if workers else iterator
    try:
        for step in itertools.count(start_step):
            parts = [next(loaded) for _ in range(count)]
            yield step, concatenate_batches(parts, max_images=sequences.build.max_images)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise EarthGPTError(
            f"data: one of {workers} worker processes was killed, most likely because memory ran out; rerun the same "
            "command with fewer workers (--config.data.workers), and it resumes from its last checkpoint"
        ) from error
    finally:
        iterator.close()


def _to_shared_memory(sequence: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and, pickled, everything else, as two arrays that Grain moves through shared memory.

    Only the names of shared memory blocks pass through the pipe. Linux writes messages of up to 4 KiB (PIPE_BUF)
    atomically. A worker that is killed while it writes a longer message leaves part of it, and the reader would wait
    for the rest forever.
    """
    rest = dataclasses.replace(sequence, images=np.zeros(0, np.uint8))
    return np.ascontiguousarray(sequence.images), np.frombuffer(pickle.dumps(rest, protocol=5), np.uint8)


def _from_shared_memory(arrays: tuple[np.ndarray, np.ndarray]) -> Batch:
    images, rest = arrays
    return dataclasses.replace(pickle.loads(rest.data), images=images)
