"""Makes the embedded models: `python scripts/make_tiny.py all --workdir runs/make_tiny --out earthgpt_jax/assets`.

Every step is skipped where its result exists, and all of them are seeded:

  render     synthetic training records, as arrays
  tokenizer  a SentencePiece model in LLaMA's layout over the synthetic texts
  encoders   ViT and ConvNeXt, trained on a dense pretext task (what is in this cell, where are its
             corners, which of its class is it), stand-ins for DINOv2 and CLIP; the heads are thrown away
  llm        LLaMA, trained as a language model on scenes written out, as text or as a map of symbols, then
             questions and answers about them, and, in a round of its own, on everything there is to ask about
             a map; it never sees an image
  base       encoders + LLM + untrained projector = `tiny-base`
  align      the recipe `tiny:align`, long
  instruct   the recipe `tiny:instruct`, long = `tiny`
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import optax.contrib
from flax import nnx
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.boxes import BoxKind, Square, format_boxes
from earthgpt_jax.config import AdapterConfig, Config, DType, load
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.input.batch import TEXT_SLOT
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.prompts.chat_template import ChatTemplate, chat_template
from earthgpt_jax.input.prompts.questions import (
    GROUNDED_CAPTIONS,
    BoxStyle,
    Question,
    build_question,
    question_indices,
)
from earthgpt_jax.input.sequences import build_sample, image_prefix, pack_samples, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.models.earthgpt import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    EarthGPT,
    ImageTokens,
    normalize,
)
from earthgpt_jax.models.layers import LayerNorm, Linear
from earthgpt_jax.models.llama import Llama, PackedAttention
from earthgpt_jax.models.perception import Projector
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.losses import next_token_loss
from earthgpt_jax.records import Record, Task
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.synthetic import OBJECTS, SyntheticSource
from earthgpt_jax.synthetic.canvas import WORLD
from earthgpt_jax.synthetic.language import SceneContents
from earthgpt_jax.synthetic.placement import PlacedObject
from earthgpt_jax.synthetic.pose import Pose
from earthgpt_jax.synthetic.questions import all_questions
from earthgpt_jax.training.loop import train

GRID = 8
RANKS = 6  # nothing, first to fifth
COORDINATES = 12  # HBB x0,y0,x1,y1 and the four corners of the OBB


# ---------------------------------------------------------------------------------------------- render
def render(workdir: Path, *, count: int) -> dict[str, np.ndarray]:
    """Images and dense targets of `count` training records."""
    path = workdir / f"dense_{count}.npz"
    if not path.exists():
        source = open_records(dataset(workdir, count=count), "train")
        labels = sorted({item.label for item in (source[i] for i in range(200))})
        objects = sorted({o.label for i in range(200) for o in source[i].objects})
        sensors = ["optical", "sar", "infrared"]
        rows = []
        with multiprocessing.get_context("spawn").Pool() as pool:
            for record in tqdm(pool.imap(source.__getitem__, range(count), chunksize=64), total=count, desc="render"):
                cells = dense_targets(record, objects)
                scene = (labels.index(record.label), sensors.index(record.sensor))
                counts = [min(sum(o.label == name for o in record.objects), 5) for name in objects]
                rows.append((load_square(record.image, 128), *cells, np.array(scene), np.array(counts)))
        names = ("images", "classes", "coordinates", "scene", "counts")
        workdir.mkdir(parents=True, exist_ok=True)
        columns = {name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        np.savez(path, **columns)  # type: ignore[arg-type]
    dense = dict(np.load(path))
    dense["ranks"] = np.stack([ranks(*cells) for cells in zip(dense["classes"], dense["coordinates"], strict=True)])
    return dense


def dense_targets(record, objects: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each cell: the class (0: nothing) and the coordinates of the object that covers its middle or has its
    centre there."""
    classes = np.zeros((GRID, GRID), np.int32)
    coordinates = np.zeros((GRID, GRID, COORDINATES), np.float32)
    middles = (np.arange(GRID) + 0.5) / GRID
    x, y = np.meshgrid(middles, middles)
    for item in record.objects:
        polygon = np.asarray(item.polygon, np.float32).reshape(4, 2) / record.width
        box = np.concatenate([polygon.min(0), polygon.max(0)])
        following = np.roll(polygon, -1, axis=0)
        side = [
            (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in zip(polygon, following, strict=True)
        ]
        inside = np.all([s >= 0 for s in side], axis=0) | np.all([s <= 0 for s in side], axis=0)
        column, row = np.clip((polygon.mean(0) * GRID).astype(int), 0, GRID - 1)
        inside[row, column] = True
        classes[inside] = 1 + objects.index(item.label)
        coordinates[inside] = np.concatenate([box, polygon.reshape(-1)])
    return classes, np.clip(coordinates, 0, 0.999)


def ranks(classes: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Of each cell: which of its class its object is in the order in which answers list boxes, from 1 (0: nothing)."""
    order = np.zeros((GRID, GRID), np.int32)
    for label in np.unique(classes[classes > 0]):
        cells = classes == label
        top_left = coordinates[cells][:, 1::-1].round(2)  # y, x
        order[cells] = 1 + np.unique(top_left, axis=0, return_inverse=True)[1].reshape(-1)
    return np.minimum(order, RANKS - 1)


# -------------------------------------------------------------------------------------------- encoders
class DenseHead(nnx.Module):
    """Linear read-outs of one encoder: what the LLM can later pick up with a linear projector."""

    def __init__(self, dim: int, *, classes: int, scenes: int, rngs: nnx.Rngs):
        make = functools.partial(Linear, dim, rngs=rngs, dtype=DType.FLOAT32)
        self.norm = LayerNorm(dim, eps=1e-6)
        self.classes, self.ranks = make(1 + classes), make(RANKS)
        self.coordinates = make(COORDINATES)
        self.offsets = make(COORDINATES)  # the same, from the cell's middle: what a convolution can tell
        self.digits = make(COORDINATES * 20)
        self.scene, self.sensor, self.counts = make(scenes), make(3), make(classes * 6)

    def __call__(self, tokens: jax.Array) -> dict[str, jax.Array]:
        tokens = self.norm(tokens)
        cls, cells = tokens[:, 0], tokens[:, 1:]
        return {
            "classes": self.classes(cells),
            "ranks": self.ranks(cells),
            "coordinates": self.coordinates(cells),
            "offsets": self.offsets(cells),
            "digits": self.digits(cells).reshape(*cells.shape[:2], COORDINATES, 2, 10),
            "scene": self.scene(cls),
            "sensor": self.sensor(cls),
            "counts": self.counts(cls).reshape(cls.shape[0], -1, 6),
        }


class Pretext(nnx.Module):
    def __init__(self, config: Config, *, classes: int, scenes: int, rngs: nnx.Rngs):
        model = EarthGPT(config.model, rngs=rngs)
        self.vit, self.convnext, self.perception = model.vit, model.convnext, model.perception
        self.taps = config.model.perception.vit_layers
        cnn_dim = sum(config.model.convnext.dims)
        head = functools.partial(DenseHead, classes=classes, scenes=scenes, rngs=rngs)
        self.heads = nnx.List([head(config.model.vit.dim), head(cnn_dim), head(cnn_dim + config.model.vit.dim)])

    def __call__(self, images: jax.Array) -> list[dict[str, jax.Array]]:
        pixels = images.astype(jnp.float32) / 255
        cnn = self.perception._fuse_cnn(self.convnext(normalize(pixels, CLIP_MEAN, CLIP_STD)))
        vit = self.vit(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), taps=self.taps)[-1]
        inputs = (vit, cnn, jnp.concatenate([cnn, vit], -1))
        return [head(tokens) for head, tokens in zip(self.heads, inputs, strict=True)]


def dense_loss(out: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    cross = optax.softmax_cross_entropy_with_integer_labels
    rows = batch["classes"].shape[0]
    classes, ranks = batch["classes"].reshape(rows, -1), batch["ranks"].reshape(rows, -1)
    target = batch["coordinates"].reshape(rows, GRID * GRID, COORDINATES)
    middles = (np.stack(np.divmod(np.arange(GRID**2), GRID)[::-1], axis=-1) + 0.5) / GRID  # P 2: x, y
    offsets = target - np.tile(middles, COORDINATES // 2).astype(np.float32)
    inside = (classes > 0).astype(jnp.float32)
    positives = jnp.maximum(inside.sum(), 1.0)
    hundredths = jnp.minimum(jnp.round(target * 100), 99).astype(jnp.int32)
    digits = jnp.stack([hundredths // 10, hundredths % 10], axis=-1)
    each = cross(out["digits"], digits).mean(2)  # B P 2
    parts = {
        "class": cross(out["classes"], classes).mean(),
        "rank": cross(out["ranks"], ranks).mean(),
        "box": (jnp.abs(out["coordinates"] - target).mean(-1) * inside).sum() / positives,
        "offset": (jnp.abs(out["offsets"] - offsets).mean(-1) * inside).sum() / positives,
        "tens": (each[..., 0] * inside).sum() / positives,
        "units": (each[..., 1] * inside).sum() / positives,
        "scene": cross(out["scene"], batch["scene"][:, 0]).mean(),
        "sensor": cross(out["sensor"], batch["scene"][:, 1]).mean(),
        "counts": cross(out["counts"], batch["counts"]).mean(),
    }
    weights = {
        "class": 3.0,
        "rank": 3.0,
        "box": 5.0,
        "offset": 5.0,
        "tens": 1.5,
        "units": 1.0,
        "scene": 0.5,
        "sensor": 0.1,
        "counts": 2.0,
    }
    metrics = parts | {
        "scene_acc": (out["scene"].argmax(-1) == batch["scene"][:, 0]).mean(),
        "class_acc": ((out["classes"].argmax(-1) == classes) * inside).sum() / positives,
        "rank_acc": ((out["ranks"].argmax(-1) == ranks) * inside).sum() / positives,
    }
    return sum(weights[name] * part for name, part in parts.items()), metrics


def encoders(workdir: Path, config: Config, *, count: int, rounds: Sequence[int], batch_size: int = 32) -> Path:
    """Both encoders, in rounds: each one is a warm restart of the learning rate from the round before."""
    path = workdir / "encoders.npz"
    if path.exists():
        return path
    data = render(workdir, count=count)
    module = Pretext(
        config,
        classes=data["counts"].shape[1],
        scenes=int(data["scene"][:, 0].max()) + 1,
        rngs=nnx.Rngs(params=0),
    )
    graphdef, params = params_lib.split_module(module)
    for number, steps in enumerate(rounds):
        saved = workdir / f"encoders_{number}.npz"
        if saved.exists():
            params |= {key: jnp.asarray(value) for key, value in np.load(saved).items() if key in params}
            continue
        params = _encoder_round(graphdef, params, data, steps=steps, batch_size=batch_size, seed=number)
        np.savez(saved, **model_dir.to_host(params))  # type: ignore[arg-type]
    np.savez(path, **{k: np.asarray(v) for k, v in params.items() if k.startswith(("vit/", "convnext/"))})  # type: ignore[arg-type]
    return path


def _encoder_round(graphdef, params, data: dict[str, np.ndarray], *, steps: int, batch_size: int, seed: int):
    held, count = 256, len(data["images"])
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(200, steps // 8), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.02))
    state = optimizer.init(params)

    def loss(params, batch):
        results = [dense_loss(out, batch) for out in params_lib.merge_module(graphdef, params)(batch["images"])]
        named = zip(("vit", "cnn", "both"), results, strict=True)
        return sum(value for value, _ in results), {f"{n}.{k}": v for n, (_, m) in named for k, v in m.items()}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, batch):
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, metrics

    evaluate = jax.jit(lambda params, batch: loss(params, batch)[1])
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(count - held) for _ in range(1 + steps * batch_size // (count - held))])
    shown = ("vit.scene_acc", "vit.box", "cnn.scene_acc", "cnn.box", "both.scene_acc", "both.class_acc",
             "both.rank_acc", "both.box", "both.offset", "both.tens", "both.units", "both.counts")  # fmt: skip
    bar = tqdm(range(steps), desc=f"encoders, round {seed}", mininterval=5)
    for step in bar:
        rows = order[step * batch_size : (step + 1) * batch_size]
        params, state, _ = update(params, state, {name: value[rows] for name, value in data.items()})
        if (step + 1) % 200 == 0:
            test = [
                evaluate(params, {name: value[i : i + 64] for name, value in data.items()})
                for i in range(count - held, count, 64)
            ]
            bar.write(f"{step + 1} " + " ".join(f"{k}={np.mean([float(m[k]) for m in test]):.3f}" for k in shown))
    return params


# ------------------------------------------------------------------------------------- tokenizer, texts
@functools.cache
def real_classes() -> tuple[str, ...]:
    """Class names of the real datasets: words that the synthetic source does not have."""
    return tuple(sorted({label for card in load_cards().values() for label in card.classes}))


def renamed(record: Record, rng: np.random.Generator) -> Record:
    """The record with real class names in place of its own, and the tasks whose text follows from the names."""
    old = sorted({item.label for item in record.objects})
    scene, *names = (real_classes()[i] for i in rng.choice(len(real_classes()), 1 + len(old), replace=False))
    new = dict(zip(old, names, strict=True))
    return dataclasses.replace(
        record,
        label=scene,
        tasks=(Task.CLASSIFICATION, Task.HBB, Task.OBB),
        objects=tuple(dataclasses.replace(item, label=new[item.label], phrase="") for item in record.objects),
    )


def texts(records: Sequence[Record], box_style: BoxStyle) -> Iterator[str]:
    """Every wording of every question about the records, as dialogues; then with real class names."""
    template = chat_template("plain")
    rngs = [np.random.default_rng(number) for number in range(len(records))]
    more = [renamed(record, rng) for record, rng in zip(records, rngs, strict=True)]
    for record, rng in zip([*records, *more], [*rngs, *rngs], strict=True):
        for kind in (*(task.value for task in Task), *GROUNDED_CAPTIONS):
            for index in question_indices(record, kind):
                question = build_question(record, kind, index, box_style=box_style, rng=rng)
                yield template.dialogue([(question.text, question.answer)])[0]


def tokenizer(workdir: Path, config: Config) -> Path:
    path = workdir / "tokenizer.model"
    if not path.exists():
        source = SyntheticSource("train", 400)
        box_style = BoxStyle(decimals=config.data.decimals)
        train_tokenizer(
            texts([source[i] for i in range(400)], box_style), vocab_size=config.model.llm.vocab_size, path=path
        )
    return path


# ------------------------------------------------------------------------------------------------- llm
HELD_OUT = 256  # the last scenes, to measure on
MAP_SHARE = 0.75  # of the corpus; the rest are texts
# Of a round's rows, those that ask everything there is to ask about a map. Yes and no stay guesses where they are
# learnt among long answers: two tokens of two hundred, and no part of the way there lowers their loss.
DRILL_SHARES = (0.0, 1.0, 0.3)
MAP_NOISE = 0.015  # of the image's side
CLASSES, SCENES = 11, 14  # nothing and ten classes
CODES = CLASSES + RANKS + COORDINATES * 20 + SCENES + 3 + (CLASSES - 1) * 6
TEXT_KINDS = {
    BoxKind.HBB: {"classification": 1, "caption": 1, "vqa": 4, "region_caption": 1, "grounding": 2, "hbb": 1.5,
                  "grounded_caption": 1},
    BoxKind.OBB: {"classification": 0.5, "caption": 0.5, "vqa": 2, "obb": 2, "grounded_caption_obb": 2},
}  # fmt: skip


def scene_text(record: Record, kind: BoxKind, decimals: int, rng: np.random.Generator) -> str:
    """What is in a scene, object by object in random order: what a reader of the text knows of it."""
    square = Square(record.width, record.height)
    items = [
        f" {item.label} {format_boxes([item.polygon], square=square, decimals=decimals, kind=kind)}"
        for item in (record.objects[i] for i in rng.permutation(len(record.objects)))
    ]
    return f"{record.sensor.value} {record.label}:" + ";".join(items)


def map_codes(dense: dict[str, np.ndarray], index: int) -> np.ndarray:
    """A scene as a map, f32[1 + 64, C]: what covers each cell, its rank, and its coordinates digit by digit, one-hot.

    The first entry stands for the whole: scene, sensor, counts. Coordinates are a little off, as an eye's are.
    """
    rng = np.random.default_rng((11, index, int(dense["counts"][index].sum())))
    classes = dense["classes"][index].reshape(-1)
    coordinates = dense["coordinates"][index].reshape(-1, COORDINATES)
    noisy = np.clip(coordinates + MAP_NOISE * rng.standard_normal(coordinates.shape), 0, 0.994)
    hundredths = (noisy * 100).round().astype(int)
    digits = np.concatenate([np.eye(10)[hundredths // 10], np.eye(10)[hundredths % 10]], axis=-1)  # P 12 20
    cells = np.concatenate(
        [
            np.eye(CLASSES)[classes],
            np.eye(RANKS)[dense["ranks"][index].reshape(-1)],
            digits.reshape(len(classes), -1) * (classes > 0)[:, None],
        ],
        axis=-1,
    )
    scene, sensor = dense["scene"][index]
    whole = np.concatenate([np.eye(SCENES)[scene], np.eye(3)[sensor], np.eye(6)[dense["counts"][index]].reshape(-1)])
    codes = np.zeros((1 + len(classes), cells.shape[1] + len(whole)), np.float32)
    codes[0, cells.shape[1] :], codes[1:, : cells.shape[1]] = whole, cells
    return codes


def view(record: Record) -> SceneContents:
    """The truth of a record of synthetic scenes, as its questions are made from."""
    objects = []
    for item in record.objects:
        corners = np.asarray(item.polygon, np.float64).reshape(4, 2) * (WORLD / record.width)
        (cx, cy), sides = corners.mean(0), np.hypot(*(corners[1:3] - corners[0:2]).T)
        pose = Pose(cx=cx, cy=cy, length=max(sides), width=min(sides), angle=0.0)  # no question asks for the angle
        objects.append(PlacedObject(object_class=OBJECTS[item.label], pose=pose))
    return SceneContents(scene=record.label, sensor=record.sensor, objects=objects)


class LlmRow(NamedTuple):
    """What the LLM learns from; `codes` f32[1 + 64, C] is the map, zeros where the scene is text."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    question_index: np.ndarray
    weights: np.ndarray
    slots: np.ndarray
    codes: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Scenes as maps or as text, each with independent questions about it: the rows that the LLM learns from."""

    source: Sequence[Record]
    dense: dict[str, np.ndarray]
    config: Config
    tokens: Tokenizer
    length: int = 384

    def row(self, number: int, *, drill_share: float) -> LlmRow:
        """Row `number`, of any of the scenes but the held-out ones."""
        rng = np.random.default_rng((7, number))
        index = int(rng.integers(len(self.source) - HELD_OUT))
        if rng.random() < drill_share:
            return self.exhaustive_row(index, rng)[0]
        record, kind = self.source[index], BoxKind.OBB if rng.random() < 0.4 else BoxKind.HBB
        as_map = rng.random() < MAP_SHARE
        if not as_map:
            record = renamed(record, rng) if rng.random() < 0.5 else record
        prefix = self._map_prefix() if as_map else self._text_prefix(record, kind, rng)
        asked = draw(record, TEXT_KINDS[kind], box_style=BoxStyle(decimals=self.config.data.decimals), rng=rng)
        return self._row(asked, prefix, index if as_map else None)[0]

    def exhaustive_row(self, index: int, rng: np.random.Generator) -> tuple[LlmRow, tuple[Question, ...]]:
        """A map and everything there is to ask about it, as far as there is room."""
        record = dataclasses.replace(self.source[index], turns=all_questions(view(self.source[index]), rng))
        box_style = BoxStyle(decimals=self.config.data.decimals)
        asked = [
            build_question(record, Task.VQA.value, i, box_style=box_style, rng=rng) for i in range(len(record.turns))
        ]
        return self._row(asked, self._map_prefix(), index)

    @property
    def _template(self) -> ChatTemplate:
        return chat_template(self.config.data.chat_template)

    def _map_prefix(self) -> tuple[np.ndarray, np.ndarray]:
        return image_prefix(self.tokens, self._template, visual_tokens=1 + GRID**2)

    def _text_prefix(self, record: Record, kind: BoxKind, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        scene = scene_text(record, kind, self.config.data.decimals, rng)
        words = [self.tokens.bos_id, *self.tokens.encode(scene), *self.tokens.encode(self._template.prefix)]
        ids = np.array(words, np.int32)
        return ids, np.full_like(ids, TEXT_SLOT)

    def _row(self, asked: Sequence[Question], prefix, index: int | None) -> tuple[LlmRow, tuple[Question, ...]]:
        """`index`: the scene whose map the row reads; None where the prefix is text."""
        held, room = [], self.length - len(prefix[0])
        for question in asked:
            tokens = len(turn_ids(self.tokens, self._template, question.text, question.answer)[0])
            if tokens <= room:
                held.append(question)
                room -= tokens
        sample = build_sample(held, prefix=prefix, tokenizer=self.tokens, chat_template=self._template)
        batch = pack_samples([sample], seq_len=self.length, visual_tokens=1 + GRID**2)
        # A language model reads everything: a text's own words are worth something, answers most.
        unsupervised = 0.1 if index is None else 0.0
        weights = np.where((batch.segments > 0) & (batch.loss_weights == 0), unsupervised, batch.loss_weights)
        codes = np.zeros_like(map_codes(self.dense, 0)) if index is None else map_codes(self.dense, index)
        row = LlmRow(
            tokens=batch.tokens[0],
            positions=batch.positions[0],
            segments=batch.segments[0],
            question_index=batch.question_index[0],
            weights=weights[0].astype(np.float32),
            slots=batch.image_slots[0],
            codes=codes,
        )
        return row, tuple(held)


def draw(
    record: Record, weights: Mapping[str, float], *, box_style: BoxStyle, rng: np.random.Generator, most: int = 8
) -> list[Question]:
    """Different questions, kinds drawn by weight, in random order; a kind's weight is shared by its questions."""
    pool = [
        (kind, index, weight / len(indices))
        for kind, weight in sorted(weights.items())
        if len(indices := question_indices(record, kind))
        for index in indices
    ]
    if not pool:
        return []
    chances = np.array([weight for _, _, weight in pool])
    chosen = rng.choice(len(pool), size=min(most, len(pool)), replace=False, p=chances / chances.sum())
    return [build_question(record, *pool[i][:2], box_style=box_style, rng=rng) for i in chosen]


class Reader(nnx.Module):
    """A LLaMA that reads maps where an EarthGPT reads images; the map's own projector is thrown away."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        dim = config.model.llm.dim
        self.llm = Llama(config.model.llm, adapter=AdapterConfig(), rngs=rngs, dtype=config.model.compute_dtype)
        self.image_tokens = ImageTokens(dim, rngs=rngs)
        self.maps = Projector(CODES, dim, rngs=rngs, dtype=config.model.compute_dtype)

    def __call__(self, tokens, positions, segments, question_index, slots, codes) -> jax.Array:
        x = EarthGPT.embed(self, tokens, slots, self.maps(codes))  # type: ignore[arg-type]
        attention = PackedAttention(make_attention_mask(segments, question_index))
        return self.llm.logits(self.llm(x, positions=positions, attention=attention).hidden)


def llm(workdir: Path, config: Config, *, rounds: Sequence[int], count: int) -> Path:
    """The LLM stand-in, in rounds as the encoders are; `DRILL_SHARES` says what each round reads."""
    path = workdir / "llm.npz"
    if path.exists():
        return path
    graphdef, params = params_lib.split_module(Reader(config, rngs=nnx.Rngs(params=1)))
    corpus = Corpus(
        source=open_records(dataset(workdir, count=count), "train"),
        dense={name: value for name, value in render(workdir, count=count).items() if name != "images"},
        config=config,
        tokens=Tokenizer(tokenizer(workdir, config)),
    )
    fresh, kept = params, dict[str, jax.Array]()
    for number, steps in enumerate(rounds):
        saved = workdir / f"llm_{number}.npz"
        if not saved.exists():
            share = DRILL_SHARES[min(number, len(DRILL_SHARES) - 1)]
            params = _llm_round(graphdef, fresh | kept, corpus, steps=steps, seed=number, drill_share=share)
            # Without the map's projector: each round learns a new one, as `align` will have to.
            np.savez(saved, **{k: np.asarray(v) for k, v in params.items() if not k.startswith("maps/")})  # type: ignore[arg-type]
        kept = {key: jnp.asarray(value) for key, value in np.load(saved).items()}
    np.savez(path, **model_dir.to_host(kept))  # type: ignore[arg-type]
    return path


def drilled(logits: Callable, corpus: Corpus, *, rows: int = 128, batch_size: int = 32) -> dict[str, float]:
    """Question type -> share of answers about held-out maps whose every token is the likeliest one."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    scenes = range(len(corpus.source) - HELD_OUT, len(corpus.source) - HELD_OUT + rows)
    made = [corpus.exhaustive_row(index, np.random.default_rng((13, index))) for index in scenes]
    for start in range(0, rows, batch_size):
        some = made[start : start + batch_size]
        batch = LlmRow(*map(np.stack, zip(*(row for row, _ in some), strict=True)))
        likeliest = np.asarray(logits(batch).argmax(-1))[:, :-1]
        wrong = (likeliest != batch.tokens[:, 1:]) & (batch.weights[:, 1:] > 0)
        for (_, questions), row_wrong, question_index in zip(some, wrong, batch.question_index[:, 1:], strict=True):
            for branch, question in enumerate(questions, 1):
                right[question.question_type].append(not row_wrong[question_index == branch].any())
    return {kind: float(np.mean(values)) for kind, values in sorted(right.items())}


def _llm_round(graphdef, params, corpus: Corpus, *, steps: int, seed: int, drill_share: float, batch_size: int = 16):
    rate = optax.warmup_cosine_decay_schedule(0.0, 5e-3, min(100, steps // 8), steps)
    # Muon on the blocks' matrices, AdamW on the rest: the loss of AdamW alone in about 3/4 of the steps.
    muon = optax.contrib.muon(
        rate,
        consistent_rms=0.2,  # AdamW's usual size of update, so one rate serves both
        weight_decay=0.01,
        adam_b2=0.98,
        adam_weight_decay=0.01,
        muon_weight_dimension_numbers={
            path: optax.contrib.MuonDimensionNumbers(1, 2) if value.ndim == 3 else None
            for path, value in params.items()
        },
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), muon)
    place = data_parallel(batch_size)
    params = jax.device_put(params, place.whole)
    state = jax.device_put(optimizer.init(params), place.whole)

    def forward(params, batch: LlmRow) -> jax.Array:
        reader = params_lib.merge_module(graphdef, params)
        return reader(batch.tokens, batch.positions, batch.segments, batch.question_index, batch.slots, batch.codes)

    def loss(params, batch: LlmRow):
        total, weight = next_token_loss(forward(params, batch), jnp.asarray(batch.tokens), jnp.asarray(batch.weights))
        return total / weight

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, batch: LlmRow):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    evaluate = jax.jit(forward)
    first = seed * 2**24  # rows of the corpus that no other round reads
    row = functools.partial(corpus.row, drill_share=drill_share)
    rows = grain.MapDataset.range(first, first + steps * batch_size).map(row)
    batches = iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)).batch(batch_size))
    bar = tqdm(range(steps), desc=f"llm, round {seed}", mininterval=5)
    for step in bar:
        params, state, value = update(params, state, jax.device_put(LlmRow(*next(batches)), place.batch))
        if (step + 1) % 50 == 0:
            bar.write(f"{step + 1} loss {float(value):.4f}")
        if (step + 1) % 100 == 0:
            shares = drilled(functools.partial(evaluate, params), corpus)
            bar.write(" ".join(f"{kind}={share:.3f}" for kind, share in shares.items()))
    return params


