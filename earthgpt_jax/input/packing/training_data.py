"""The training data of a recipe: the packing schedule over its datasets, and the sources of the records."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Config
from earthgpt_jax.datasets import cards
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.manifest import dataset_directories, read_manifest
from earthgpt_jax.input.packing.held_out import Records, hold_out
from earthgpt_jax.input.packing.length_cache import CachedIndex, load_length_index
from earthgpt_jax.input.packing.lengths import SENSORS
from earthgpt_jax.input.packing.mixture import Mixture, load_mixture
from earthgpt_jax.input.packing.sampler import TokenBudget
from earthgpt_jax.input.packing.schedule import PackingSchedule, Source
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
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
    """Everything that a run's packed sequences are built from.

    Attributes:
        sources: Records of each of `schedule.sources`. Sources that are sensors of one dataset share its records.
        held_out: Records that are left out for validation (`validation.share`), of each dataset without the split.
    """

    schedule: PackingSchedule
    sources: tuple[RandomAccessRecords, ...]
    prompt_config: PromptConfig
    held_out: Records = dataclasses.field(default_factory=dict)


def prompt_config_of(config: Config, tokenizer: Tokenizer) -> tuple[PromptConfig, TokenBudget]:
    """Return the prompt config of a recipe, and the token budget of its samples.

    Raises:
        EarthGPTError: `data.seq_len` leaves no room after the shared prefix; an unknown task or chat template.
    """
    data = config.data
    prefix, _ = image_prefix(tokenizer, chat_template(data.chat_template), visual_tokens=config.model.visual_tokens)
    if len(prefix) >= data.seq_len:
        raise EarthGPTError(
            f"data.seq_len: expected more than the {len(prefix)} tokens of image and system text "
            f"({data.chat_template!r}) that every sample begins with, got {data.seq_len}; raise it"
        )
    budget = TokenBudget(prefix_tokens=len(prefix), seq_len=data.seq_len, max_questions=data.max_questions)
    prompt_config = PromptConfig(
        tasks=tuple(task for task, weight in sorted(data.task_weights.items()) if weight > 0),
        tokenizer=tokenizer,
        chat_template=data.chat_template,
        box_style=BoxStyle(decimals=data.decimals, max_boxes=data.max_boxes, json_share=data.json_share),
        max_turn_tokens=budget.question_tokens,
        seed=config.seed,
    )
    return prompt_config, budget


def load_training_data(config: Config, *, tokenizer: Tokenizer, workers: int | None = None) -> TrainingData:
    """Compute the packing schedule of a recipe over its data, a dataset directory or a folder of several.

    Lengths of questions that are not cached yet are measured first, with a progress bar.

    Args:
        workers: Processes that measure lengths; None for one per core.

    Raises:
        EarthGPTError: There is nothing to read or to ask (`open_records`, `PackingSchedule`), or the mixture is invalid
            (`load_mixture`) or names a dataset that is missing.
    """
    data, directory = config.data, files.path(config.data.source)
    mixture = load_mixture(data.mixture)
    prompt_config, budget = prompt_config_of(config, tokenizer)
    weights = {task: data.task_weights[task] for task in prompt_config.tasks}
    opened = open_records(directory, data.split, tasks=sorted({annotation_task(task) for task in weights}))
    datasets = _select(dict(opened.parts()), mixture, directory, mixture_name=data.mixture)
    held_out: Records = {}
    if config.validation.share:
        datasets, held_out = hold_out(datasets, split=config.validation.split, share=config.validation.share)
    indexes = {
        dataset: load_length_index(dataset, prompt_config=prompt_config, workers=workers, on_damaged=data.on_damaged)
        for dataset in datasets
    }
    questions = {
        dataset.name: _questions_per_epoch(indexes[dataset], records, weights=weights, budget=budget)
        for dataset, records in datasets.items()
    }
    dataset_weights = mixture.weigh(questions)
    pairs = [
        (dataset, source)
        for dataset, records in datasets.items()
        for source in _split_by_sensor(
            dataset.name, indexes[dataset], records, weight=dataset_weights[dataset.name], mixture=mixture
        )
    ]
    schedule = PackingSchedule(
        [source for _, source in pairs],
        weights=weights,
        budget=budget,
        max_images=data.max_images or max(1, data.seq_len // (budget.prefix_tokens + 1)),
        seed=config.seed,
    )
    return TrainingData(
        schedule=schedule, sources=tuple(dataset for dataset, _ in pairs), prompt_config=prompt_config,
        held_out=held_out,
    )  # fmt: skip


def _select(datasets: Records, mixture: Mixture, directory: Path, *, mixture_name: str) -> Records:
    """Return the datasets that the mixture uses."""
    present = {read_manifest(folder)["name"] for folder in dataset_directories(directory)}
    if missing := mixture.missing(present):
        raise EarthGPTError(_missing_message(missing, directory, mixture_name=mixture_name))
    usable = {dataset.name for dataset in datasets}
    if unused := [name for name in (*mixture.sources, *mixture.weights) if mixture.uses(name) and name not in usable]:
        _log.warning(
            "mixture %s: no record of %s can be trained on with the recipe's tasks", mixture_name, ", ".join(unused)
        )
    if others := [dataset.name for dataset in datasets if not mixture.uses(dataset.name)]:
        _log.warning("mixture %s: does not train on %s from %s", mixture_name, ", ".join(others), directory)
    selected = {dataset: records for dataset, records in datasets.items() if mixture.uses(dataset.name)}
    if not selected:
        raise EarthGPTError(
            f"mixture {mixture_name}: expected one of its datasets with records for the recipe's tasks in {directory}, "
            f"got only {', '.join(sorted(usable))}; build one, or give other tasks a weight"
        )
    return selected


def _missing_message(missing: list[str], directory: Path, *, mixture_name: str) -> str:
    """Say which datasets are missing, and how to get them."""
    with_card = [name for name in missing if name in cards.load_cards()]
    advice = []
    if with_card:
        advice.append(
            f"`earthgpt data build {' '.join(with_card)} --root NATIVE --out {directory}` builds those with a card"
        )
    if without_card := [name for name in missing if name not in with_card]:
        advice.append(
            f"there is no card for {', '.join(without_card)}: correct the name, or write a card and build the dataset"
        )
    return (
        f"mixture {mixture_name}: expected {', '.join(missing)} in {directory}, got no dataset of that name; "
        f"{'; '.join(advice)}; or choose a mixture without `sources`, which uses every dataset in the folder"
    )


def _questions_per_epoch(
    cached: CachedIndex, records: Int[np.ndarray, " n"], *, weights: Mapping[str, float], budget: TokenBudget
) -> float:
    """Return how many questions one epoch of these records asks, by the weights of their tasks."""
    counts = cached.index.count_by_task(cached.index.about(records) & budget.fits(cached.index))
    return sum(weights[task] * count for task, count in counts.items())


def _split_by_sensor(
    name: str, cached: CachedIndex, records: Int[np.ndarray, " n"], *, weight: float, mixture: Mixture
) -> Iterator[Source]:
    """Yield a dataset as one source, or as one per sensor where the mixture gives its sensors different weights."""
    sensors = cached.index.sensors[records]
    factors = {number: mixture.sensor_weight(SENSORS[number]) for number in np.unique(sensors).tolist()}
    uniform = len(set(factors.values())) == 1
    for number, factor in list(factors.items())[: 1 if uniform else None]:
        if factor * weight > 0:
            yield Source(
                name=name if uniform else f"{name}/{SENSORS[number]}",
                index=cached.index,
                records=records if uniform else records[sensors == number],
                weight=factor * weight,
                identity=cached.identity,
            )
