"""Convert records to the TFDS examples that shards hold, and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2

from earthgpt_jax.records import Object, Record, Sensor, Task, Turn

VERSION = "4.0.0"  # of the features and the manifest; raise the major version when older datasets cannot be read

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
    "stretch": tfds.features.Text(),
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
    """Return a record as the nested dict that TFDS encodes with `FEATURES`."""
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
        "stretch": record.stretch,
        "references": list(record.references),
        "turns": [{"question": t.question, "answer": t.answer, "type": t.question_type} for t in record.turns],
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


def serialize_record(record: Record) -> bytes:
    """Return a record as the bytes of the `tf.train.Example` that a shard holds.

    The features are written in the order of their names. TFDS's own serialisation follows the order of a hash map in
    protobuf, which differs between processes; the same record would have other bytes, and the dataset another
    fingerprint, in each of them.
    """
    features, serializer = _codec()
    example = serializer.get_tf_example(features.encode_example(to_example(record)))
    return example.SerializeToString(deterministic=True)


@functools.cache
def _codec() -> tuple[tfds.features.FeaturesDict, ExampleSerializer]:
    features = tfds.features.FeaturesDict(FEATURES)
    return features, ExampleSerializer(features.get_serialized_info())


def to_record(serialized: bytes) -> Record:
    """Return the record that `serialize_record` gave these bytes for.

    The protobuf message is read directly: TFDS's generic decoder returns the same values, but takes ten times as long.
    """
    feature = tf_example_pb2.Example.FromString(serialized).features.feature

    def texts(key: str) -> list[str]:
        return [value.decode() for value in feature[key].bytes_list.value]

    def numbers(key: str) -> Sequence[int]:
        return feature[key].int64_list.value

    polygons = np.array(feature["objects/polygon"].float_list.value, np.float32).reshape(-1, 8)
    return Record(
        id=texts("id")[0],
        image=feature["image"].bytes_list.value[0],
        height=numbers("height")[0],
        width=numbers("width")[0],
        sensor=Sensor(texts("sensor")[0]),
        source=texts("source")[0],
        split=texts("split")[0],
        tasks=tuple(map(Task, texts("tasks"))),
        label=texts("label")[0],
        complete=bool(numbers("complete")[0]),
        stretch=texts("stretch")[0],
        references=tuple(texts("references")),
        turns=tuple(
            Turn(question=question, answer=answer, question_type=kind)
            for question, answer, kind in zip(
                *(texts(f"turns/{part}") for part in ("question", "answer", "type")), strict=True
            )
        ),
        objects=tuple(
            Object(label=label, polygon=polygon, difficult=bool(difficult), phrase=phrase, visible=visible)
            for label, polygon, difficult, phrase, visible in zip(
                texts("objects/label"), polygons, numbers("objects/difficult"), texts("objects/phrase"),
                feature["objects/visible"].float_list.value, strict=True,
            )
        ),
    )  # fmt: skip
