"""Question templates and answer templates, from `data/templates/`."""

from __future__ import annotations

import functools

import numpy as np
import yaml

from earthgpt_jax.common import digests
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.records import Task

_FILES = ("instructions.yaml", "answers.yaml")


@functools.cache
def question_templates() -> dict[str, tuple[str, ...]]:
    """Return the question templates of each task, the default first."""
    table = yaml.safe_load(data_path("templates", _FILES[0]).read_text())
    return {task: tuple(row["text"] for row in rows) for task, rows in table.items()}


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
    return question_templates()[task.value][0]


def choose_template(task: str, rng: np.random.Generator | None) -> str:
    """Return the default question template; with `rng`, half the time one of the others."""
    options = question_templates()[task]
    if rng is None or len(options) == 1 or rng.random() < 0.5:
        return options[0]
    return options[1 + int(rng.integers(len(options) - 1))]


def template_rng(record_id: str, task: str, index: int, *, seed: int) -> np.random.Generator:
    """Return the generator that chooses a question's template; it depends on the arguments alone."""
    return np.random.default_rng(digests.sha256_int(f"{seed}/{record_id}#{task}#{index}", size=16, byteorder="big"))
