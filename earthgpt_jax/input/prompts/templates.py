"""Question templates and answer templates, from `data/templates/`.

A row of a template file stands for several templates: `(Find|Locate) all objects( here|).` for four of them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from earthgpt_jax.boxes import JsonStyle
from earthgpt_jax.common import digests
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.records import Task

_FILES = ("instructions.yaml", "answers.yaml", "json.yaml")
DEFAULT_SHARE = 0.3  # of the questions that use the default template in training
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")

Rows = tuple[tuple[str, ...], ...]  # the templates of each row


@dataclasses.dataclass(frozen=True)
class Template:
    """A question template, and how the boxes of its answer are written: as JSON, or in MMRS's format."""

    text: str
    json_style: JsonStyle | None = None


def expand(row: str) -> tuple[str, ...]:
    """Return all templates that a row stands for, in order: `(a|b|) c` gives `a c`, `b c` and ` c`."""
    parts = _CHOICE.split(row)
    options = [part.split("|") if number % 2 else [part] for number, part in enumerate(parts)]
    return tuple("".join(chosen) for chosen in itertools.product(*options))


@functools.cache
def _rows() -> Mapping[str, Rows]:
    table = yaml.safe_load(data_path("templates", _FILES[0]).read_text())
    return {task: tuple(expand(row["text"]) for row in rows) for task, rows in table.items()}


@functools.cache
def _json_rows() -> Mapping[str, Sequence[tuple[JsonStyle, tuple[str, ...]]]]:
    """Return the style and the templates of each row, by task."""
    table = yaml.safe_load(data_path("templates", _FILES[2]).read_text())
    tasks = sorted({task for rows in table.values() for task in rows})
    return {
        task: [(JsonStyle(style), expand(row)) for style, rows in table.items() for row in rows.get(task, ())]
        for task in tasks
    }


def question_templates() -> dict[str, tuple[str, ...]]:
    """Return the question templates of each task that do not ask for JSON, the default first."""
    return {task: tuple(itertools.chain(*rows)) for task, rows in _rows().items()}


def json_templates() -> dict[str, tuple[Template, ...]]:
    """Return the question templates that ask for boxes as JSON, by task."""
    return {
        task: tuple(Template(text, style) for style, texts in rows for text in texts)
        for task, rows in _json_rows().items()
    }


@functools.cache
def answer_templates() -> dict[str, str]:
    """Return the answer template of each task."""
    return yaml.safe_load(data_path("templates", _FILES[1]).read_text())


@functools.cache
def fingerprint() -> str:
    """Return a fingerprint of all template files."""
    return digests.fingerprint(*(bytes.fromhex(digests.sha256_file(data_path("templates", name))) for name in _FILES))


def default_question(task: Task) -> str:
    """Return the default question of a task whose template has no fields."""
    return _rows()[task.value][0][0]


def choose_template(task: str, rng: np.random.Generator | None, *, json_share: float = 0.0) -> Template:
    """Return the default question template; with `rng`, one of all.

    Args:
        json_share: Share of the questions that ask for JSON, for a task that has such templates. Of the others,
            `DEFAULT_SHARE` use the default template. The rows of a file are equally likely, and so are the templates
            of a row.
    """
    rows = _rows()[task]
    if rng is None:
        return Template(rows[0][0])
    if json_share and rng.random() < json_share and (json_rows := _json_rows().get(task)):
        style, texts = json_rows[int(rng.integers(len(json_rows)))]
        return Template(texts[int(rng.integers(len(texts)))], style)
    if len(rows) == 1 or rng.random() < DEFAULT_SHARE:
        return Template(rows[0][0])
    texts = rows[1 + int(rng.integers(len(rows) - 1))]
    return Template(texts[int(rng.integers(len(texts)))])


def template_rng(record_id: str, task: str, index: int, *, seed: int) -> np.random.Generator:
    """Return the generator that chooses a question's template; it depends on the arguments alone."""
    return np.random.default_rng(digests.sha256_int(f"{seed}/{record_id}#{task}#{index}", size=16, byteorder="big"))
