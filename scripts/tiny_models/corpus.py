"""The training sequences of the LLM: scenes as maps or as text, with questions about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from earthgpt_jax.boxes import BoxKind, Square, format_boxes
from earthgpt_jax.config import Config
from earthgpt_jax.input.batch import TEXT_SLOT
from earthgpt_jax.input.prompts.chat_template import ChatTemplate, chat_template
from earthgpt_jax.input.prompts.questions import BoxStyle, Question, build_question, question_indices
from earthgpt_jax.input.sequences import build_sample, image_prefix, pack_samples, turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import AnnotatedClasses, Record, Task
from earthgpt_jax.synthetic import OBJECTS
from earthgpt_jax.synthetic.canvas import WORLD
from earthgpt_jax.synthetic.language import SceneContents
from earthgpt_jax.synthetic.placement import PlacedObject
from earthgpt_jax.synthetic.pose import Pose
from earthgpt_jax.synthetic.questions import all_questions
from tiny_models.scenes import COORDINATES, GRID, HELD_OUT, RANKS
from tiny_models.texts import with_real_names

Array = Any  # np.ndarray on the host, jax.Array on devices

MAP_SHARE = 0.75  # of the sequences; the others describe the scene by text
MAP_NOISE = 0.015  # standard deviation of coordinates, as a fraction of the image's side
CLASSES, SCENES = 11, 14  # no object and ten object classes; scene classes
CODES = CLASSES + RANKS + COORDINATES * 20 + SCENES + 3 + (CLASSES - 1) * 6
# Weights of the question types, by the type of boxes in a sequence.
QUESTION_WEIGHTS = {
    BoxKind.HBB: {"classification": 1, "caption": 1, "vqa": 4, "region_caption": 1, "grounding": 2, "hbb": 1.5,
                  "grounded_caption": 1, "presence": 0.5, "count": 0.5, "class_hbb": 1, "absent_hbb": 0.5},
    BoxKind.OBB: {"classification": 0.5, "caption": 0.5, "vqa": 2, "obb": 2, "grounded_caption_obb": 2,
                  "class_obb": 0.5},
}  # fmt: skip


def scene_text(record: Record, kind: BoxKind, decimals: int, rng: np.random.Generator) -> str:
    """Describe a scene by text: its sensor, its class, and its objects with boxes in random order."""
    square = Square(record.width, record.height)
    items = [
        f" {item.label} {format_boxes([item.polygon], square=square, decimals=decimals, kind=kind)}"
        for item in (record.objects[i] for i in rng.permutation(len(record.objects)))
    ]
    return f"{record.sensor.value} {record.label}:" + ";".join(items)


def map_codes(dense: dict[str, np.ndarray], index: int) -> np.ndarray:
    """Describe a scene by a map, f32[1 + 64, CODES], which stands in for the visual tokens of its image.

    The first row holds scene class, sensor and counts, one-hot. Each other row is a grid cell: class, rank and the
    digits of the coordinates of its object, one-hot. Coordinates have noise, as an encoder's features would.

    Args:
        dense: from `scenes.dense_dataset`.
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
    image = np.concatenate([np.eye(SCENES)[scene], np.eye(3)[sensor], np.eye(6)[dense["counts"][index]].reshape(-1)])
    codes = np.zeros((1 + len(classes), cells.shape[1] + len(image)), np.float32)
    codes[0, cells.shape[1] :], codes[1:, : cells.shape[1]] = image, cells
    return codes


def scene_contents(record: Record) -> SceneContents:
    """Return the contents of a synthetic record, from which its questions are made."""
    objects = []
    for item in record.objects:
        corners = np.asarray(item.polygon, np.float64).reshape(4, 2) * (WORLD / record.width)
        (cx, cy), sides = corners.mean(0), np.hypot(*(corners[1:3] - corners[0:2]).T)
        pose = Pose(cx=cx, cy=cy, length=max(sides), width=min(sides), angle=0.0)  # no question asks for the angle
        objects.append(PlacedObject(object_class=OBJECTS[item.label], pose=pose))
    return SceneContents(scene=record.label, sensor=record.sensor, objects=objects)


