"""Where the time of one image goes, stage by stage, each beside the plain way to do the same."""

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
from earthgpt_jax.input.images import FILL, pad_to_square
from earthgpt_jax.input.packing.lengths import PromptConfig
from earthgpt_jax.input.pipeline import InputSpec, concatenate_batches
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import Question, question_indices
from earthgpt_jax.input.resize import resize_square
from earthgpt_jax.input.sequences import build_sample, image_prefix
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Record

_MOST, _QUESTIONS, _TIMES = 24, 8, 5
Taken = dict[str, float]


def took(do: Callable[[], object]) -> float:
    """Milliseconds of CPU, the least of a few times: what others do on the machine counts least."""
    least = float("inf")
    for _ in range(_TIMES):
        began = time.thread_time()
        do()
        least = min(least, time.thread_time() - began)
    return least * 1e3


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def image_stages(data: bytes) -> Taken:
    """Ours, and Pillow's for the same; 16 bits are stretched by ours alone."""
    pixels = decode(data)
    square = pad_to_square(pixels)
    same = len(square) == loaders.SIZE
    pillow = Image.fromarray(square)
    return {
        "decode": took(lambda: decode(data)),
        "pad, resize": took((lambda: pad_to_square(pixels)) if same else lambda: resize_square(pixels, 512, FILL)),
        "Pillow: decode": took(lambda: by_pillow(data)),
        "Pillow: pad": took(lambda: Image.fromarray(pad_to_square(pixels))),
        "Pillow: resize": 0.0
        if same
        else took(lambda: np.asarray(pillow.resize((512, 512), Image.Resampling.BICUBIC))),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profiler:
    """Times the stages of single records."""

    prompt_config: PromptConfig
    spec: InputSpec

    def record_stages(self, source: RecordSource, raw: Sequence[bytes], whole: Sequence[Mapping], index: int) -> Taken:
        serialized, record = raw[index], source[index]
        asked = [
            (kind, at)
            for kind in self.prompt_config.tasks
            for at in question_indices(record, kind, annotated=source.annotated, seed=self.prompt_config.seed)
        ][:_QUESTIONS]

        def ask() -> list[Question]:
            writing._rounded.cache_clear()
            return [self.prompt_config.question(record, *each, annotated=source.annotated) for each in asked]

        questions, template = ask(), chat_template(self.prompt_config.chat_template)
        prefix = image_prefix(self.prompt_config.tokenizer, template, visual_tokens=self.spec.visual_tokens)
        read = took(lambda: raw[index])
        return {
            "read": read,
            "record": took(lambda: to_record(serialized)),
            "questions": took(ask),
            "tokens": took(
                lambda: build_sample(
                    questions, prefix=prefix, tokenizer=self.prompt_config.tokenizer, chat_template=template
                )
            ),
            "TFDS: record": max(0.0, took(lambda: whole[index]) - read),
        }


def kind_of(record: Record) -> str:
    with Image.open(io.BytesIO(record.image)) as image:
        side = max(image.size)
        near = next((f"to {most}" for most in (256, 512, 800, 1024) if side <= most), "over 1024")
        return f"{record.sensor}, {image.format}, {image.mode}, {near} px"


def rewritten(record: Record) -> Iterator[tuple[str, bytes]]:
    """What the folder may lack: JPEG files of 600 to 1000 px, progressive ones, 16 bits."""
    pixels = Image.fromarray(decode(record.image))
    for side in (600, 800, 1000):
        if min(pixels.size) >= side:
            yield f"JPEG, {side} px, made", _saved(pixels.crop((0, 0, side, side)), "JPEG", quality=90)
            yield (
                f"JPEG, progressive, {side} px, made",
                _saved(pixels.crop((0, 0, side, side)), "JPEG", quality=90, progressive=True),
            )
    if min(pixels.size) >= 512:
        deep = np.asarray(pixels.convert("L").crop((0, 0, 512, 512)), np.uint16) * 200
        yield "16 bits, TIFF, 512 px, made", _saved(Image.fromarray(deep), "TIFF")


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def assembling(rows, *, count: int = 16) -> Taken:
    """Of a row's images, per image: what is left when everything else is taken off, and joining rows to a batch."""
    whole, parts, images, made = 0.0, 0.0, 0, []
    rng = np.random.default_rng(0)
    image = np.zeros((rows.build.spec.image_size, rows.build.spec.image_size, 3), np.uint8)
    for number in range(count):
        placed = rows.schedule[number]
        whole += took(functools.partial(rows.build, placed))
        parts += sum(took(functools.partial(rows.build._made, each, rng, image=image)) for each in placed)
        images += len(placed)
        made.append(rows.build(placed))
    return {
        "row": (whole - parts) / images,
        "batch": took(lambda: concatenate_batches(made, max_images=rows.schedule.max_images)) / images,
        "all of it": whole / images,
    }


def profile(datasets: Path) -> str:
    """Two Markdown tables: milliseconds of an image by kind, and of putting images into rows and batches."""
    rows = loaders.rows(str(datasets))
    profiler = Profiler(prompt_config=rows.build.prompt_config, spec=rows.build.spec)
    found: dict[str, list[Taken]] = collections.defaultdict(list)
    for source in rows.build.sources:
        assert isinstance(source, RecordSource)
        builder = tfds.builder_from_directory(str(source.directory))
        raw = builder.as_data_source(source.split, deserialize_method=DeserializeMethod.RAW_BYTES)
        whole = builder.as_data_source(source.split)
        for index in range(len(source)):
            record = source[index]
            kind = kind_of(record)
            if len(found[kind]) < _MOST:
                found[kind].append(profiler.record_stages(source, raw, whole, index) | image_stages(record.image))
            for other, data in rewritten(record):
                if len(found[other]) < _MOST:
                    found[other].append(image_stages(data))
    columns = ("read", "record", "questions", "tokens", "decode", "pad, resize")
    plain = ("TFDS: record", "Pillow: decode", "Pillow: pad", "Pillow: resize")
    lines = [
        "| | images | " + " | ".join((*columns, "sum", *plain)) + " |",
        "|---|" + "--:|" * (len(columns + plain) + 2),
    ]
    for kind, taken in sorted(found.items(), key=lambda pair: ("made" in pair[0], pair[0])):
        mean = {name: sum(each[name] for each in taken) / len(taken) for name in taken[0]}
        cells = [f"{mean[name]:.2f}" if name in mean else "" for name in columns]
        total = f"{sum(mean.get(name, 0) for name in columns):.2f}"
        lines.append(
            f"| {kind} | {len(taken)} | "
            + " | ".join([*cells, total, *(f"{mean[name]:.2f}" if name in mean else "" for name in plain)])
            + " |"
        )
    put = assembling(rows)
    square = np.zeros((loaders.SIZE, loaders.SIZE, 3), np.uint8)
    lines += ["", "| per image | ms |", "|---|--:|", *(f"| {name} | {value:.2f} |" for name, value in put.items())]
    lines.append(f"| a copy of its {square.nbytes / 1e6:.2f} MB | {took(square.copy):.2f} |")
    return "\n".join(lines)
