"""Read a JSON list of objects with one question each.

The card's `fields` names the fields that hold image, question, answer and type. The list is the top level of the file,
or the only list in the top-level object. Image names may lack the suffix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import (
    Entry,
    Event,
    ItemType,
    Native,
    Part,
    RawTurn,
    Rejected,
    load_json,
    text_or_empty,
)
from earthgpt_jax.records import Turn

_FIELDS = {role: role for role in ("image", "question", "answer", "type")}


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    fields = {**_FIELDS, **card.fields}
    if set(fields) != set(_FIELDS):
        raise EarthGPTError(f"card {card.name}: `fields` takes {', '.join(_FIELDS)}, got {', '.join(card.fields)}")
    path = part.paths["annotations"]
    file = part.name(path)
    turns: dict[str, list[RawTurn]] = {}
    for number, row in enumerate(_rows(path)):
        row = row if isinstance(row, dict) else {}
        if image := text_or_empty(row.get(fields["image"])):
            turns.setdefault(image, []).append(_turn(row, number, fields))
            continue
        yield Native(item_type=ItemType.QUESTION)
        reason = f"no image in the field {fields['image']!r}; found the fields {', '.join(row) or 'none'}"
        yield Rejected(id=f"row {number}", item_type=ItemType.QUESTION, reason=reason, file=file)
    for image, image_turns in turns.items():
        stem = image.rsplit(".", 1)[0]
        yield Entry(id=part.prefix + stem, image=image, file=file, split=part.split, turns=tuple(image_turns))


def _rows(path: Path) -> list[Any]:
    top = load_json(path, object)
    lists = [top] if isinstance(top, list) else []
    if isinstance(top, dict):
        lists = [value for value in top.values() if isinstance(value, list)]
    if len(lists) != 1:
        raise EarthGPTError(f"{path}: expected a list of questions, or an object with one list; got {len(lists)} lists")
    return lists[0]


def _turn(row: dict[str, Any], number: int, fields: Mapping[str, str]) -> RawTurn:
    question, answer = text_or_empty(row.get(fields["question"])), text_or_empty(row.get(fields["answer"]))
    if not question or not answer:
        missing = fields["answer" if question else "question"]
        return RawTurn(turn=None, problem=f"row {number}: the field {missing!r} is empty")
    return RawTurn(
        turn=Turn(question=question, answer=answer, question_type=text_or_empty(row.get(fields["type"])).lower())
    )
