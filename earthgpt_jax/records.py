"""The Record: one image with all its annotations. Readers of datasets produce records; the input pipeline reads them.

Boxes are stored as polygons in pixels of the original image. The input pipeline renders them as text, so that the box
format, the number of decimals and augmentation stay choices of the config.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

import numpy as np


class Sensor(enum.StrEnum):
    """What took the image."""

    OPTICAL = "optical"
    SAR = "sar"
    INFRARED = "infrared"


class Task(enum.StrEnum):
    """What can be asked about an image.

    classification: the class of the scene. caption: a description of the image. vqa: a question with a short answer.
    region_caption: a description of the object in a given box. grounding: the box of a described object. hbb, obb:
    the horizontal or oriented boxes of all objects.
    """

    CLASSIFICATION = "classification"
    CAPTION = "caption"
    VQA = "vqa"
    REGION_CAPTION = "region_caption"
    GROUNDING = "grounding"
    HBB = "hbb"
    OBB = "obb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One question about the image and its answer.

    Attributes:
        question, answer: text, as in the dataset.
        question_type: the dataset's own type of the question, for example "count"; "" if it has none. Evaluation
            reports accuracy by it.
    """

    question: str
    answer: str
    question_type: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Object:
    """One annotated object.

    Attributes:
        label: class name, lower case, words separated by spaces: "large vehicle".
        polygon: f32[8], x1,y1,...,x4,y4 in pixels of the original image, clockwise on screen from the corner with the
            smallest y (then the smallest x). A horizontal box is stored as its four corners.
        difficult: marked as difficult by the dataset; a detector is neither rewarded nor punished for it.
        phrase: description that applies to this object only, among all objects of the image; "" if unknown.
        visible: share of the object's area that is inside the image, in (0, 1]; below 1 for an object at the border
            of a tile.
    """

    label: str
    polygon: np.ndarray
    difficult: bool = False
    phrase: str = ""
    visible: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One image and its annotations.

    For example, a DOTA tile has `tasks=(Task.HBB, Task.OBB)`, its `objects`, and nothing else; an RSVQA image has
    `tasks=(Task.VQA,)` and `turns`.

    Attributes:
        id: unique and stable, `source/split/native-id`. Sampling and splits depend on it.
        image: bytes of the original image file; b"" for a dataset that publishes annotations only.
        height, width: size of the image as its annotations refer to it, in pixels.
        sensor: what took the image.
        source: name of the dataset.
        split: split of the dataset: train, val or test.
        tasks: tasks that the annotations are sufficient for. Oriented boxes give both `hbb` and `obb`, horizontal
            boxes only `hbb`.
        label: class of the scene, lower case; "" if unknown.
        turns: questions about the image and their answers, for `vqa`; in order where they form a dialogue.
        references: captions of the image, for `caption`.
        objects: annotated objects, for `hbb`, `obb`, `grounding` and `region_caption`.
        complete: whether `objects` has every object of the classes that the dataset annotates. False if an object was
            rejected, was left out at the border of a tile, or lies in a region that was not annotated. No class can
            then be called absent.
        stretch: how pixels of more than 8 bits become 8 bits, the text of a `raster.policy.Stretch`; "" for images
            that are shown as they are.
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
    stretch: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedClasses:
    """The classes that a dataset annotates exhaustively: an image has no object of a class without an annotation.

    Attributes:
        shares: class -> share of the dataset's records that contain it; empty if the classes are not known for certain.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def absent(self, record: Record) -> list[str]:
        """Return the classes that are certainly not in a record's image, sorted; [] if that cannot be known.

        A class whose name is the end of a present class's name (`vehicle` of `large vehicle`) may be its hypernym, so
        it does not count as absent.
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
