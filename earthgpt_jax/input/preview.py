"""The preview page: records with their boxes on the image, and their dialogue as the model sees it.

The dialogue, its boxes and the square are decoded from batches of the input pipeline, not taken from the records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jinja2
import numpy as np

from earthgpt_jax.boxes import Square, parse, polygon_to_rect, read_answer, rect_to_polygon
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
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Object, Record, Task

_LONGEST_SIDE = 1024  # px of an original image on the page


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxShape:
    """A box drawn on a picture.

    Attributes:
        marks: CSS classes, of `difficult` and `cut`.
    """

    points: str
    colour: str
    title: str
    marks: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with boxes.

    Attributes:
        href: The image as a data URI; "" for datasets that ship annotations only.
    """

    caption: str
    href: str
    width: float
    height: float
    boxes: tuple[BoxShape, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionView:
    """A question of a packed sequence: its text, and the number and colour of its boxes in the square."""

    colour: str
    spans: tuple[Span, ...]
    boxes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelView:
    """What the model sees of a record in one packed sequence.

    Attributes:
        too_long: Questions that do not fit into a sequence.
        later: Questions that are asked in other sequences.
    """

    square: Picture
    tokens: int
    seq_len: int
    visual: int
    shared: str
    questions: tuple[QuestionView, ...]
    too_long: int
    later: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordView:
    """A record on the page.

    Attributes:
        legend: (colour, class, number of objects).
        model: None if the record has no image.
    """

    record: Record
    pictures: tuple[Picture, ...]
    legend: tuple[tuple[str, str, int], ...]
    difficult: int
    cut: int
    model: ModelView | None


def render_page(
    records: Sequence[Record],
    *,
    title: str,
    recipe: str,
    config: Config,
    tokenizer: Tokenizer,
    annotated: Mapping[str, AnnotatedClasses] | None = None,
    made_by: str = "",
) -> str:
    """Render a self-contained HTML page without JavaScript.

    Args:
        recipe: Name of `config`, to show on the page.
        annotated: Source of a record -> classes that it annotates, for questions about absent classes.
        made_by: What made the page, to show on it.

    Raises:
        EarthGPTError: An image cannot be decoded, or `data.seq_len` leaves no room for questions.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.input", "pages"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    models = model_views(records, config=config, tokenizer=tokenizer, annotated=annotated or {})
    views = [_record_view(record, models.get(record.id)) for record in records]
    return environment.get_template("gallery.html").render(
        title=title, recipe=recipe, data=config.data, views=views, made_by=made_by
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SingleRecord:
    """A dataset of one record, for `SequenceBuilder`."""

    name: str
    annotated: AnnotatedClasses
    record: Record

    def __getitem__(self, index: int) -> Record:
        return self.record


def model_views(
    records: Sequence[Record], *, config: Config, tokenizer: Tokenizer, annotated: Mapping[str, AnnotatedClasses]
) -> dict[str, ModelView]:
    """Return, by record id, the view of the first sample that an epoch forms from a record; records need an image."""
    prompt_config, budget = prompt_config_of(config, tokenizer)
    times = dict.fromkeys(prompt_config.tasks, 1)
    views = {}
    for record in records:
        if not record.image:
            continue
        classes = annotated.get(record.source, UNKNOWN_CLASSES)
        index = measure_lengths([record], prompt_config=prompt_config, annotated=classes)
        samples = EpochSampler(index, times=times, epochs=1, budget=budget, seed=config.seed).epoch(0)
        first = samples.questions_of(0) if len(samples) else np.zeros(0, np.int64)
        build = SequenceBuilder(
            sources=[_SingleRecord(name=record.source, annotated=classes, record=record)],
            prompt_config=prompt_config,
            spec=InputSpec.of(config),
            seq_len=budget.seq_len,
            max_images=1,
        )
        batch = build([PackedSample(source=0, record=0, questions=index.keys(first))])
        views[record.id] = _model_view(
            batch,
            tokenizer,
            record,
            too_long=sum(samples.too_long.values()),
            later=len(samples.questions) - len(first),
        )
    return views


def _boxes_in_square(spans: Sequence[Span], record: Record, *, side: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield label and polygon, f[8] in pixels of the padded square, of the boxes of a question and its answer."""
    square = Square(record.width, record.height)
    answer = "".join(span.text for span in spans if span.supervised)
    parsed, frame = read_answer(answer, width=record.width, height=record.height)
    if frame == square:  # in MMRS's format, questions have boxes as well
        parsed = parse("".join(span.text for span in spans))
    for box in parsed.boxes:
        yield box.label, square.to_fractions(box.pixels(frame)) * side


def _model_view(batch: Batch, tokenizer: Tokenizer, record: Record, *, too_long: int, later: int) -> ModelView:
    transcript = decode_transcript(batch, 0, tokenizer=tokenizer)
    pixels = batch.images[0, 0]
    boxes: list[BoxShape] = []
    questions = []
    for number, spans in enumerate(transcript.questions):
        colour = COLOURS[number % len(COLOURS)]
        shapes = [
            BoxShape(points=svg_points(polygon), colour=colour, title=label)
            for label, polygon in _boxes_in_square(spans, record, side=pixels.shape[0])
        ]
        boxes += shapes
        questions.append(QuestionView(colour=colour, spans=spans, boxes=len(shapes)))
    caption = f"the padded square, {pixels.shape[1]} px, with the boxes of the dialogue"
    return ModelView(
        square=_picture(caption, pixels, boxes, encoding=Encoding.PNG),
        tokens=transcript.tokens,
        seq_len=batch.tokens.shape[1],
        visual=transcript.visual,
        shared=transcript.shared,
        questions=tuple(questions),
        too_long=too_long,
        later=later,
    )


def _record_view(record: Record, model: ModelView | None) -> RecordView:
    labels = sorted({item.label for item in record.objects})
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    return RecordView(
        record=record,
        pictures=tuple(_pictures(record, colours)),
        legend=tuple((colours[label], label, sum(o.label == label for o in record.objects)) for label in labels),
        difficult=sum(item.difficult for item in record.objects),
        cut=sum(item.visible < 1 for item in record.objects),
        model=model,
    )


def _pictures(record: Record, colours: Mapping[str, str]) -> Iterator[Picture]:
    """Yield the image once for each box type that the record has, or without boxes if it has none."""
    pixels = record_pixels(record) if record.image else None
    width, height = image_extent(record)
    oriented, horizontal = "oriented boxes", "horizontal boxes"
    captions = {
        oriented: Task.OBB in record.tasks,
        horizontal: bool(record.objects) and (Task.HBB in record.tasks or Task.OBB not in record.tasks),
        "the image": bool(record.image) and not record.objects and Task.OBB not in record.tasks,
    }
    for caption in (caption for caption, applies in captions.items() if applies):
        boxes = tuple(
            _box_shape(item, colours[item.label], horizontal=caption == horizontal) for item in record.objects
        )
        if pixels is None:
            yield Picture(caption=f"{caption}; no image ships", href="", width=width, height=height, boxes=boxes)
        else:
            yield _picture(caption, pixels, boxes, encoding=Encoding.JPEG)


def _box_shape(item: Object, colour: str, *, horizontal: bool) -> BoxShape:
    polygon = rect_to_polygon(*polygon_to_rect(item.polygon)) if horizontal else item.polygon
    notes = [item.label]
    if item.phrase:
        notes.append(f"“{item.phrase}”")
    if item.difficult:
        notes.append("difficult")
    if item.visible < 1:
        notes.append(f"cut: {item.visible:.0%} visible")
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
