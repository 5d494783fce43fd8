"""The Grain pipeline: records -> Batches. A step's batch depends on the seed and the step alone.

Rows are a random-access dataset: row r is record `order(epoch)[r % n]`, and every random draw for it
comes from a generator seeded by (seed, r). Prefetch, threads and the step a run starts from change
nothing, so a run's data position is one integer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypedDict

import grain
import numpy as np

from earthgpt_jax.config import Config
from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.conversation import conversation
from earthgpt_jax.input.fitting import fitted
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.questions import Grammar, Question, ask, candidates, task_of
from earthgpt_jax.input.rows import Row, build_row, image_prefix
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.mmrs.record import UNKNOWN, Annotated, Record


class Records(Protocol):
    """Random access to records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class _Known(TypedDict):
    annotated: Annotated
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a batch looks like; fields as in `config.DataConfig` and `config.ModelConfig`.

    Attributes:
        annotated: a record's source -> the classes it annotates; questions about absent classes need it.
    """

    tokens_per_row: int
    batch_size: int
    image_size: int
    visual_tokens: int
    task_weights: Mapping[str, float]
    max_questions: int
    decimals: int
    conversation: str
    seed: int
    max_boxes: int = 0
    annotated: Mapping[str, Annotated] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, annotated: Mapping[str, Annotated] | None = None) -> InputSpec:
        """Of a recipe, and of the classes of its sources."""
        data = config.data
        return cls(
            tokens_per_row=data.tokens_per_row,
            batch_size=data.batch_size,
            image_size=config.model.image_size,
            visual_tokens=config.model.visual_tokens,
            task_weights=data.task_weights,
            max_questions=data.max_questions,
            decimals=data.decimals,
            max_boxes=data.max_boxes,
            conversation=data.conversation,
            seed=config.seed,
            annotated=annotated or {},
        )


def train_iterator(
    source: Records, *, spec: InputSpec, tokenizer: Tokenizer, start_step: int = 0, threads: int = 4
) -> Iterator[tuple[int, Batch]]:
    """`(step, batch)` from `start_step` on, without end.

    Raises:
        EarthGPTError: an empty source, an unknown kind in `task_weights`, rows too short for what every
            row begins with, an image that does not decode.
    """
    if not len(source):
        raise EarthGPTError("training data: the split has no records; build it, or name another split")
    for kind in spec.task_weights:
        task_of(kind)  # refuses what it does not know
    prefix, _ = image_prefix(tokenizer, conversation(spec.conversation), visual_tokens=spec.visual_tokens)
    if len(prefix) >= spec.tokens_per_row:
        raise EarthGPTError(
            f"data.tokens_per_row: expected more than the {len(prefix)} tokens of image and system text "
            f"({spec.conversation!r}) that every row begins with, got {spec.tokens_per_row}; make rows longer"
        )
    row = functools.partial(_row, source=source, spec=spec, tokenizer=tokenizer)
    dataset = grain.MapDataset.range(start_step * spec.batch_size, 2**31).map(row).batch(
        spec.batch_size, batch_fn=_stack
    )  # fmt: skip
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    iterator = iter(dataset.to_iter_dataset(options))
    return zip(_count(start_step), iterator, strict=False)


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


@functools.lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _row(number: int, *, source: Records, spec: InputSpec, tokenizer: Tokenizer) -> tuple[str, np.ndarray, Row]:
    epoch, position = divmod(int(number), len(source))
    record = source[int(_order(len(source), spec.seed, epoch)[position])]
    rng = np.random.default_rng((spec.seed, 1, int(number)))
    template = conversation(spec.conversation)
    prefix = image_prefix(tokenizer, template, visual_tokens=spec.visual_tokens)
    room = spec.tokens_per_row - len(prefix[0])
    fit = functools.partial(
        fitted,
        room=room,
        tokenizer=tokenizer,
        template=template,
        grammar=Grammar(decimals=spec.decimals, max_boxes=spec.max_boxes),
        **_known(record, spec),
    )
    row = build_row(
        [fit(question, record) for question in draw(record, spec=spec, rng=rng)],
        prefix=prefix,
        tokenizer=tokenizer,
        conversation=template,
        tokens_per_row=spec.tokens_per_row,
    )
    try:
        image = load_square(record.image, spec.image_size)
    except EarthGPTError as error:
        raise EarthGPTError(f"record {record.id}: {error}; `earthgpt data check` finds all such records") from error
    return record.id, image, row


def _known(record: Record, spec: InputSpec) -> _Known:
    return {"annotated": spec.annotated.get(record.source, UNKNOWN), "seed": spec.seed}


def draw(record: Record, *, spec: InputSpec, rng: np.random.Generator) -> list[Question]:
    """Up to `max_questions` different questions, kinds drawn by weight, in random order.

    A kind's weight is shared by its questions: eight objects do not make grounding eight times as likely.
    """
    known = _known(record, spec)
    pool = [
        (kind, index, weight / len(indices))
        for kind, weight in sorted(spec.task_weights.items())
        if weight > 0 and len(indices := candidates(record, kind, **known))
        for index in indices
    ]
    if not pool:
        return []
    weights = np.array([weight for _, _, weight in pool])
    count = min(spec.max_questions, len(pool))
    chosen = rng.choice(len(pool), size=count, replace=False, p=weights / weights.sum())
    grammar = Grammar(decimals=spec.decimals, max_boxes=spec.max_boxes)
    return [ask(record, pool[i][0], pool[i][1], grammar=grammar, rng=rng, **known) for i in chosen]


def _stack(rows: Sequence[tuple[str, np.ndarray, Row]]) -> Batch:
    def column(name: str) -> np.ndarray:
        return np.stack([getattr(row, name) for _, _, row in rows])

    return Batch(
        tokens=column("tokens"),
        positions=column("positions"),
        segments=column("segments"),
        branches=column("branches"),
        loss_weights=column("loss_weights"),
        images=np.stack([image for _, image, _ in rows])[:, None],
        image_slots=column("image_slots"),
        ids=tuple(
            f"{name}:" + ",".join(question.id.split("#", 1)[1] for question in row.questions) for name, _, row in rows
        ),
        left_out=sum(row.left_out for _, _, row in rows),
        unlisted=sum(question.unlisted for _, _, row in rows for question in row.questions),
    )