# ---------------------------------------------------------------------------------------------- stages
def base(workdir: Path, config: Config, args: argparse.Namespace) -> Path:
    """Puts `tiny-base` together: trained encoders and LLM, the projector as initialised."""
    path = workdir / "tiny-base"
    if not path.exists():
        _, params = earthgpt.init(config.model, seed=0)
        arrays = model_dir.to_host(params)
        for file in (
            encoders(workdir, config, count=args.count, rounds=args.encoder_steps),
            llm(workdir, config, rounds=args.llm_steps, count=args.count),
        ):
            loaded = dict(np.load(file))
            assert loaded.keys() <= arrays.keys()
            arrays |= loaded
        model_dir.write(
            path, _bfloat16(arrays), model=config.model, decimals=config.data.decimals,
            chat_template=config.data.chat_template, tokenizer=tokenizer(workdir, config),
            about={"recipe": "scripts/make_tiny.py", "stage": "base", "steps": 0, "source": "synthetic"},
        )  # fmt: skip
    return path


def dataset(workdir: Path, *, count: int) -> Path:
    """The training records as a dataset directory, rendered on all cores."""
    path = workdir / f"data_{count}"
    if not path.exists():
        source = SyntheticSource("train", count)
        with multiprocessing.get_context("spawn").Pool() as pool:
            records = pool.imap(source.__getitem__, range(count), chunksize=64)
            write_dataset({"train": tqdm(records, total=count, desc="records")}, out=path, name="synthetic")
    return path


