"""The Grain pipeline: rows of a plan -> Batches. A step's batch depends on the plan and the step alone.

Row r of step s is row `s * batch_size + r` of the plan, and every random draw for it comes from a generator seeded by
that number. Hosts, worker processes, threads and the step that a run starts from change nothing, so a run's data
position is one integer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import pickle
import signal
from collections.abc import Generator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from earthgpt_jax.common import processes
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Augment, Config, OnDamaged, QuestionContext
from earthgpt_jax.input.augment import Symmetry, is_symmetry_invariant, sample_symmetry
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.images import to_square
from earthgpt_jax.input.packing.lengths import PromptConfig
from earthgpt_jax.input.packing.schedule import PackedSample, PackingSchedule
from earthgpt_jax.input.packing.training_data import RandomAccessRecords, TrainingData
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.sequences import Sample, build_sample, image_prefix, pack_samples
from earthgpt_jax.raster.decode import decode

_log = logging.getLogger(__name__)
_ROWS_AHEAD = 8  # of each worker process, or of the threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a batch looks like, beside its plan; fields as in `config.DataConfig` and `config.ModelConfig`."""

    batch_size: int
    image_size: int
    visual_tokens: int
    question_context: QuestionContext = QuestionContext.INDEPENDENT
    augment: Augment = Augment.NONE
    on_damaged: OnDamaged = OnDamaged.REFUSE

    @classmethod
    def of(cls, config: Config) -> InputSpec:
        """Of a recipe."""
        return cls(
            batch_size=config.data.batch_size,
            image_size=config.model.image_size,
            visual_tokens=config.model.visual_tokens,
            question_context=config.data.question_context,
            augment=config.data.augment,
            on_damaged=config.data.on_damaged,
        )


