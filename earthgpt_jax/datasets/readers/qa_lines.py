"""Read one text file per image with alternating lines of questions and answers.

This is how MQVQA's `dataset.py` reads CRSVQA. Question marks may be full-width.
"""

from __future__ import annotations

from collections.abc import Iterator

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Part, RawTurn
from earthgpt_jax.records import Turn


def parse(part: Part, card: Card) -> Iterator[Entry]:
    for path, text in part.texts("annotations", ".txt"):
        lines = [line.strip().replace("\uff1f", "?") for line in text.rstrip().splitlines()]
        lines += [""] * (len(lines) % 2)
        yield Entry(
            id=part.prefix + path.stem,
            image=path.stem,
            file=part.name(path),
            split=part.split,
            turns=tuple(_turn(lines[i], lines[i + 1], i + 1) for i in range(0, len(lines), 2)),
        )


def _turn(question: str, answer: str, number: int) -> RawTurn:
    if not question or not answer:
        return RawTurn(turn=None, problem=f"line {number}: no {'question' if not question else 'answer'}")
    return RawTurn(turn=Turn(question=question, answer=answer))