def stage(workdir: Path, name: str, init: Path, overrides: Sequence[str]) -> Path:
    """A stage of the recipe `tiny`, resumable; returns its model directory."""
    config = load(f"tiny:{name}", [f"--config.init={init}", *overrides])
    return train(config, workdir / name)


def ship(source: Path, target: Path) -> None:
    """Copies a model into the package, in bfloat16."""
    model, arrays = model_dir.read(source)
    model_dir.write(
        target, _bfloat16(arrays), model=model.model, decimals=model.decimals, chat_template=model.chat_template,
        tokenizer=model.tokenizer, about=model.about,
    )  # fmt: skip


def _bfloat16(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: np.asarray(value).astype(ml_dtypes.bfloat16) for path, value in arrays.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["tokenizer", "encoders", "llm", "data", "base", "align", "all"])
    parser.add_argument("--workdir", type=Path, default=Path("runs/make_tiny"))
    parser.add_argument("--out", type=Path, default=Path("earthgpt_jax/assets"))
    parser.add_argument("--count", type=int, default=24000, help="training scenes")
    parser.add_argument("--encoder-steps", type=int, nargs="+", default=[1500, 1500, 1500, 2000])
    parser.add_argument("--llm-steps", type=int, nargs="+", default=[2400, 400, 500], help="of each round")
    parser.add_argument("--align-steps", type=int, default=900)
    parser.add_argument("--instruct-steps", type=int, default=1400)
    args = parser.parse_args()
    # A device a core and a share of the batch each: XLA's CPU programs leave cores idle within a device.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    config = load("tiny:align")
    if args.step == "tokenizer":
        tokenizer(args.workdir, config)
    elif args.step == "encoders":
        encoders(args.workdir, config, count=args.count, rounds=args.encoder_steps)
    elif args.step == "llm":
        llm(args.workdir, config, rounds=args.llm_steps, count=args.count)
    elif args.step == "data":
        dataset(args.workdir, count=args.count)
    else:
        start = base(args.workdir, config, args)
        ship(start, args.out / "tiny-base")
        if args.step == "base":
            return
        data = dataset(args.workdir, count=args.count)
        common = [f"--config.data.source={data}", "--config.checkpoint.every_steps=200"]
        aligned = stage(args.workdir, "align", start, [*common, f"--config.optim.steps={args.align_steps}",
                                                       "--config.optim.warmup_steps=100"])  # fmt: skip
        if args.step == "align":
            return
        tuned = stage(args.workdir, "instruct", aligned, [*common, f"--config.optim.steps={args.instruct_steps}",
                                                          "--config.optim.warmup_steps=100"])  # fmt: skip
        ship(tuned, args.out / "tiny")


if __name__ == "__main__":
    main()
