"""Read LLaVA's JSON, the format of the released MMRS-1M: a list of {image, conversations}.

`conversations` is a list of {from: human or gpt, value}. The card's first task says how answers are interpreted, by
the table `_CONVERTERS`. All dialogues about an image become one record. Captions become references, even if they were
turns of one dialogue, so that no caption is in the context of another. Boxes are fractions of the padded square and
are parsed by `boxes.parse`.

A folder named train, val or test in the image path is the split. Some files say `image_path` instead of `image`.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from earthgpt_jax.boxes import BoxKind, ParsedBox, rect_to_polygon
from earthgpt_jax.boxes import parse as parse_boxes
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SPLITS, Card
from earthgpt_jax.datasets.readers.events import (
    Dropped,
    Entry,
    Event,
    ItemType,
    Native,
    Part,
    RawObject,
    RawTurn,
    Rejected,
    load_json,
    text_or_empty,
)
from earthgpt_jax.records import Task, Turn

_Pairs = Sequence[tuple[str, str]]  # (question, answer)
_NO_OBJECTS = "There are no objects in the image."
_REGION_LABEL = "object"  # for regions that have a phrase but no class
_DESCRIBED = re.compile(r"described as\s*:\s*(?P<phrase>.+?)\s*(in this remote sensing image)?\s*\.?\s*$", re.S | re.I)


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    if card.tasks[0] not in _CONVERTERS:
        raise EarthGPTError(
            f"card {card.name}: format llava expects one of the tasks {', '.join(_CONVERTERS)} first, "
            f"got {card.tasks[0]}; change `tasks`"
        )
    pairs: dict[str, list[tuple[str, str]]] = {}
    problems: dict[str, str] = {}
    files: dict[str, str] = {}
    excluded: set[str] = set()
    for path in part.files("annotations", ".json"):
        for number, row in enumerate(load_json(path, list)):
            row = row if isinstance(row, dict) else {}
            image = (text_or_empty(row.get("image")) or text_or_empty(row.get("image_path"))).replace("\\", "/")
            if not image:
                yield Native(item_type=ItemType.IMAGE)
                where = f"row {number}"
                yield Rejected(id=where, item_type=ItemType.ANNOTATION, reason="no image", file=part.name(path))
            elif not re.search(part.only, image):
                excluded.add(image)
            else:
                dialogue, problem = _pairs(row.get("conversations"))
                pairs.setdefault(image, []).extend(dialogue)
                files.setdefault(image, part.name(path))
                if problem:
                    problems.setdefault(image, f"row {number}: {problem}")
    if excluded:
        yield Native(item_type=ItemType.IMAGE, count=len(excluded))
        yield Dropped(item_type=ItemType.IMAGE, reason=f"its path does not match {part.only}", count=len(excluded))
    for image, image_pairs in pairs.items():
        content = _CONVERTERS[card.tasks[0]](image_pairs)
        content["problem"] = problems.get(image, content.get("problem", ""))
        path_below = _relative_to_images(image, part)
        yield Entry(
            id=part.prefix + path_below.rsplit(".", 1)[0],
            image=path_below,
            file=files[image],
            split=_split(image) or part.split,
            squared=True,
            **content,
        )


def _relative_to_images(image: str, part: Part) -> str:
    """Return the image path relative to the part's image folder; files may contain paths of another machine."""
    if "images" not in part.paths:
        return image
    _, found, rest = f"/{image}".partition(f"/{part.paths['images'].name}/")
    return rest if found else image


def _split(image: str) -> str:
    """Return the innermost folder of the path that is named like a split, or ""."""
    folders = image.split("/")[:-1]
    return next((folder for folder in reversed(folders) if folder in SPLITS), "")


