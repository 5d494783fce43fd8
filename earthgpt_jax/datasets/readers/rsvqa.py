"""Read the three JSON files of RSVQA: images, questions and answers, linked by ids.

Image files are called `<id>.tif` or `<id>.png`. Rows with `active: false` have only an id; they belong to another
split and are dropped. Upstream code looks rows up by list position, which equals the id only in complete files; this
reader uses the ids.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import (
    Dropped,
    Entry,
    Event,
    ItemType,
    Native,
    Part,
    RawTurn,
    Rejected,
    hashable_id,
    text_or_empty,
)
from earthgpt_jax.records import Turn

_INACTIVE = "inactive row: it belongs to another split"


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    file = part.name(part.paths["questions"])
    answers = {hashable_id(row.get("id")): row for row in part.rows("answers", "answers") if row.get("active")}
    turns: dict[Any, list[RawTurn]] = collections.defaultdict(list)
    for row in part.rows("questions", "questions"):
        if row.get("active"):
            turns[hashable_id(row.get("img_id"))].append(_turn(row, answers))
        else:
            yield Native(item_type=ItemType.QUESTION)
            yield Dropped(item_type=ItemType.QUESTION, reason=_INACTIVE)
    for row in part.rows("index", "images"):
        if not row.get("active"):
            yield Native(item_type=ItemType.IMAGE)
            yield Dropped(item_type=ItemType.IMAGE, reason=_INACTIVE)
            continue
        name = str(row.get("id"))
        image_turns = tuple(turns.pop(hashable_id(row.get("id")), ()))
        yield Entry(id=part.prefix + name, image=name, file=file, split=part.split, turns=image_turns)
    for image, rows in turns.items():
        yield Native(item_type=ItemType.QUESTION, count=len(rows))
        reason = f"missing pair: no active image has the id {image!r}"
        yield Rejected(id=str(image), item_type=ItemType.QUESTION, reason=reason, file=file, count=len(rows))


def _turn(row: dict[str, Any], answers: dict[Any, dict[str, Any]]) -> RawTurn:
    ids = row.get("answers_ids")
    first = ids[0] if isinstance(ids, list) and ids else None
    answer = text_or_empty(answers.get(hashable_id(first), {}).get("answer")) if first is not None else ""
    question = text_or_empty(row.get("question"))
    if not question or not answer:
        what = "text" if not question else f"active answer (answers_ids {row.get('answers_ids')})"
        return RawTurn(turn=None, problem=f"question {row.get('id')} has no {what}")
    return RawTurn(turn=Turn(question=question, answer=answer, question_type=text_or_empty(row.get("type"))))
