"""A recipe and a folder of datasets -> the plan of a run, and what its rows are read from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config
from earthgpt_jax.datasets import cards
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.manifest import dataset_directories, read_manifest
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.packing.length_cache import CachedIndex, load_length_index
from earthgpt_jax.input.packing.lengths import SENSORS, PromptConfig
from earthgpt_jax.input.packing.mixture import Mixture, load_mixture
from earthgpt_jax.input.packing.sampler import TokenBudget, count_by_task, fits_budget, questions_about
from earthgpt_jax.input.packing.schedule import PackingSchedule, Source
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import BoxStyle, annotation_task
from earthgpt_jax.input.sequences import image_prefix
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import AnnotatedClasses, Record

_log = logging.getLogger(__name__)


class RandomAccessRecords(Protocol):
    """Random access to the records of a dataset, such as `datasets.store.RecordSource`."""

    @property
    def name(self) -> str: ...

    @property
    def annotated(self) -> AnnotatedClasses: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """The rows of a run, and how each is made.

    Attributes:
        sources: of each of `plan.sources`, what its records are read from; the sensors of a dataset share one.
    """

    schedule: PackingSchedule
    sources: tuple[RandomAccessRecords, ...]
    prompt_config: PromptConfig


def prompt_config_of(config: Config, tokenizer: Tokenizer) -> tuple[PromptConfig, TokenBudget]:
    """How a recipe asks, and the room that a sample has.

    Raises:
        EarthGPTError: rows too short for what every sample begins with; an unknown kind or conversation.
    """
    data = config.data
    prefix, _ = image_prefix(tokenizer, chat_template(data.chat_template), visual_tokens=config.model.visual_tokens)
    if len(prefix) >= data.seq_len:
        raise EarthGPTError(
            f"data.seq_len: expected more than the {len(prefix)} tokens of image and system text "
            f"({data.chat_template!r}) that every sample begins with, got {data.seq_len}; make rows longer"
        )
    room = TokenBudget(shared=len(prefix), seq_len=data.seq_len, max_questions=data.max_questions)
    prompt_config = PromptConfig(
        kinds=tuple(kind for kind, weight in sorted(data.task_weights.items()) if weight > 0),
        tokenizer=tokenizer,
        chat_template=data.chat_template,
        box_style=BoxStyle(decimals=data.decimals, max_boxes=data.max_boxes),
        room=room.seq_len - room.shared,
        seed=config.seed,
    )
    return prompt_config, room


def load_training_data(config: Config, *, tokenizer: Tokenizer, workers: int | None = None) -> TrainingData:
    """The plan of a recipe over its data: a dataset directory, or a folder of them.

    Questions whose lengths are not known yet are measured, with a bar of progress.

    Args:
        workers: processes that measure; None: one a core.

    Raises:
        EarthGPTError: there is nothing to read or to ask, as `open_source` and `Plan` say; the mixture is no mixture
            (`load_mixture`), or needs a dataset that is not there.
    """
    data, directory = config.data, Path(config.data.source)
    mixture = load_mixture(data.mixture)
    prompt_config, room = prompt_config_of(config, tokenizer)
    kinds = {kind: data.task_weights[kind] for kind in prompt_config.kinds}
    together = open_records(directory, data.split, tasks=sorted({annotation_task(kind) for kind in kinds}))
    parts = _chosen(dict(together.parts()), mixture, directory, named=data.mixture)
    found = {
        source: load_length_index(source, prompt_config=prompt_config, workers=workers, on_damaged=data.on_damaged)
        for source in parts
    }
    asked = {
        source.name: _asked(found[source], records, kinds=kinds, room=room) for source, records in parts.items()
    }  # fmt: skip
    weights = mixture.weigh(asked)
    split = [
        (source, part)
        for source, records in parts.items()
        for part in _sensors(source.name, found[source], records, weight=weights[source.name], mixture=mixture)
    ]
    plan = PackingSchedule(
        [part for _, part in split],
        weights=kinds,
        room=room,
        max_images=data.max_images or max(1, data.seq_len // (room.shared + 1)),
        seed=config.seed,
    )
    return TrainingData(schedule=plan, sources=tuple(source for source, _ in split), prompt_config=prompt_config)


def _chosen(
    parts: Mapping[RecordSource, np.ndarray], mixture: Mixture, directory: Path, *, named: str
) -> dict[RecordSource, np.ndarray]:
    """The datasets that the mixture uses."""
    there = {read_manifest(folder)["name"] for folder in dataset_directories(directory)}
    if missing := mixture.missing(there):
        raise EarthGPTError(_absent(missing, directory, named=named))
    usable = {source.name for source in parts}
    if unused := [name for name in (*mixture.sources, *mixture.weights) if mixture.uses(name) and name not in usable]:
        _log.warning("mixture %s: nothing that the recipe asks, or may, is in %s", named, ", ".join(unused))
    if others := [source.name for source in parts if not mixture.uses(source.name)]:
        _log.warning("mixture %s: does not train on %s, which %s holds", named, ", ".join(others), directory)
    chosen = {source: records for source, records in parts.items() if mixture.uses(source.name)}
    if not chosen:
        raise EarthGPTError(
            f"mixture {named}: expected a dataset of it that the recipe can train on, got {', '.join(sorted(usable))} "
            f"in {directory}; build one, or ask other kinds"
        )
    return chosen


def _absent(missing: list[str], directory: Path, *, named: str) -> str:
    """What to do about datasets that are not there."""
    known = [name for name in missing if name in cards.load_cards()]
    advice = []
    if known:
        advice.append(
            f"`earthgpt data build {' '.join(known)} --root NATIVE --out {directory}` builds those with a card"
        )
    if unknown := [name for name in missing if name not in known]:
        advice.append(
            f"there is no card of {', '.join(unknown)}: correct the name, or build it from a card of your own"
        )
    return (
        f"mixture {named}: expected {', '.join(missing)} in {directory}, got no dataset of that name; "
        f"{'; '.join(advice)}; or name a mixture without `sources`, which takes what is there"
    )


def _asked(found: CachedIndex, records: np.ndarray, *, kinds: Mapping[str, float], room: TokenBudget) -> float:
    """Questions of one pass through these records, at the weights of their kinds."""
    counts = count_by_task(found.index, questions_about(found.index, records) & fits_budget(found.index, room))
    return sum(kinds[kind] * count for kind, count in counts.items())


def _sensors(
    name: str, found: CachedIndex, records: np.ndarray, *, weight: float, mixture: Mixture
) -> Iterator[Source]:
    """A dataset as one source, or one a sensor where the mixture weighs its sensors differently."""
    own = found.index.sensors[records]
    factors = {place: mixture.of(SENSORS[place]) for place in np.unique(own).tolist()}
    whole = len(set(factors.values())) == 1
    for place, factor in list(factors.items())[: 1 if whole else None]:
        if factor * weight > 0:
            yield Source(
                name=name if whole else f"{name}/{SENSORS[place]}",
                index=found.index,
                records=records if whole else records[own == place],
                weight=factor * weight,
                identity=found.identity,
            )
