"""Confidence of a box, from the probabilities of the tokens that the model wrote it with.

    confidence = exp(mean log p of the tokens of its coordinates + mean log p of the tokens of its noun)

A token belongs to the coordinates if any of its characters is one of their digits, and to the noun (`ships` in `two
ships`) if any of its characters is part of it. The number word is left out, since it says nothing about a single box.
Without a noun, as in grounding, the second mean is 0. Means are used instead of sums, so that a box with more digits is
not less certain. Confidences rank boxes; they are not calibrated probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes import ParsedBox


def mean_logprob(
    logprobs: Sequence[float] | np.ndarray,
    token_lengths: Sequence[int],
    span: tuple[int, int],
    mask: np.ndarray | bool = True,
) -> float:
    """Return the mean log-probability of the tokens that overlap a span of characters and are in `mask`; 0 if none are.

    Args:
        logprobs: f32[n], one per token; tokens without characters, such as the end of the sequence, may follow.
        token_lengths: how many characters of the answer each token stands for.
        span: characters (start, end) of the answer.
        mask: bool[n], or True for all tokens.
    """
    ends = np.cumsum(token_lengths, dtype=int)
    chosen = (ends - np.asarray(token_lengths, int) < span[1]) & (ends > span[0]) & mask
    return float(np.asarray(logprobs)[: len(ends)][chosen].mean()) if chosen.any() else 0.0


def box_confidences(
    text: str, boxes: Sequence[ParsedBox], *, logprobs: Sequence[float] | np.ndarray, token_lengths: Sequence[int]
) -> tuple[float, ...] | None:
    """Return the confidence of each box parsed from an answer, in (0, 1].

    Returns:
        None where there are no log-probabilities, or a box's place in the text is not known.
    """
    if not boxes:
        return ()
    if not len(logprobs) or not all(box.span[1] for box in boxes):
        return None
    ends = np.cumsum(token_lengths, dtype=int)
    starts = ends - np.asarray(token_lengths, int)
    has_digit = np.array([any(map(str.isdigit, text[a:b])) for a, b in zip(starts, ends, strict=True)])
    return tuple(
        float(
            np.exp(
                mean_logprob(logprobs, token_lengths, box.span, has_digit)
                + mean_logprob(logprobs, token_lengths, box.noun)
            )
        )
        for box in boxes
    )