class Sequences(NamedTuple):
    """Training sequences of the LLM, arrays [T] or [B, T], as in `input.batch.Batch`.

    `codes`, f32[1 + 64, CODES], is the map of the scene, or zeros if it is described by text.
    """

    tokens: Array
    positions: Array
    segments: Array
    question_index: Array
    weights: Array
    slots: Array
    codes: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Training sequences: a scene as a map or as text, followed by independent questions about it.

    Attributes:
        records: the training scenes, as records.
        dense: the same scenes, from `scenes.dense_dataset`.
        annotated: classes that the records' dataset annotates.
        seq_len: tokens per sequence.
    """

    records: Sequence[Record]
    dense: dict[str, np.ndarray]
    config: Config
    tokenizer: Tokenizer
    annotated: AnnotatedClasses
    seq_len: int = 384

    def sequence(self, number: int, *, exhaustive_share: float) -> Sequences:
        """Return sequence `number`, about a random scene that is not held out.

        Args:
            exhaustive_share: probability of an `exhaustive` sequence.
        """
        rng = np.random.default_rng((7, number))
        index = int(rng.integers(len(self.records) - HELD_OUT))
        if rng.random() < exhaustive_share:
            return self.exhaustive(index, rng)[0]
        record, kind = self.records[index], BoxKind.OBB if rng.random() < 0.4 else BoxKind.HBB
        as_map = rng.random() < MAP_SHARE
        if not as_map:
            record = with_real_names(record, rng) if rng.random() < 0.5 else record
        prefix = self._map_prefix() if as_map else self._text_prefix(record, kind, rng)
        data = self.config.data
        box_style = BoxStyle(decimals=data.decimals, json_share=data.json_share)
        questions = sample_questions(
            record, QUESTION_WEIGHTS[kind], box_style=box_style, annotated=self.annotated, rng=rng
        )
        return self._build(questions, prefix, index if as_map else None)[0]

    def exhaustive(self, index: int, rng: np.random.Generator) -> tuple[Sequences, tuple[Question, ...]]:
        """Return a sequence with the map of a scene and as many of all possible questions as fit, and these."""
        turns = all_questions(scene_contents(self.records[index]), rng)
        record = dataclasses.replace(self.records[index], turns=turns)
        box_style = BoxStyle(decimals=self.config.data.decimals)
        questions = [
            build_question(record, Task.VQA.value, i, box_style=box_style, rng=rng) for i in range(len(record.turns))
        ]
        return self._build(questions, self._map_prefix(), index)

    @property
    def _template(self) -> ChatTemplate:
        return chat_template(self.config.data.chat_template)

    def _map_prefix(self) -> tuple[np.ndarray, np.ndarray]:
        return image_prefix(self.tokenizer, self._template, visual_tokens=1 + GRID**2)

    def _text_prefix(self, record: Record, kind: BoxKind, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        scene = scene_text(record, kind, self.config.data.decimals, rng)
        encode = self.tokenizer.encode
        ids = np.array([self.tokenizer.bos_id, *encode(scene), *encode(self._template.prefix)], np.int32)
        return ids, np.full_like(ids, TEXT_SLOT)

    def _build(
        self, questions: Sequence[Question], prefix: tuple[np.ndarray, np.ndarray], index: int | None
    ) -> tuple[Sequences, tuple[Question, ...]]:
        """Return the sequence of a prefix and those questions that fit, and these questions.

        Args:
            index: the scene whose map is used; None if the prefix describes the scene by text.
        """
        included, budget = [], self.seq_len - len(prefix[0])
        for question in questions:
            tokens = len(turn_ids(self.tokenizer, self._template, question.text, question.answer)[0])
            if tokens <= budget:
                included.append(question)
                budget -= tokens
        sample = build_sample(included, prefix=prefix, tokenizer=self.tokenizer, chat_template=self._template)
        batch = pack_samples([sample], seq_len=self.seq_len, visual_tokens=1 + GRID**2)
        # In sequences of text, all tokens are supervised, but answers have the highest weight.
        unsupervised = 0.1 if index is None else 0.0
        weights = np.where((batch.segments > 0) & (batch.loss_weights == 0), unsupervised, batch.loss_weights)
        codes = np.zeros_like(map_codes(self.dense, 0)) if index is None else map_codes(self.dense, index)
        sequence = Sequences(
            tokens=batch.tokens[0],
            positions=batch.positions[0],
            segments=batch.segments[0],
            question_index=batch.question_index[0],
            weights=weights[0].astype(np.float32),
            slots=batch.image_slots[0],
            codes=codes,
        )
        return sequence, tuple(included)


def sample_questions(
    record: Record,
    weights: Mapping[str, float],
    *,
    box_style: BoxStyle,
    annotated: AnnotatedClasses,
    rng: np.random.Generator,
    count: int = 8,
) -> list[Question]:
    """Sample up to `count` different questions about a record, in random order.

    Args:
        weights: question type -> weight, divided equally among the record's questions of this type.
    """
    pool = [
        (question_type, index, weight / len(indices))
        for question_type, weight in sorted(weights.items())
        if len(indices := question_indices(record, question_type, annotated=annotated))
        for index in indices
    ]
    if not pool:
        return []
    probabilities = np.array([weight for _, _, weight in pool])
    probabilities /= probabilities.sum()
    chosen = rng.choice(len(pool), size=min(count, len(pool)), replace=False, p=probabilities)
    return [build_question(record, *pool[i][:2], box_style=box_style, annotated=annotated, rng=rng) for i in chosen]
