"""The batch: packed sequences of static shape, as NumPy arrays on the host and JAX arrays on the devices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt16

# Values of `image_slots` that are not an index into the sequence's visual tokens.
TEXT_SLOT, START_SLOT, END_SLOT = -1, -2, -3

Array = Any  # np.ndarray on the host, jax.Array on the devices; this package does not import jax


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B packed sequences of T tokens with up to I images of S x S pixels.

    `models.earthgpt` registers the class as a pytree of its arrays; `ids` stay on the host.

    Attributes:
        tokens: Token ids; 0 in image slots and in padding.
        positions: RoPE positions. They restart at each sample, and each independent question continues from the
            end of the prefix that it shares with the others.
        segments: 1, 2, ... number the samples of a sequence; 0 is padding.
        question_index: Within a segment, 0 marks tokens that all questions share and 1, 2, ... independent questions.
        loss_weights: Weight of tokens[b, t] as a target, which the logits at t - 1 predict.
        images: The i-th image belongs to the i-th sample; images after the last sample's are padding. With
            `data.features`, F values per image: its features, as the bits of bfloat16.
        image_slots: Index into the sequence's I * P visual tokens, or one of TEXT_SLOT, START_SLOT and END_SLOT.
        unlisted: Objects that the answers of a sequence count without listing (`input.prompts.box_budget`).
        damaged: Samples missing from a sequence because they could not be read (`DataConfig.on_damaged`).
        ids: For each sequence, one string per sample: `record_id:task#index,task#index`.
    """

    tokens: Int32[Array, "B T"]
    positions: Int32[Array, "B T"]
    segments: Int32[Array, "B T"]
    question_index: Int32[Array, "B T"]
    loss_weights: Float32[Array, "B T"]
    images: UInt8[Array, "B I S S 3"] | UInt16[Array, "B I F"]
    image_slots: Int32[Array, "B T"]
    unlisted: Int32[Array, " B"]
    damaged: Int32[Array, " B"]
    ids: tuple[tuple[str, ...], ...] = ()

    @property
    def has_features(self) -> bool:
        """Whether `images` holds features in place of pixels."""
        return self.images.ndim == 3


ARRAY_FIELDS = tuple(field.name for field in dataclasses.fields(Batch) if field.name != "ids")


def concatenate_batches(batches: Sequence[Batch], *, max_images: int = 0) -> Batch:
    """Concatenate batches along the first axis.

    All get the same number of images: the largest among them, and at least `max_images`. Missing ones are zeros.
    """
    image_count = max(max_images, *(batch.images.shape[1] for batch in batches))
    size = sum(len(batch.images) for batch in batches)
    images = np.zeros((size, image_count, *batches[0].images.shape[2:]), batches[0].images.dtype)
    start = 0
    for batch in batches:
        end = start + len(batch.images)
        images[start:end, : batch.images.shape[1]] = batch.images
        start = end
    arrays = {
        name: np.concatenate([getattr(batch, name) for batch in batches]) for name in ARRAY_FIELDS if name != "images"
    }
    ids = itertools.chain.from_iterable(batch.ids for batch in batches)
    return Batch(**arrays, images=images, ids=tuple(ids))
