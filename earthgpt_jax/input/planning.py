"""A recipe and a folder of datasets -> the plan of a run, and what its rows are read from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from earthgpt_jax.config import Config
from earthgpt_jax.input.conversation import conversation
from earthgpt_jax.input.lengths import Asking
from earthgpt_jax.input.plan import Plan, Source
from earthgpt_jax.input.questions import Grammar, task_of
from earthgpt_jax.input.rows import image_prefix
from earthgpt_jax.input.samples import Room
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.mmrs.length_cache import lengths
from earthgpt_jax.mmrs.store import RecordSource, open_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """The rows of a run, and how each is made.

    Attributes:
        sources: of the plan's sources, in their order, the records.
    """

    plan: Plan
    sources: tuple[RecordSource, ...]
    asking: Asking


def asking_of(config: Config, tokenizer: Tokenizer) -> tuple[Asking, Room]:
    """How a recipe asks, and the room that a sample has."""
    data = config.data
    prefix, _ = image_prefix(tokenizer, conversation(data.conversation), visual_tokens=config.model.visual_tokens)
    room = Room(shared=len(prefix), tokens_per_row=data.tokens_per_row, max_questions=data.max_questions)
    asking = Asking(
        kinds=tuple(kind for kind, weight in sorted(data.task_weights.items()) if weight > 0),
        tokenizer=tokenizer,
        conversation=data.conversation,
        grammar=Grammar(decimals=data.decimals, max_boxes=data.max_boxes),
        room=room.tokens_per_row - room.shared,
        seed=config.seed,
    )
    return asking, room


def planned(config: Config, *, tokenizer: Tokenizer, workers: int | None = None) -> Planned:
    """The plan of a recipe over its data.

    Args:
        workers: processes that measure lengths where they are not known yet; None: one a core.

    Raises:
        EarthGPTError: there is nothing to read or to ask, as `open_source` and `Plan` say.
    """
    data = config.data
    asking, room = asking_of(config, tokenizer)
    together = open_source(Path(data.source), data.split, tasks=sorted({task_of(kind) for kind in asking.kinds}))
    sources, plans = [], []
    for source, records in together.parts():
        found = lengths(source, asking=asking, workers=workers)
        sources.append(source)
        plans.append(Source(name=source.name, index=found.index, records=records, identity=found.identity))
    plan = Plan(
        plans,
        weights={kind: data.task_weights[kind] for kind in asking.kinds},
        room=room,
        images_per_row=data.images_per_row or max(1, data.tokens_per_row // (room.shared + 1)),
        seed=config.seed,
    )
    return Planned(plan=plan, sources=tuple(sources), asking=asking)
