"""Profile the stages of one image, each next to a common alternative."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import loaders
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.decode import DeserializeMethod

from earthgpt_jax.boxes import writing
from earthgpt_jax.datasets.examples import to_record
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.batch import concatenate_batches
from earthgpt_jax.input.images import FILL, pad_to_square
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import Question, question_indices
from earthgpt_jax.input.resize import resize_square
from earthgpt_jax.input.sequences import build_sample, image_prefix
from earthgpt_jax.raster.decode import decode, record_pixels
from earthgpt_jax.records import Record

_MAX_IMAGES, _QUESTIONS, _TIMES = 24, 8, 5
Times = dict[str, float]  # stage -> milliseconds


def milliseconds(function: Callable[[], object]) -> float:
    """Return the CPU milliseconds of a call, the least of a few, which depends least on other load."""
    least = float("inf")
    for _ in range(_TIMES):
        began = time.thread_time()
        function()
        least = min(least, time.thread_time() - began)
    return least * 1e3


def decode_with_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def image_stages(data: bytes) -> Times:
    """Time our decoding and resizing, and Pillow's, which does not stretch images with 16 bits."""
    pixels = decode(data)
    square = pad_to_square(pixels)
    same = len(square) == loaders.SIZE
    pillow = Image.fromarray(square)
    return {
        "decode": milliseconds(lambda: decode(data)),
        "pad, resize": milliseconds(
            (lambda: pad_to_square(pixels)) if same else lambda: resize_square(pixels, 512, FILL)
        ),
        "Pillow: decode": milliseconds(lambda: decode_with_pillow(data)),
        "Pillow: pad": milliseconds(lambda: Image.fromarray(pad_to_square(pixels))),
        "Pillow: resize": 0.0
        if same
        else milliseconds(lambda: np.asarray(pillow.resize((512, 512), Image.Resampling.BICUBIC))),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profiler:
    """Times the stages of single records."""

    prompt_config: PromptConfig
    spec: InputSpec

    def record_stages(
        self, source: RecordSource, raw: Sequence[bytes], decoded: Sequence[Mapping], index: int
    ) -> Times:
        serialized, record = raw[index], source[index]
        keys = [
            (task, at)
            for task in self.prompt_config.tasks
            for at in question_indices(record, task, annotated=source.annotated, seed=self.prompt_config.seed)
        ][:_QUESTIONS]

        def build() -> list[Question]:
            writing._rounded.cache_clear()
            return [self.prompt_config.question(record, *key, annotated=source.annotated) for key in keys]

        questions, template = build(), chat_template(self.prompt_config.chat_template)
        prefix = image_prefix(self.prompt_config.tokenizer, template, visual_tokens=self.spec.visual_tokens)
        read = milliseconds(lambda: raw[index])
        return {
            "read": read,
            "record": milliseconds(lambda: to_record(serialized)),
            "questions": milliseconds(build),
            "tokens": milliseconds(
                lambda: build_sample(
                    questions, prefix=prefix, tokenizer=self.prompt_config.tokenizer, chat_template=template
                )
            ),
            "TFDS: record": max(0.0, milliseconds(lambda: decoded[index]) - read),
        }


def describe_image(record: Record) -> str:
    """Return sensor, format, mode and size class of a record's image."""
    with Image.open(io.BytesIO(record.image)) as image:
        side = max(image.size)
        near = next((f"to {most}" for most in (256, 512, 800, 1024) if side <= most), "over 1024")
        return f"{record.sensor}, {image.format}, {image.mode}, {near} px"


def rewritten(record: Record) -> Iterator[tuple[str, bytes]]:
    """Yield files of kinds that a folder may lack: JPEG of 600 to 1000 px, progressive JPEG, 16 bits."""
    pixels = Image.fromarray(record_pixels(record))
    for side in (600, 800, 1000):
        if min(pixels.size) >= side:
            yield f"JPEG, {side} px (made)", _saved(pixels.crop((0, 0, side, side)), "JPEG", quality=90)
            yield (
                f"JPEG, progressive, {side} px (made)",
                _saved(pixels.crop((0, 0, side, side)), "JPEG", quality=90, progressive=True),
            )
    if min(pixels.size) >= 512:
        deep = np.asarray(pixels.convert("L").crop((0, 0, 512, 512)), np.uint16) * 200
        yield "16 bits, TIFF, 512 px (made)", _saved(Image.fromarray(deep), "TIFF")


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def packing_stages(sequences: PackedSequences, *, count: int = 16) -> Times:
    """Time per image what remains after the other stages: packing into a sequence and concatenating a batch."""
    total, parts, images, batches = 0.0, 0.0, 0, []
    build, rng = sequences.build, np.random.default_rng(0)
    image = np.zeros((build.spec.image_size, build.spec.image_size, 3), np.uint8)
    for number in range(count):
        samples = sequences.schedule[number]
        total += milliseconds(functools.partial(build, samples))
        parts += sum(milliseconds(functools.partial(build._build_sample, each, rng, image=image)) for each in samples)
        images += len(samples)
        batches.append(build(samples))
    return {
        "packing into a sequence": (total - parts) / images,
        "concatenating a batch": milliseconds(lambda: concatenate_batches(batches, max_images=build.max_images))
        / images,
        "total": total / images,
    }


def profile(datasets: Path) -> str:
    """Return two Markdown tables: milliseconds per image for each kind of file, and of packing and batching."""
    sequences = loaders.packed_sequences(str(datasets))
    profiler = Profiler(prompt_config=sequences.build.prompt_config, spec=sequences.build.spec)
    times: dict[str, list[Times]] = collections.defaultdict(list)
    for source in sequences.build.sources:
        assert isinstance(source, RecordSource)
        builder = tfds.builder_from_directory(str(source.directory))
        raw = builder.as_data_source(source.split, deserialize_method=DeserializeMethod.RAW_BYTES)
        decoded = builder.as_data_source(source.split)
        for index in range(len(source)):
            record = source[index]
            kind = describe_image(record)
            if len(times[kind]) < _MAX_IMAGES:
                times[kind].append(profiler.record_stages(source, raw, decoded, index) | image_stages(record.image))
            for made, data in rewritten(record):
                if len(times[made]) < _MAX_IMAGES:
                    times[made].append(image_stages(data))
    stages = ("read", "record", "questions", "tokens", "decode", "pad, resize")
    alternatives = ("TFDS: record", "Pillow: decode", "Pillow: pad", "Pillow: resize")
    lines = [
        "| | images | " + " | ".join((*stages, "sum", *alternatives)) + " |",
        "|---|" + "--:|" * (len(stages + alternatives) + 2),
    ]
    for kind, images in sorted(times.items(), key=lambda pair: ("made" in pair[0], pair[0])):
        mean = {name: sum(image[name] for image in images) / len(images) for name in images[0]}
        cells, more = (
            [f"{mean[name]:.2f}" if name in mean else "" for name in names] for names in (stages, alternatives)
        )
        total = f"{sum(mean.get(name, 0) for name in stages):.2f}"
        lines.append(f"| {kind} | {len(images)} | " + " | ".join([*cells, total, *more]) + " |")
    square = np.zeros((loaders.SIZE, loaders.SIZE, 3), np.uint8)
    packing = packing_stages(sequences) | {f"copying its {square.nbytes / 1e6:.2f} MB": milliseconds(square.copy)}
    lines += ["", "| per image | ms |", "|---|--:|", *(f"| {name} | {value:.2f} |" for name, value in packing.items())]
    return "\n".join(lines)
