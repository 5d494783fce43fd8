"""A page of records: their boxes on the image, and the dialogue the way the model will see it.

The dialogue, its boxes and the square come out of the input pipeline's own batches, decoded, not from the records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jinja2
import numpy as np

from earthgpt_jax.geometry import Square, parse, polygon_to_rect, rect_to_polygon
from earthgpt_jax.input.images import decode
from earthgpt_jax.input.pipeline import InputSpec, train_iterator
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.input.transcript import Span, transcript
from earthgpt_jax.mmrs.pictures import Encoding, data_uri, points
from earthgpt_jax.mmrs.preview import COLOURS, extent
from earthgpt_jax.mmrs.record import Object, Record, Task

_LONGEST_SIDE = 1024  # of an original on the page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A box on a picture: `marks` are `difficult` and `cut`, as the page's styles are called."""

    points: str
    colour: str
    title: str
    marks: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with boxes; `href` is "" where only annotations ship."""

    caption: str
    href: str
    width: float
    height: float
    boxes: tuple[Drawn, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of a row: its text, and the colour that its boxes have in the square."""

    colour: str
    spans: tuple[Span, ...]
    boxes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What the model sees of a record in one step."""

    square: Picture
    tokens: int
    tokens_per_row: int
    visual: int
    shared: str
    asked: tuple[Asked, ...]
    left_out: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A record on the page; `legend` is (colour, class, objects)."""

    record: Record
    pictures: tuple[Picture, ...]
    legend: tuple[tuple[str, str, int], ...]
    difficult: int
    cut: int
    seen: Seen | None


def page(records: Sequence[Record], *, title: str, recipe: str, spec: InputSpec, tokenizer: Tokenizer) -> str:
    """The HTML page; everything in it is inline, and it has no JavaScript.

    Args:
        recipe: the name of the recipe behind `spec`, for the page.

    Raises:
        EarthGPTError: an image does not decode, or the recipe's rows are too short.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.mmrs", "pages"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    views = seen(records, spec=spec, tokenizer=tokenizer)
    shown = [_shown(record, views.get(record.id)) for record in records]
    return environment.get_template("gallery.html").render(title=title, recipe=recipe, spec=spec, shown=shown)


def seen(records: Sequence[Record], *, spec: InputSpec, tokenizer: Tokenizer) -> dict[str, Seen]:
    """Record id -> its row in a training run's first epoch over these records; without those that have no image."""
    usable = [record for record in records if record.image]
    if not usable:
        return {}
    alone = dataclasses.replace(spec, batch_size=1)
    batches = train_iterator(usable, spec=alone, tokenizer=tokenizer, threads=1)
    found = {}
    for _, (_, batch) in zip(usable, batches, strict=False):
        read = transcript(batch, 0, tokenizer=tokenizer)
        pixels = batch.images[0, 0]
        boxes: list[Drawn] = []
        asked = []
        for number, spans in enumerate(read.questions):
            colour = COLOURS[number % len(COLOURS)]
            own = [
                Drawn(points=points(box.pixels(Square(*pixels.shape[:2]))), colour=colour, title=box.label)
                for box in parse("".join(span.text for span in spans)).boxes
            ]
            boxes += own
            asked.append(Asked(colour=colour, spans=spans, boxes=len(own)))
        caption = f"the padded square, {pixels.shape[1]} px, with the boxes of the dialogue"
        # One row a batch: its id is "record:questions".
        found[batch.ids[0].rpartition(":")[0]] = Seen(
            square=_picture(caption, pixels, boxes, encoding=Encoding.PNG),
            tokens=read.tokens,
            tokens_per_row=spec.tokens_per_row,
            visual=read.visual,
            shared=read.shared,
            asked=tuple(asked),
            left_out=batch.left_out,
        )
    return found


def _shown(record: Record, view: Seen | None) -> Shown:
    labels = sorted({item.label for item in record.objects})
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    return Shown(
        record=record,
        pictures=tuple(_pictures(record, colours)),
        legend=tuple((colours[label], label, sum(o.label == label for o in record.objects)) for label in labels),
        difficult=sum(item.difficult for item in record.objects),
        cut=sum(item.visible < 1 for item in record.objects),
        seen=view,
    )


def _pictures(record: Record, colours: Mapping[str, str]) -> Iterator[Picture]:
    """The image once for each kind of box it has; as it is, if it has none."""
    pixels = decode(record.image) if record.image else None
    width, height = extent(record)
    kinds = {
        "oriented boxes": Task.OBB in record.tasks,
        "upright boxes": bool(record.objects) and (Task.HBB in record.tasks or Task.OBB not in record.tasks),
        "the image": bool(record.image) and not record.objects and Task.OBB not in record.tasks,
    }
    for kind in (kind for kind, has in kinds.items() if has):
        upright = kind == "upright boxes"
        drawn = tuple(_drawn(item, colours[item.label], upright=upright) for item in record.objects)
        if pixels is None:
            yield Picture(caption=f"{kind}; no image ships", href="", width=width, height=height, boxes=drawn)
        else:
            yield _picture(kind, pixels, drawn, encoding=Encoding.JPEG)


def _drawn(item: Object, colour: str, *, upright: bool) -> Drawn:
    polygon = rect_to_polygon(*polygon_to_rect(item.polygon)) if upright else item.polygon
    notes = [item.label]
    if item.phrase:
        notes.append(f"“{item.phrase}”")
    if item.difficult:
        notes.append("difficult")
    if item.visible < 1:
        notes.append(f"cut: {item.visible:.0%} of it is here")
    marks = " ".join(["difficult"] * item.difficult + ["cut"] * (item.visible < 1))
    return Drawn(points=points(polygon), colour=colour, title=", ".join(notes), marks=marks)


def _picture(caption: str, pixels: np.ndarray, boxes: Sequence[Drawn], *, encoding: Encoding) -> Picture:
    return Picture(
        caption=caption,
        href=data_uri(pixels, longest_side=_LONGEST_SIDE, encoding=encoding),
        width=pixels.shape[1],
        height=pixels.shape[0],
        boxes=tuple(boxes),
    )
