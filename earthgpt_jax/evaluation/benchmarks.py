"""Benchmark cards, `data/benchmarks/<name>.yaml`: what is asked, how it is scored, and which results are published.

A card names the dataset (a card of `data/sources`), the split, the task and the metrics, and holds published results
with their sources. `questions_digest` pins the questions and true answers that this project builds for it; once it is
set, answers to other questions are refused.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.parsing import parse_yaml
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.evaluation.metrics.classification import normalize
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.predictions_file import digest
from earthgpt_jax.input.prompts.templates import default_question
from earthgpt_jax.records import Task


class Regime(enum.StrEnum):
    """Whether EarthGPT was trained on the training split of the dataset, or on none of it."""

    SUPERVISED = "supervised"
    ZERO_SHOT = "zero_shot"


class Evidence(enum.StrEnum):
    """Where a published value was found: in the paper itself, or in a text that quotes it."""

    PAPER = "paper"
    SECOND_HAND = "second_hand"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A value from EarthGPT's paper, in percent (CIDEr: times 100), possibly on another split than ours."""

    metric: str
    value: float
    evidence: Evidence
    question_type: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name, title: short name, and name for tables.
        source: name of its dataset card.
        split: the split whose records are asked about; `protocol` says how published values were obtained.
        task: task of the questions.
        regime: whether EarthGPT was trained on the dataset.
        metrics: names of the reported metrics (see `scores`), the headline metric first.
        question_types: VQA question types that count; () for all.
        questions: number of questions of the complete benchmark; 0 if unknown.
        questions_digest: digest of the ids, texts and true answers of the questions; "" until it is pinned.
        box_format: format in which answers are parsed.
        prompt: text of the question; "" for the task's default.
        synonyms: true answer -> other answers that are correct as well.
        published: published values.
        contaminated_by: datasets of the training mixture that contain the same images.
        protocol, notes: further facts for the reader of a comparison.
    """

    name: str
    title: str
    source: str
    split: str
    task: Task
    regime: Regime
    metrics: tuple[str, ...]
    question_types: tuple[str, ...] = ()
    questions: int = 0
    questions_digest: str = ""
    box_format: str = "mmrs"
    prompt: str = ""
    synonyms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    published: tuple[Published, ...] = ()
    contaminated_by: tuple[str, ...] = ()
    protocol: str = ""
    notes: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """Text of the questions, with braces where they differ."""
        return self.prompt or default_question(self.task)


def load(path: Path) -> Benchmark:
    """Read a benchmark card.

    Raises:
        EarthGPTError: the file cannot be read, or an entry is missing, unknown or invalid; names the entry.
    """
    where = f"benchmark {path}"
    try:
        values: dict[str, Any] = parse_yaml(path.read_bytes(), where=where)
        values["task"], values["regime"] = Task(values["task"]), Regime(values["regime"])
        values["published"] = tuple(
            Published(**{**item, "evidence": Evidence(item["evidence"])}) for item in values.get("published", ())
        )
        values["synonyms"] = {str(k): tuple(map(str, v)) for k, v in values.get("synonyms", {}).items()}
        for key in ("metrics", "question_types", "contaminated_by", "notes"):
            values[key] = tuple(values.get(key, ()))
        return Benchmark(**values)
    except OSError as error:
        raise EarthGPTError(f"{where}: cannot be read ({error})") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        entries = ", ".join(field.name for field in dataclasses.fields(Benchmark))
        raise EarthGPTError(
            f"{where}: an entry is missing, unknown or invalid ({error}); a card has the entries {entries}"
        ) from error


def benchmarks() -> dict[str, Benchmark]:
    """Return all cards that come with the package, by name."""
    cards = [load(path) for path in sorted(data_path("benchmarks").glob("*.yaml"))]
    return {card.name: card for card in cards}


def benchmark(name: str) -> Benchmark:
    """Return the card of a name.

    Raises:
        EarthGPTError: there is no such card; the message suggests the closest name.
    """
    cards = benchmarks()
    if name not in cards:
        raise EarthGPTError(f"no benchmark {name!r}{did_you_mean(name, cards)} Benchmarks: {', '.join(cards)}")
    return cards[name]


def select_answers(predictions: Sequence[Prediction], card: Benchmark, *, path: Path) -> list[Prediction]:
    """Return the answers to the questions of a benchmark, with its synonyms.

    Args:
        predictions: answers to any questions.
        card: the benchmark.
        path: file of the predictions, for error messages.

    Raises:
        EarthGPTError: there is none, or the questions are not those that the card pins.
    """
    rows = [
        p
        for p in predictions
        if p.task == card.task and (not card.question_types or p.question_type in card.question_types)
    ]
    if card.source in {p.source for p in rows}:
        rows = [p for p in rows if p.source == card.source]
    if not rows:
        raise EarthGPTError(
            f"{path}: no answer to a question of {card.name} (task {card.task.value}"
            f"{', types ' + ', '.join(card.question_types) if card.question_types else ''}); build {card.source} with "
            "`earthgpt data build` and evaluate on it"
        )
    if card.questions_digest and (found := digest(rows)) != card.questions_digest:
        raise EarthGPTError(
            f"{path}: expected the questions of {card.name}, digest {card.questions_digest}, got {len(rows)} questions "
            f"with digest {found}; they are of another split, another build, or a selection"
        )
    synonyms = {normalize(name): texts for name, texts in card.synonyms.items()}
    return [dataclasses.replace(p, synonyms=tuple(synonyms.get(normalize(p.answer), ()))) for p in rows]


def notes(rows: Sequence[Prediction], card: Benchmark) -> list[str]:
    """Return what a reader must know before comparing: regime, number and digest of the questions, shared images."""
    lines = [f"{card.title}: {card.regime.value.replace('_', '-')}; {card.protocol}".rstrip("; ")]
    if {p.source for p in rows} != {card.source}:
        lines.append(f"the answers are about {', '.join(sorted({p.source for p in rows}))}, not {card.source}")
    if card.questions and len(rows) != card.questions:
        lines.append(
            f"{len(rows)} questions, but the complete benchmark has {card.questions}: the results are not comparable"
        )
    if not card.questions_digest:
        lines.append(f"the card does not pin its questions; the digest of these questions is {digest(rows)}")
    if card.contaminated_by:
        lines.append(f"models trained on {', '.join(card.contaminated_by)} have seen these images")
    return lines