def _pairs(conversation: Any) -> tuple[list[tuple[str, str]], str]:
    """Return the (question, answer) pairs of a dialogue, and what is wrong with it or ""."""
    items = conversation if isinstance(conversation, list) else []
    messages = [(item.get("from"), item.get("value")) if isinstance(item, dict) else ("", None) for item in items]
    speakers = [speaker for speaker, _ in messages]
    if not messages or speakers != ["human", "gpt"] * (len(messages) // 2):
        return [], f"expected alternating human and gpt messages, got {', '.join(map(str, speakers)) or 'none'}"
    texts = [text_or_empty(value).replace("<image>", "").strip() for _, value in messages]
    return list(zip(texts[::2], texts[1::2], strict=True)), ""


# ----------------------------------------------------- converters: (question, answer) pairs -> fields of an Entry
def _questions(pairs: _Pairs) -> dict[str, Any]:
    def turn(question: str, answer: str) -> RawTurn:
        if question and answer:
            return RawTurn(turn=Turn(question=question, answer=answer))
        return RawTurn(turn=None, problem=f"no {'answer' if question else 'question'}")

    return {"turns": tuple(turn(*pair) for pair in pairs)}


def _captions(pairs: _Pairs) -> dict[str, Any]:
    return {"captions": tuple(answer for _, answer in pairs)}


def _label(pairs: _Pairs) -> dict[str, Any]:
    labels = sorted({answer.rstrip(". ") for _, answer in pairs} - {""})
    if len(labels) != 1:
        return {"problem": f"expected one class, got {', '.join(map(repr, labels)) or 'none'}"}
    return {"label": labels[0]}


def _detections(pairs: _Pairs) -> dict[str, Any]:
    objects: list[RawObject] = []
    for _, answer in pairs:
        parsed = parse_boxes(answer)
        problems = list(parsed.rejections)
        if not parsed.box_format and answer != _NO_OBJECTS:
            problems.append(f"no box in the answer {answer!r:.80}")
        objects += [RawObject(name=box.label, polygon=_corners(box)) for box in parsed.boxes]
        objects += [RawObject(name="", polygon=None, problem=problem) for problem in problems]
    return {"objects": tuple(objects)}


def _regions(pairs: _Pairs) -> dict[str, Any]:
    """Join the two questions about a region, phrase -> box and box -> phrase, into one object."""
    directions: dict[tuple[str, ParsedBox], set[str]] = collections.defaultdict(set)
    problems: list[str] = []
    for question, answer in pairs:
        asks_for_phrase = "[" not in answer
        match = _DESCRIBED.search(question)
        phrase = answer if asks_for_phrase else match["phrase"] if match else ""
        parsed = parse_boxes(question if asks_for_phrase else answer)
        problems += parsed.rejections
        if not phrase:
            problems.append(f"no phrase in {question!r:.120}")
        elif len(parsed.boxes) == 1:
            directions[phrase, parsed.boxes[0]].add("box to phrase" if asks_for_phrase else "phrase to box")
        elif not parsed.rejections:
            problems.append(f"expected one box, got {len(parsed.boxes)}")
    boxes = collections.Counter(phrase for phrase, _ in directions)
    objects = [
        RawObject(
            name=_REGION_LABEL, polygon=_corners(box), phrase=phrase, problem=_region_problem(phrase, found, boxes)
        )
        for (phrase, box), found in directions.items()
    ]
    return {"objects": (*objects, *(RawObject(name="", polygon=None, problem=text) for text in problems))}


def _region_problem(phrase: str, directions: set[str], boxes: Mapping[str, int]) -> str:
    """Return why a phrase and its box are not a reliable pair, or ""."""
    if boxes[phrase] > 1:
        return f"ambiguous phrase {phrase!r}: it describes {boxes[phrase]} boxes"
    return "" if len(directions) == 2 else f"asked in one direction only: {', '.join(directions)}"


def _corners(box: ParsedBox) -> Any:
    return rect_to_polygon(*box.coords) if box.kind is BoxKind.HBB else box.coords


_CONVERTERS: Mapping[Task, Callable[[_Pairs], dict[str, Any]]] = {
    Task.VQA: _questions,
    Task.CAPTION: _captions,
    Task.CLASSIFICATION: _label,
    Task.HBB: _detections,
    Task.OBB: _detections,
    Task.GROUNDING: _regions,
    Task.REGION_CAPTION: _regions,
}
