"""Wordings of questions and forms of answers, from `data/templates/`."""

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
    """Kind of question -> its wordings, the default first."""
    table = yaml.safe_load(data_path("templates", _FILES[0]).read_text())
    return {kind: tuple(row["text"] for row in rows) for kind, rows in table.items()}


@functools.cache
def answer_templates() -> dict[str, str]:
    """Kind of question -> the form of its answer."""
    return yaml.safe_load(data_path("templates", _FILES[1]).read_text())


@functools.cache
def fingerprint() -> str:
    """Of the bytes of all templates."""
    return digests.fingerprint(*(bytes.fromhex(digests.sha256_file(data_path("templates", name))) for name in _FILES))


def default_question(task: Task) -> str:
    """The default wording of a task that needs nothing filled in."""
    return question_templates()[task.value][0]


def choose_template(kind: str, rng: np.random.Generator | None) -> str:
    """A wording: the default without `rng`, else the default half of the time and any other one otherwise."""
    options = question_templates()[kind]
    if rng is None or len(options) == 1 or rng.random() < 0.5:
        return options[0]
    return options[1 + int(rng.integers(len(options) - 1))]


def template_rng(record_id: str, kind: str, index: int, *, seed: int) -> np.random.Generator:
    """The generator that chooses a question's wording: the same whenever and wherever that question is asked."""
    return np.random.default_rng(digests.sha256_int(f"{seed}/{record_id}#{kind}#{index}", size=16, byteorder="big"))
