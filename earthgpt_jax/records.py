"""The Record: one image with everything that is known of it, in pixels of the original image.

Boxes stay pixels here; their text (grammar, decimals) is rendered by the input pipeline,
so that it stays configuration.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

import numpy as np


class Sensor(enum.StrEnum):
    OPTICAL = "optical"
    SAR = "sar"
    INFRARED = "infrared"


class Task(enum.StrEnum):
    CLASSIFICATION = "classification"
    CAPTION = "caption"
    VQA = "vqa"
    REGION_CAPTION = "region_caption"
    GROUNDING = "grounding"
    HBB = "hbb"
    OBB = "obb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One question about the image. `type` is the source's own question type, e.g. "count"."""

    question: str
    answer: str
    question_type: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Object:
    """One annotated object.

    Attributes:
        label: canonical class name, lower case, words separated by spaces.
        polygon: f32[8], pixels, x1,y1,...,x4,y4 clockwise on screen from the top-left-most corner.
            A horizontal box is its four corners.
        difficult: annotated, but not to be required of a detector.
        phrase: a description that is true of this object alone in the image; "" where unknown.
        visible: the share of its area that is inside the image; below 1 where a tile's border cuts it.
    """

    label: str
    polygon: np.ndarray
    difficult: bool = False
    phrase: str = ""
    visible: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One image and its truth.

    Attributes:
        id: stable, `source/split/native-id`.
        image: the original file's bytes; b"" for a source that ships annotations only.
        tasks: what the truth below is good for. A scene whose boxes are known at any
            orientation has both `hbb` and `obb`; a horizontal annotation has `hbb` only.
        label: scene class, lower case; "" where unknown.
        references: captions of the whole image.
        complete: every object of the classes that the source annotates is among `objects`; where one was rejected,
            lies in a region that nobody annotated, or is left out at a tile's border, nothing can be called absent.
    """

    id: str
    image: bytes
    height: int
    width: int
    sensor: Sensor
    source: str
    split: str
    tasks: tuple[Task, ...]
    label: str = ""
    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    objects: tuple[Object, ...] = ()
    complete: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedClasses:
    """The classes that one dataset annotates: of an image without one of them it can be said that there is none.

    Attributes:
        shares: label -> share of the dataset's records that hold one; empty where that is not known for certain.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def absent(self, record: Record) -> list[str]:
        """The classes that are surely not in a record's image, sorted; none where that cannot be told.

        A class whose name ends that of one that is there (`vehicle`, `large vehicle`) may be its hypernym, and
        is not absent.
        """
        if Task.HBB not in record.tasks or not record.complete:
            return []
        present = {item.label for item in record.objects}
        return [
            label
            for label in sorted(self.shares)
            if label not in present and not any(other.endswith(f" {label}") for other in present)
        ]


UNKNOWN_CLASSES = AnnotatedClasses()
