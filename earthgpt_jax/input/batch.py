"""The Batch: packed rows of static shape, as numpy arrays on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Values of `image_slots` that are not an index into the row's visual tokens.
TEXT_SLOT, START_SLOT, END_SLOT = -1, -2, -3


class Batch(NamedTuple):
    """B rows of T tokens and I images of S x S pixels.

    Attributes:
        tokens: i32[B, T]; 0 in image slots and in padding.
        positions: i32[B, T]; restart per sample, branches continue from their shared prefix.
        segments: i32[B, T]; 0 is padding.
        branches: i32[B, T]; 0 is shared, 1, 2, ... are independent questions about the shared image.
        loss_weights: f32[B, T]; weight of tokens[b, t] as a target (its logits stand at t - 1).
        images: u8[B, I, S, S, 3].
        image_slots: i32[B, T]; index into the row's I * P visual tokens, or TEXT/START/END_SLOT.
        left_out: questions that were drawn and had no room in their rows.
        unlisted: objects that the rows' answers count, but do not list (`DataConfig.max_boxes`).
        ids: what the rows hold, for logs: one string a row, record id and question numbers.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    branches: np.ndarray
    loss_weights: np.ndarray
    images: np.ndarray
    image_slots: np.ndarray
    ids: tuple[str, ...]
    left_out: int = 0
    unlisted: int = 0
