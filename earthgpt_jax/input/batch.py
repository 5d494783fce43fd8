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
        segments: i32[B, T]; 1, 2, ... are the row's samples, 0 is padding.
        branches: i32[B, T]; within a segment 0 is shared, 1, 2, ... are independent questions about its image.
        loss_weights: f32[B, T]; weight of tokens[b, t] as a target (its logits stand at t - 1).
        images: u8[B, I, S, S, 3]; the i-th is the i-th sample's, those behind the last sample's are padding.
        image_slots: i32[B, T]; index into the row's I * P visual tokens, or TEXT/START/END_SLOT.
        unlisted: i32[B], objects that a row's answers count, but do not list (`DataConfig.max_boxes`,
            `input.prompts.box_budget`).
        damaged: i32[B], samples that could not be read and are missing in a row (`DataConfig.on_damaged`).
        ids: of each row the questions of its samples in order, a string each: `record_id:kind#index,kind#index`.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    question_index: np.ndarray
    loss_weights: np.ndarray
    images: np.ndarray
    image_slots: np.ndarray
    unlisted: np.ndarray
    damaged: np.ndarray
    ids: tuple[tuple[str, ...], ...]
