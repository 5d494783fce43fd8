"""Native dataset folders made by hand, for the tests of readers."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from earthgpt_jax.datasets.build.counts import BuildCounts
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers import Dropped, Rejected, read
from earthgpt_jax.records import Record, Sensor, Task


def png(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(buffer, format="PNG")
    return buffer.getvalue()


def card(format: str, *parts: dict[str, str], tasks: tuple[Task, ...] = (Task.HBB,), **kwargs) -> Card:
    values = {
        "name": "s", "title": "t", "sensor": Sensor.SAR, "folder": "d", "licence": "none",
        "classes": ("ship", "small vehicle"),
    }  # fmt: skip
    parts = parts or ({"annotations": "a", "images": "i"},)
    return Card(**{**values, "format": format, "parts": parts, "tasks": tasks, **kwargs})


class Native:
    """A dataset folder `d` made by hand, with images in `d/i`."""

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
        events = list(read(self.root, card))
        counts = BuildCounts()
        for event in events:
            counts.add(event)
        counts.check(card.name)  # native = kept + quarantined + dropped in every test below
        records = {event.id.split("/", 2)[2]: event for event in events if isinstance(event, Record)}
        rejected = [event for event in events if isinstance(event, Rejected)]
        return records, rejected, [event for event in events if isinstance(event, Dropped)]


def why(rejected: list[Rejected]) -> dict[str, list[str]]:
    """id -> "kind: reason" of everything rejected."""
    found: dict[str, list[str]] = {}
    for event in rejected:
        found.setdefault(event.id, []).append(f"{event.item_type}: {event.reason}")
    return found
