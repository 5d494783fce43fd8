"""Benchmark cards, `data/benchmarks/<name>.yaml`: what is asked, how it is scored, what is published.

A card names the dataset (a card of `data/sources`), the split, the task and the metrics, and holds the published
figures with where they are from. `asked` is the digest of its questions and truth as this project builds them, once it
is pinned; answers to other questions are then refused.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.predictions import Prediction, digest
from earthgpt_jax.input.prompts.templates import default_question
from earthgpt_jax.records import Task


class Regime(enum.StrEnum):
    """Whether EarthGPT was trained on the dataset's training split, or on nothing of it."""

    SUPERVISED = "supervised"
    ZERO_SHOT = "zero_shot"


class Evidence(enum.StrEnum):
    """Where a published figure is from: the paper itself, or a text that quotes it."""

    PAPER = "paper"
    SECOND_HAND = "second_hand"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A figure of EarthGPT's paper, in percent (CIDEr: times 100), on a split that need not be ours."""

    metric: str
    value: float
    evidence: Evidence
    kind: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
        source: the card of its dataset.
        split: which records; `protocol` says what published figures take.
        metrics: names of figures of `scores`, the headline first.
        kinds: VQA types that count; () for all.
        questions: how many the complete benchmark asks, where that is known; 0 where not.
        asked: digest of ids, wordings and truth; "" until somebody who has the data pins it.
        grammar: in which answers are read.
        prompt: the wording; "" for the task's default.
        synonyms: answer -> other answers that are right too.
        contaminated_by: datasets of the training mix that hold the same images.
    """

    name: str
    title: str
    source: str
    split: str
    task: Task
    regime: Regime
    metrics: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    questions: int = 0
    asked: str = ""
    box_format: str = "mmrs"
    prompt: str = ""
    synonyms: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    published: tuple[Published, ...] = ()
    contaminated_by: tuple[str, ...] = ()
    protocol: str = ""
    notes: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """As it is asked, with braces where each question differs."""
        return self.prompt or default_question(self.task)


def load(path: Path) -> Benchmark:
    """Raises EarthGPTError if the file is no card; names the entry."""
    where = f"benchmark {path}"
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["task"], values["regime"] = Task(values["task"]), Regime(values["regime"])
        values["published"] = tuple(
            Published(**{**item, "evidence": Evidence(item["evidence"])}) for item in values.get("published", ())
        )
        values["synonyms"] = {str(k): tuple(map(str, v)) for k, v in values.get("synonyms", {}).items()}
        for key in ("metrics", "kinds", "contaminated_by", "notes"):
            values[key] = tuple(values.get(key, ()))
        return Benchmark(**values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EarthGPTError(f"{where}: cannot be read ({error})") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        known = ", ".join(field.name for field in dataclasses.fields(Benchmark))
        raise EarthGPTError(f"{where}: incomplete or unknown entry ({error}); known: {known}") from error


def benchmarks() -> dict[str, Benchmark]:
    """All cards that travel with the code, by name."""
    found = [load(path) for path in sorted(data_path("benchmarks").glob("*.yaml"))]
    return {item.name: item for item in found}


def benchmark(name: str) -> Benchmark:
    """Raises EarthGPTError, naming the nearest, if there is no such card."""
    known = benchmarks()
    if name not in known:
        raise EarthGPTError(f"no benchmark {name!r}{did_you_mean(name, known)} Benchmarks: {', '.join(known)}")
    return known[name]


def chosen(predictions: Sequence[Prediction], card: Benchmark, *, where: Path) -> list[Prediction]:
    """The answers to a benchmark's questions, with its synonyms.

    Raises:
        EarthGPTError: none are there, or they are not the questions that the card pins.
    """
    rows = [p for p in predictions if p.task == card.task and (not card.kinds or p.kind in card.kinds)]
    sources = {p.source for p in rows}
    if card.source in sources:
        rows = [p for p in rows if p.source == card.source]
    if not rows:
        raise EarthGPTError(
            f"{where}: no answer to a question of {card.name} (task {card.task.value}"
            f"{', types ' + ', '.join(card.kinds) if card.kinds else ''}); build {card.source} and evaluate on it"
        )
    if card.asked and (found := digest((p.id, p.question, p.answer) for p in rows)) != card.asked:
        raise EarthGPTError(
            f"{where}: expected the questions of {card.name}, digest {card.asked}, got {len(rows)} questions of "
            f"digest {found}; another split, build or selection of questions"
        )
    others = {normalise(name): texts for name, texts in card.synonyms.items()}
    return [dataclasses.replace(p, synonyms=tuple(others.get(normalise(p.answer), ()))) for p in rows]


def remarks(rows: Sequence[Prediction], card: Benchmark) -> list[str]:
    """What a reader must know before comparing: the regime, the number of questions, the digest, shared images."""
    said = [f"{card.title}: {card.regime.value.replace('_', '-')}; {card.protocol}".rstrip("; ")]
    if {p.source for p in rows} != {card.source}:
        said.append(f"the answers are about {', '.join(sorted({p.source for p in rows}))}, not {card.source}")
    if card.questions and len(rows) != card.questions:
        said.append(f"{len(rows)} questions, of {card.questions} of the complete benchmark: not comparable")
    if not card.asked:
        found = digest((p.id, p.question, p.answer) for p in rows)
        said.append(f"the card pins no digest of the questions; these have {found}")
    if card.contaminated_by:
        said.append(f"training on {', '.join(card.contaminated_by)} shows the same images")
    return said
