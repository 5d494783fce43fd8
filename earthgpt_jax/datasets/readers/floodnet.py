"""Read FloodNet-VQA: a JSON object with keys "0", "1", ... and one question per value.

Fields: Image_ID, Question, Ground_Truth (text or a number), Question_Type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Entry, Event, ItemType, Native, Part, RawTurn, Rejected, text_or_empty
from earthgpt_jax.records import Turn


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    file = part.name(part.paths["annotations"])
    turns: dict[str, list[RawTurn]] = {}
    for key, row in part.load_json("annotations", dict).items():
        image = row.get("Image_ID") if isinstance(row, dict) else None
        if not image:
            yield Native(item_type=ItemType.QUESTION)
            yield Rejected(id=str(key), item_type=ItemType.QUESTION, reason="no Image_ID", file=file)
            continue
        turns.setdefault(str(image), []).append(_turn(key, row))
    for image, image_turns in turns.items():
        stem = image.rsplit(".", 1)[0]
        yield Entry(id=part.prefix + stem, image=image, file=file, split=part.split, turns=tuple(image_turns))


def _turn(key: str, row: dict[str, Any]) -> RawTurn:
    question, answer = text_or_empty(row.get("Question")), text_or_empty(row.get("Ground_Truth"))
    if not question or not answer:
        return RawTurn(turn=None, problem=f"row {key} has no {'question' if not question else 'answer'}")
    return RawTurn(
        turn=Turn(question=question, answer=answer, question_type=text_or_empty(row.get("Question_Type")).lower())
    )
