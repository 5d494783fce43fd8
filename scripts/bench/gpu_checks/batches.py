"""Packed batches of random tokens, with images and several questions per image, as the input pipeline makes them."""

from __future__ import annotations

import numpy as np

from earthgpt_jax.config import Config
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT, Batch

_QUESTIONS = 2  # per image
_BOS = 1


def random_batch(config: Config, *, batch_size: int, seed: int = 0) -> Batch:
    """Return a batch with `data.max_images` samples per sequence: an image and two independent questions each.

    The last 1/32 of each sequence is padding. The second half of each question, its answer, is supervised.
    """
    model, length, images = config.model, config.data.seq_len, config.data.max_images
    rng = np.random.default_rng(seed)
    visual = model.visual_tokens
    shape = (batch_size, length)
    segments, question_index = packing(batch=batch_size, length=length, samples=images, shared=visual + 3)
    tokens = rng.integers(3, model.llm.vocab_size, shape, np.int32)
    positions = np.zeros(shape, np.int32)
    image_slots = np.full(shape, TEXT_SLOT, np.int32)
    loss_weights = np.zeros(shape, np.float32)
    for sample in range(images):
        where = np.flatnonzero(segments[0] == sample + 1)
        prefix = where[: visual + 3]  # BOS, start_img, the visual tokens, end_img
        tokens[:, prefix] = 0
        tokens[:, prefix[0]] = _BOS
        image_slots[:, prefix[1]], image_slots[:, prefix[-1]] = START_SLOT, END_SLOT
        image_slots[:, prefix[2:-1]] = sample * visual + np.arange(visual)
        positions[:, prefix] = np.arange(len(prefix))
        for question in range(1, _QUESTIONS + 1):
            text = where[question_index[0, where] == question]
            positions[:, text] = len(prefix) + np.arange(len(text))
            loss_weights[:, text[len(text) // 2 :]] = 1
    tokens[segments == 0] = 0
    return Batch(
        tokens=tokens, positions=positions, segments=segments, question_index=question_index,
        loss_weights=loss_weights, image_slots=image_slots,
        images=rng.integers(0, 256, (batch_size, images, model.image_size, model.image_size, 3), np.uint8),
        unlisted=np.zeros(batch_size, np.int32), damaged=np.zeros(batch_size, np.int32),
    )  # fmt: skip


def packing(*, batch: int, length: int, samples: int, shared: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `segments` and `question_index`, i32[B, T] each, of packed samples with two questions each.

    Args:
        batch: B.
        length: T; its last 1/32 is padding.
        samples: samples per sequence.
        shared: tokens of each sample that its questions share.
    """
    used = length - length // 32
    segments, question_index = np.zeros(length, np.int32), np.zeros(length, np.int32)
    for sample in range(samples):
        start, end = used * sample // samples, used * (sample + 1) // samples
        segments[start:end] = sample + 1
        text = np.arange(start + shared, end)
        for number, part in enumerate(np.array_split(text, _QUESTIONS), start=1):
            question_index[part] = number
    return np.tile(segments, (batch, 1)), np.tile(question_index, (batch, 1))
