"""LLaVA's JSON, a list of {image, conversations: [{from: human|gpt, value}, ...]}; the released MMRS-1M is one.

What the answers are, the first task of the card says; `_TAKES` is the table. All dialogues about an image make
one record. Captions that follow each other as turns of one dialogue become references, so that none of them stands
in the context of another. Boxes are fractions of the padded square, read by `geometry.parse`.

A folder of the image's path that is called train, val or test is its split. `image_path` stands for `image` in
some files.
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
    plain,
)
from earthgpt_jax.records import Task, Turn

_Pairs = Sequence[tuple[str, str]]  # (question, answer)
_NOTHING = "There are no objects in the image."
_REGION = "object"  # the label of a region that only a phrase describes
_DESCRIBED = re.compile(r"described as\s*:\s*(?P<phrase>.+?)\s*(in this remote sensing image)?\s*\.?\s*$", re.S | re.I)


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    if card.tasks[0] not in _TAKES:
        raise EarthGPTError(f"card {card.name}: llava is read for {', '.join(_TAKES)}, got {card.tasks[0]}")
    pairs: dict[str, list[tuple[str, str]]] = {}
    problems: dict[str, str] = {}
    files: dict[str, str] = {}
    others: set[str] = set()
    for path in part.files("annotations", ".json"):
        for number, row in enumerate(load_json(path, list)):
            row = row if isinstance(row, dict) else {}
            image = (plain(row.get("image")) or plain(row.get("image_path"))).replace("\\", "/")
            if not image:
                yield Native(item_type=ItemType.IMAGE)
                where = f"row {number}"
                yield Rejected(id=where, item_type=ItemType.ANNOTATION, reason="no image", file=part.name(path))
            elif not re.search(part.only, image):
                others.add(image)
            else:
                said, problem = _pairs(row.get("conversations"))
                pairs.setdefault(image, []).extend(said)
                files.setdefault(image, part.name(path))
                if problem:
                    problems.setdefault(image, f"row {number}: {problem}")
    if others:
        yield Native(item_type=ItemType.IMAGE, count=len(others))
        yield Dropped(item_type=ItemType.IMAGE, reason=f"its path does not match {part.only}", count=len(others))
    for image, said in pairs.items():
        content = _TAKES[card.tasks[0]](said)
        content["problem"] = problems.get(image, content.get("problem", ""))
        below = _below(image, part)
        yield Entry(
            id=part.prefix + below.rsplit(".", 1)[0],
            image=below,
            file=files[image],
            split=_split(image) or part.split,
            squared=True,
            **content,
        )


def _below(image: str, part: Part) -> str:
    """The path below the part's images: files hold the paths of the machine that wrote them."""
    if "images" not in part.paths:
        return image
    _, found, rest = f"/{image}".partition(f"/{part.paths['images'].name}/")
    return rest if found else image


def _split(image: str) -> str:
    folders = image.split("/")[:-1]
    return next((folder for folder in reversed(folders) if folder in SPLITS), "")


def _pairs(conversation: Any) -> tuple[list[tuple[str, str]], str]:
    """(question, answer) of every two turns, and what is wrong with the dialogue."""
    turns = conversation if isinstance(conversation, list) else []
    said = [(turn.get("from"), turn.get("value")) if isinstance(turn, dict) else ("", None) for turn in turns]
    speakers = [speaker for speaker, _ in said]
    if not said or speakers != ["human", "gpt"] * (len(said) // 2):
        return [], f"expected turns of human and gpt by turns, got {', '.join(map(str, speakers)) or 'none'}"
    texts = [plain(value).replace("<image>", "").strip() for _, value in said]
    return list(zip(texts[::2], texts[1::2], strict=True)), ""


# ----------------------------------------------------------------- what the answers are, as fields of an Entry
def _questions(pairs: _Pairs) -> dict[str, Any]:
    def turn(question: str, answer: str) -> RawTurn:
        if question and answer:
            return RawTurn(turn=Turn(question=question, answer=answer))
        return RawTurn(turn=None, problem=f"no {'answer' if question else 'question'}")

    return {"turns": tuple(turn(*pair) for pair in pairs)}


def _captions(pairs: _Pairs) -> dict[str, Any]:
    return {"captions": tuple(answer for _, answer in pairs)}


def _label(pairs: _Pairs) -> dict[str, Any]:
    found = sorted({answer.rstrip(". ") for _, answer in pairs} - {""})
    if len(found) != 1:
        return {"problem": f"expected one class, got {', '.join(map(repr, found)) or 'none'}"}
    return {"label": found[0]}


def _detections(pairs: _Pairs) -> dict[str, Any]:
    objects: list[RawObject] = []
    for _, answer in pairs:
        read = parse_boxes(answer)
        problems = list(read.rejections)
        if not read.box_format and answer != _NOTHING:
            problems.append(f"no box in the answer {answer!r:.80}")
        objects += [RawObject(name=box.label, polygon=_corners(box)) for box in read.boxes]
        objects += [RawObject(name="", polygon=None, problem=problem) for problem in problems]
    return {"objects": tuple(objects)}


def _regions(pairs: _Pairs) -> dict[str, Any]:
    """A phrase and its box are asked for once in each direction; the two turns are one object."""
    directions: dict[tuple[str, ParsedBox], set[str]] = collections.defaultdict(set)
    problems: list[str] = []
    for question, answer in pairs:
        asked = "[" not in answer  # for the phrase of a box
        match = _DESCRIBED.search(question)
        phrase = answer if asked else match["phrase"] if match else ""
        read = parse_boxes(question if asked else answer)
        problems += read.rejections
        if not phrase:
            problems.append(f"no phrase in {question!r:.120}")
        elif len(read.boxes) == 1:
            directions[phrase, read.boxes[0]].add("to a phrase" if asked else "to a box")
        elif not read.rejections:
            problems.append(f"expected one box, got {len(read.boxes)}")
    boxes = collections.Counter(phrase for phrase, _ in directions)
    objects = [
        RawObject(name=_REGION, polygon=_corners(box), phrase=phrase, problem=_doubt(phrase, asked, boxes))
        for (phrase, box), asked in directions.items()
    ]
    return {"objects": (*objects, *(RawObject(name="", polygon=None, problem=text) for text in problems))}


def _doubt(phrase: str, directions: set[str], boxes: Mapping[str, int]) -> str:
    if boxes[phrase] > 1:
        return f"ambiguous phrase {phrase!r}: it describes {boxes[phrase]} boxes"
    return "" if len(directions) == 2 else f"asked in one direction only, {', '.join(directions)}"


def _corners(box: ParsedBox) -> Any:
    return rect_to_polygon(*box.coords) if box.kind is BoxKind.HBB else box.coords


_TAKES: Mapping[Task, Callable[[_Pairs], dict[str, Any]]] = {
    Task.VQA: _questions,
    Task.CAPTION: _captions,
    Task.CLASSIFICATION: _label,
    Task.HBB: _detections,
    Task.OBB: _detections,
    Task.GROUNDING: _regions,
    Task.REGION_CAPTION: _regions,
}
