"""The confidence of a box, from the probabilities of the tokens that the model wrote it with.

    confidence = exp(mean log p of the tokens of its coordinates + mean log p of the tokens of its noun)

A token belongs to the coordinates if one of its characters is one of their digits, and to the noun (`ships` in
`two ships`) if one of its characters is one of the noun's. Where there is no noun, as in grounding, the second mean is
0. Means, not sums: a box with more digits is not less certain. The number ranks boxes; it is not a probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes import ParsedBox


def box_confidences(
    text: str, boxes: Sequence[ParsedBox], *, logprobs: Sequence[float] | np.ndarray, token_lengths: Sequence[int]
) -> tuple[float, ...] | None:
    """Return the confidence of each box of an answer, in (0, 1].

    Args:
        text: the answer.
        boxes: the boxes parsed from it.
        logprobs: f32[n], the log-probability of each token.
        token_lengths: the number of characters of `text` that each of the first tokens stands for.

    Returns:
        One number per box; None where a box's place in the text is not known or there are no log-probabilities.
    """
    if not boxes:
        return ()
    if not len(logprobs) or not all(box.span[1] for box in boxes):
        return None
    ends = np.cumsum(token_lengths)
    starts = ends - token_lengths
    values = np.asarray(logprobs, np.float64)
    values = values[: len(ends)] if len(values) > len(ends) else values
    digits = np.array([any(map(str.isdigit, text[a:b])) for a, b in zip(starts, ends, strict=True)])

    def mean(span: tuple[int, int], among: np.ndarray | bool = True) -> float:
        chosen = (starts < span[1]) & (ends > span[0]) & among
        return float(values[chosen].mean()) if chosen.any() else 0.0

    return tuple(float(np.exp(mean(box.span, digits) + mean(box.noun))) for box in boxes)
