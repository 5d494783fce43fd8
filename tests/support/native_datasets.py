"""Dataset folders in native formats, written by hand for the tests of readers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from earthgpt_jax.datasets.build.counts import BuildCounts
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers import Dropped, Rejected, read
from earthgpt_jax.records import Record, Sensor, Task


def png(width: int = 40, height: int = 30) -> bytes:
    """Return a PNG image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(buffer, format="PNG")
    return buffer.getvalue()


def card(format: str, *parts: dict[str, str], tasks: tuple[Task, ...] = (Task.HBB,), **kwargs: Any) -> Card:
    """Return a card named "s" for the folder "d", with the classes ship and small vehicle."""
    values = {
        "name": "s", "title": "t", "sensor": Sensor.SAR, "folder": "d", "licence": "none",
        "classes": ("ship", "small vehicle"),
    }  # fmt: skip
    parts = parts or ({"annotations": "a", "images": "i"},)
    return Card(**{**values, "format": format, "parts": parts, "tasks": tasks, **kwargs})


class Native:
    """A dataset folder `d`, with annotations in `d/a` and images in `d/i`."""

    folder = "d"

    def __init__(self, root: Path):
        self.root = root
        for folder in ("d/a", "d/i"):
            (root / folder).mkdir(parents=True)

    def put(self, path: str, content: str | bytes | dict | list) -> None:
        target = self.root / self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())

    def read(self, card: Card) -> tuple[dict[str, Record], list[Rejected], list[Dropped]]:
        """Read the folder; return (records by native id, rejections, drops), after checking the counts."""
        events = list(read(self.root, card))
        counts = BuildCounts()
        for event in events:
            counts.add(event)
        counts.check(card.name)  # native = kept + quarantined + dropped in every test below
        records = {event.id.split("/", 2)[2]: event for event in events if isinstance(event, Record)}
        rejected = [event for event in events if isinstance(event, Rejected)]
        return records, rejected, [event for event in events if isinstance(event, Dropped)]


def why(rejected: list[Rejected]) -> dict[str, list[str]]:
    """Return "item type: reason" of all rejections by id."""
    reasons: dict[str, list[str]] = {}
    for event in rejected:
        reasons.setdefault(event.id, []).append(f"{event.item_type}: {event.reason}")
    return reasons


def read_records(root: Path, card: Card) -> list[Record]:
    """Read a dataset and return its records."""
    return [event for event in read(root, card) if isinstance(event, Record)]


class CardFolder(Native):
    """The dataset folder of a card, made by hand."""

    def __init__(self, root: Path, card: Card):
        self.root, self.card, self.folder = root, card, card.folder

    def records(self) -> tuple[dict[str, Record], dict[str, list[str]], list[str]]:
        """Read the folder; return (records by native id, reasons of rejections by id, reasons of drops)."""
        records, rejected, dropped = self.read(self.card)
        return records, why(rejected), [event.reason for event in dropped]


# ------------------------------------------------------------------------------------------ XML annotations
OBB = (Task.HBB, Task.OBB)
BOX = (1, 2, 11, 12)
DIAMOND = (10, 5, 14, 1, 18, 5, 14, 9)  # starting at the left corner
RING = ((10, 5), (14, 1), (18, 5), (14, 9), (10, 5))


def voc_file(*objects: str, width: int = 40, height: int = 30) -> str:
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def voc_object(name: str, *corners: object, difficult: int = 0) -> str:
    tags = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{tags}</bndbox></object>"


def region_object(name: str, phrase: str, *box: object) -> str:
    """Return a VOC object with a description, if `phrase` is not empty; tags in the order of DIOR-RSVG."""
    corners = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    text = f"<description>{phrase}</description>" if phrase else ""
    return f"<object><name>{name}</name><pose>Unspecified</pose><bndbox>{corners}</bndbox>{text}</object>"


def corner_object(name: str, *values: object) -> str:
    tags = [f"{axis}_{c}" for c in ("left_top", "right_top", "right_bottom", "left_bottom") for axis in "xy"]
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, values, strict=True))
    return f"<object><name>{name}</name><angle>0.7</angle><robndbox>{box}</robndbox></object>"


def fair1m_object(name: str, *points: tuple[object, object], comma: str = ",") -> str:
    listed = "".join(f"<point>{x}{comma}{y}</point>" for x, y in points)
    result = f"<possibleresult><name>{name}</name></possibleresult><possibleresult><name>Van</name></possibleresult>"
    return (
        "<object><coordinate>pixel</coordinate><type>rectangle</type><description>None</description>"
        f"{result}<points>{listed}</points></object>"
    )


def fair1m_file(*objects: str) -> str:
    return (
        "<annotation><source><filename>7.tif</filename><origin>GF2/GF3</origin></source>"
        f"<size><width>40</width><height>30</height><depth>3</depth></size><objects>{''.join(objects)}</objects>"
        "</annotation>"
    )


def hrsc_object(**values: object) -> str:
    given = {"Class_ID": 100000013, "difficult": 0, "box_xmin": 1, "box_ymin": 1, "box_xmax": 2, "box_ymax": 2,
             "mbox_cx": 20, "mbox_cy": 15, "mbox_w": 12, "mbox_h": 4, "mbox_ang": 0.5, **values}  # fmt: skip
    return "<HRSC_Object>" + "".join(f"<{tag}>{value}</{tag}>" for tag, value in given.items()) + "</HRSC_Object>"


def hrsc_file(*ships: str) -> str:
    return (
        "<HRSC_Image><Img_FileName>x</Img_FileName><Img_SizeWidth>40</Img_SizeWidth>"
        f"<Img_SizeHeight>30</Img_SizeHeight><HRSC_Objects>{''.join(ships)}</HRSC_Objects></HRSC_Image>"
    )
