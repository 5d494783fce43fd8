"""Record <-> TFDS example: the features of the shards, and the two conversions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from earthgpt_jax.mmrs.record import Object, Record, Sensor, Task, Turn

VERSION = "2.0.0"  # of the features; the first number rises when datasets have to be built anew

FEATURES = {
    "id": tfds.features.Text(),
    "image": tfds.features.Text(),  # the original file's bytes, never re-encoded
    "height": np.int32,
    "width": np.int32,
    "sensor": tfds.features.Text(),
    "source": tfds.features.Text(),
    "split": tfds.features.Text(),
    "tasks": tfds.features.Sequence(tfds.features.Text()),
    "label": tfds.features.Text(),
    "complete": np.bool_,
    "references": tfds.features.Sequence(tfds.features.Text()),
    "turns": tfds.features.Sequence(
        {"question": tfds.features.Text(), "answer": tfds.features.Text(), "type": tfds.features.Text()}
    ),
    "objects": tfds.features.Sequence(
        {
            "label": tfds.features.Text(),
            "polygon": tfds.features.Tensor(shape=(8,), dtype=np.float32),
            "difficult": np.bool_,
            "phrase": tfds.features.Text(),
            "visible": np.float32,
        }
    ),
}


def to_example(record: Record) -> dict[str, Any]:
    """What TFDS encodes by `FEATURES`."""
    return {
        "id": record.id,
        "image": record.image,
        "height": record.height,
        "width": record.width,
        "sensor": record.sensor.value,
        "source": record.source,
        "split": record.split,
        "tasks": [task.value for task in record.tasks],
        "label": record.label,
        "complete": record.complete,
        "references": list(record.references),
        "turns": [{"question": t.question, "answer": t.answer, "type": t.type} for t in record.turns],
        "objects": [
            {
                "label": item.label,
                "polygon": np.asarray(item.polygon, np.float32),
                "difficult": item.difficult,
                "phrase": item.phrase,
                "visible": item.visible,
            }
            for item in record.objects
        ],
    }


def to_record(example: Mapping[str, Any]) -> Record:
    """What TFDS decoded by `FEATURES`, as the equal Record."""
    turns, objects = example["turns"], example["objects"]
    return Record(
        id=_text(example["id"]),
        image=bytes(example["image"]),
        height=int(example["height"]),
        width=int(example["width"]),
        sensor=Sensor(_text(example["sensor"])),
        source=_text(example["source"]),
        split=_text(example["split"]),
        tasks=tuple(Task(_text(task)) for task in example["tasks"]),
        label=_text(example["label"]),
        complete=bool(example["complete"]),
        references=tuple(_text(text) for text in example["references"]),
        turns=tuple(
            Turn(question=_text(question), answer=_text(answer), type=_text(kind))
            for question, answer, kind in zip(turns["question"], turns["answer"], turns["type"], strict=True)
        ),
        objects=tuple(
            Object(
                label=_text(objects["label"][i]),
                polygon=np.asarray(objects["polygon"][i], np.float32),
                difficult=bool(objects["difficult"][i]),
                phrase=_text(objects["phrase"][i]),
                visible=float(objects["visible"][i]),
            )
            for i in range(len(objects["label"]))
        ),
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