class _Made(NamedTuple):
    """A sample, and what a Batch says of it."""

    id: str
    sample: Sample
    unlisted: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceBuilder:
    """What a plan says stands in a row -> that row, as a Batch of one; pickles, so that worker processes can hold it.

    Attributes:
        sources: what `Placed.source` counts.
    """

    sources: Sequence[RandomAccessRecords]
    prompt_config: PromptConfig
    spec: InputSpec
    seq_len: int
    max_images: int

    def __call__(self, placed: Sequence[PackedSample], *, number: int = 0) -> Batch:
        """The row.

        Args:
            number: of the row; what is random in it depends on that and the seed.

        Raises:
            EarthGPTError: a record or an image that cannot be read, unless `spec` skips them; names it.
        """
        images = np.zeros((1, self.max_images, self.spec.image_size, self.spec.image_size, 3), np.uint8)
        made: list[_Made] = []
        for place, at in enumerate(placed):
            rng = np.random.default_rng((self.prompt_config.seed, number, place))
            if (each := self._made(at, rng, image=images[0, len(made)])) is not None:
                made.append(each)
        row = pack_samples(
            [each.sample for each in made],
            seq_len=self.seq_len,
            visual_tokens=self.spec.visual_tokens,
        )
        return Batch(
            **{field.name: getattr(row, field.name)[None] for field in dataclasses.fields(row)},
            images=images,
            unlisted=np.array([sum(each.unlisted for each in made)], np.int32),
            damaged=np.array([len(placed) - len(made)], np.int32),
            ids=(tuple(each.id for each in made),),
        )

    def _made(self, placed: PackedSample, rng: np.random.Generator, *, image: np.ndarray) -> _Made | None:
        """Fills `image`, u8[S, S, 3]; None, and nothing filled, where the record is damaged and skipped."""
        source = self.sources[placed.source]
        name = f"record {placed.record} of {source.name}"
        try:
            record = source[placed.record]
            name = f"record {record.id}"
            pixels = decode(record.image)
        except EarthGPTError as error:
            told = f"{name}: {error}; `earthgpt data check` finds all such records"
            if self.spec.on_damaged is OnDamaged.SKIP:
                _log.warning("%s; left out", told)
                return None
            raise EarthGPTError(f"{told}, and --config.data.on_damaged=skip trains without them") from error
        # A dialogue in the record's own order; independent questions in the plan's.
        questions = (
            sorted(placed.questions) if self.spec.question_context is QuestionContext.DIALOGUE else placed.questions
        )

        def asked(symmetry: Symmetry) -> tuple[list[Question], Sample]:
            turned = symmetry.record(record)
            said = [
                self.prompt_config.question(turned, *question, annotated=source.annotated) for question in questions
            ]
            return said, self._sample(said)

        said, sample = asked(Symmetry.IDENTITY)
        symmetry = sample_symmetry(self.spec.augment, rng)
        if symmetry is not Symmetry.IDENTITY and all(map(is_symmetry_invariant, said)):
            other, turned = asked(symmetry)
            # The plan counts on the length; of equally large boxes others may be listed, in longer words.
            if len(turned) == len(sample):
                said, sample, pixels = other, turned, symmetry.pixels(pixels)
        to_square(pixels, self.spec.image_size, out=image)
        return _Made(
            id=f"{record.id}:" + ",".join(f"{kind}#{at}" for kind, at in questions),
            sample=sample,
            unlisted=sum(question.unlisted for question in said),
        )

    def _sample(self, asked: Sequence[Question]) -> Sample:
        return build_sample(
            asked,
            prefix=self._prefix,
            tokenizer=self.prompt_config.tokenizer,
            chat_template=chat_template(self.prompt_config.chat_template),
            question_context=self.spec.question_context,
        )

    @functools.cached_property
    def _prefix(self) -> tuple[np.ndarray, np.ndarray]:
        template = chat_template(self.prompt_config.chat_template)
        return image_prefix(self.prompt_config.tokenizer, template, visual_tokens=self.spec.visual_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedSequences:
    """Random access to the rows of a plan, counted through all epochs, each a Batch of one row."""

    schedule: PackingSchedule
    assemble: SequenceBuilder

    @classmethod
    def of(cls, planned: TrainingData, spec: InputSpec) -> PackedSequences:
        """Of a planned run."""
        schedule = planned.schedule
        assemble = SequenceBuilder(
            sources=planned.sources, prompt_config=planned.prompt_config, spec=spec, seq_len=schedule.room.seq_len,
            max_images=schedule.max_images,
        )  # fmt: skip
        return cls(schedule=schedule, assemble=assemble)

    def __getitem__(self, number: int) -> Batch:
        return self.assemble(self.schedule[number], number=number)


def train_batches(
    rows: PackedSequences,
    *,
    start_step: int = 0,
    local: Sequence[int] | None = None,
    workers: int = 0,
    threads: int = 4,
) -> Generator[tuple[int, Batch]]:
    """`(step, batch)` from `start_step` on, without end; close it to end the workers.

    Args:
        local: which rows of each batch, in order, are wanted here; None: all.
        workers: processes that make rows; 0: `threads` threads of this one.

    Raises:
        EarthGPTError: what a row raises; a worker that was killed.
    """
    size = rows.assemble.spec.batch_size
    wanted = range(size) if local is None else local
    count = len(wanted)

    def numbered(place: int) -> Batch:
        step, within = divmod(int(place), count)
        row = rows[step * size + wanted[within]]
        used = max(1, int(row.segments.max()))  # padding images need not travel between processes
        return row._replace(images=row.images[:, :used])

    options = grain.ReadOptions(num_threads=threads if workers == 0 else 1, prefetch_buffer_size=_ROWS_AHEAD)
    dataset = grain.MapDataset.range(start_step * count, 2**62).map(numbered).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own
        dataset = dataset.map(_pack).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_ROWS_AHEAD),
            # A run that is told to stop still needs its rows until it has saved.
            worker_init_fn=lambda *_: processes.init_worker(signal.SIGTERM),
        )
    iterator = iter(dataset)
    made = map(_unpack, iterator) if workers else iterator
    try:
        for step in itertools.count(start_step):
            parts = [next(made) for _ in range(count)]
            yield step, concatenate_batches(parts, max_images=rows.assemble.max_images)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise EarthGPTError(
            f"data: one of {workers} worker processes was killed, most likely for want of memory; start the same "
            "command again with fewer (--config.data.workers), it goes on from its last checkpoint"
        ) from error
    finally:
        iterator.close()


def _pack(row: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The images, and all else as bytes: two arrays, which Grain puts into shared memory; through the pipe go names.

    Up to 4 KiB (Linux's PIPE_BUF) are written to a pipe whole or not at all. Of a longer message, a worker that is
    killed while it writes leaves a part, and who reads waits for the rest for ever.
    """
    rest = np.frombuffer(pickle.dumps(row._replace(images=np.zeros(0)), protocol=5), np.uint8)
    return np.ascontiguousarray(row.images), rest


def _unpack(sent: tuple[np.ndarray, np.ndarray]) -> Batch:
    images, rest = sent
    return pickle.loads(rest.data)._replace(images=images)


def concatenate_batches(parts: Sequence[Batch], *, max_images: int = 0) -> Batch:
    """Batches one behind the other, as one; rows of fewer images than `max_images` or any other's get padding."""
    names = [name for name in Batch._fields if name not in ("images", "ids")]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    most = max(max_images, *(part.images.shape[1] for part in parts))
    images = np.zeros((sum(len(part.images) for part in parts), most, *parts[0].images.shape[2:]), np.uint8)
    row = 0
    for part in parts:
        images[row : row + len(part.images), : part.images.shape[1]] = part.images
        row += len(part.images)
    return Batch(**arrays, images=images, ids=tuple(itertools.chain.from_iterable(part.ids for part in parts)))
