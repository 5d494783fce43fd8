"""A page of records: their boxes on the image, and the dialogue the way the model will see it.

The dialogue, its boxes and the square come out of the input pipeline's own batches, decoded, not from the records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jinja2
import numpy as np

from earthgpt_jax.boxes import Square, parse, polygon_to_rect, rect_to_polygon
from earthgpt_jax.common.pictures import Encoding, data_uri, svg_points
from earthgpt_jax.config import Config
from earthgpt_jax.datasets.inspect.contact_sheet import COLOURS, image_extent
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.packing.lengths import measure_lengths
from earthgpt_jax.input.packing.sampler import EpochSampler
from earthgpt_jax.input.packing.schedule import PackedSample
from earthgpt_jax.input.packing.training_data import prompt_config_of
from earthgpt_jax.input.pipeline import InputSpec, SequenceBuilder
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.input.transcript import Span, decode_transcript
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Object, Record, Task

_LONGEST_SIDE = 1024  # of an original on the page


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxShape:
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
    boxes: tuple[BoxShape, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionView:
    """One question of a row: its text, and the colour that its boxes have in the square."""

    colour: str
    spans: tuple[Span, ...]
    boxes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelView:
    """What the model sees of a record in one row.

    Attributes:
        left_out: questions that are longer than a row.
        later: questions that are asked in other rows.
    """

    square: Picture
    tokens: int
    seq_len: int
    visual: int
    shared: str
    asked: tuple[QuestionView, ...]
    left_out: int
    later: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordView:
    """A record on the page; `legend` is (colour, class, objects)."""

    record: Record
    pictures: tuple[Picture, ...]
    legend: tuple[tuple[str, str, int], ...]
    difficult: int
    cut: int
    model_views: ModelView | None


def render_page(
    records: Sequence[Record], *, title: str, recipe: str, config: Config, tokenizer: Tokenizer,
    annotated: Mapping[str, AnnotatedClasses] | None = None,
) -> str:  # fmt: skip
    """The HTML page; everything in it is inline, and it has no JavaScript.

    Args:
        recipe: the name of `config`, for the page.
        annotated: a record's source -> the classes it annotates; questions about absent classes need it.

    Raises:
        EarthGPTError: an image does not decode, or the recipe's rows are too short.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.input", "pages"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    views = model_views(records, config=config, tokenizer=tokenizer, annotated=annotated or {})
    shown = [_shown(record, views.get(record.id)) for record in records]
    return environment.get_template("gallery.html").render(title=title, recipe=recipe, data=config.data, shown=shown)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Alone:
    """A record as a dataset of its own."""

    name: str
    annotated: AnnotatedClasses
    record: Record

    def __getitem__(self, index: int) -> Record:
        return self.record


def model_views(
    records: Sequence[Record], *, config: Config, tokenizer: Tokenizer, annotated: Mapping[str, AnnotatedClasses]
) -> dict[str, ModelView]:
    """Record id -> the first of the samples that an epoch makes of it; without those records that have no image."""
    prompt_config, room = prompt_config_of(config, tokenizer)
    times = dict.fromkeys(prompt_config.kinds, 1)
    found = {}
    for record in records:
        if not record.image:
            continue
        known = annotated.get(record.source, UNKNOWN_CLASSES)
        index = measure_lengths([record], prompt_config=prompt_config, annotated=known)
        made = EpochSampler(index, times=times, epochs=1, room=room, seed=config.seed).epoch(0)
        first = made.of(0) if len(made) else np.zeros(0, np.int64)
        assemble = SequenceBuilder(
            sources=[_Alone(name=record.source, annotated=known, record=record)], prompt_config=prompt_config,
            spec=InputSpec.of(config), seq_len=room.seq_len, max_images=1,
        )  # fmt: skip
        batch = assemble([PackedSample(source=0, record=0, questions=index.named(first))])
        found[record.id] = _seen(
            batch, tokenizer, left_out=sum(made.left_out.values()), later=len(made.questions) - len(first)
        )
    return found


def _seen(batch: Batch, tokenizer: Tokenizer, *, left_out: int, later: int) -> ModelView:
    read = decode_transcript(batch, 0, tokenizer=tokenizer)
    pixels = batch.images[0, 0]
    boxes: list[BoxShape] = []
    asked = []
    for number, spans in enumerate(read.questions):
        colour = COLOURS[number % len(COLOURS)]
        own = [
            BoxShape(points=svg_points(box.pixels(Square(*pixels.shape[:2]))), colour=colour, title=box.label)
            for box in parse("".join(span.text for span in spans)).boxes
        ]
        boxes += own
        asked.append(QuestionView(colour=colour, spans=spans, boxes=len(own)))
    caption = f"the padded square, {pixels.shape[1]} px, with the boxes of the dialogue"
    return ModelView(
        square=_picture(caption, pixels, boxes, encoding=Encoding.PNG),
        tokens=read.tokens,
        seq_len=batch.tokens.shape[1],
        visual=read.visual,
        shared=read.shared,
        asked=tuple(asked),
        left_out=left_out,
        later=later,
    )


def _shown(record: Record, view: ModelView | None) -> RecordView:
    labels = sorted({item.label for item in record.objects})
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    return RecordView(
        record=record,
        pictures=tuple(_pictures(record, colours)),
        legend=tuple((colours[label], label, sum(o.label == label for o in record.objects)) for label in labels),
        difficult=sum(item.difficult for item in record.objects),
        cut=sum(item.visible < 1 for item in record.objects),
        model_views=view,
    )


def _pictures(record: Record, colours: Mapping[str, str]) -> Iterator[Picture]:
    """The image once for each kind of box it has; as it is, if it has none."""
    pixels = decode(record.image) if record.image else None
    width, height = image_extent(record)
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


def _drawn(item: Object, colour: str, *, upright: bool) -> BoxShape:
    polygon = rect_to_polygon(*polygon_to_rect(item.polygon)) if upright else item.polygon
    notes = [item.label]
    if item.phrase:
        notes.append(f"“{item.phrase}”")
    if item.difficult:
        notes.append("difficult")
    if item.visible < 1:
        notes.append(f"cut: {item.visible:.0%} of it is here")
    marks = " ".join(["difficult"] * item.difficult + ["cut"] * (item.visible < 1))
    return BoxShape(points=svg_points(polygon), colour=colour, title=", ".join(notes), marks=marks)


def _picture(caption: str, pixels: np.ndarray, boxes: Sequence[BoxShape], *, encoding: Encoding) -> Picture:
    return Picture(
        caption=caption,
        href=data_uri(pixels, longest_side=_LONGEST_SIDE, encoding=encoding),
        width=pixels.shape[1],
        height=pixels.shape[0],
        boxes=tuple(boxes),
    )
