"""How sure a model was of a box, from the probabilities of the tokens that it wrote the box with.

    confidence = exp(mean log p of the tokens of its coordinates + mean log p of the tokens of its noun)

A token counts to the coordinates if any of its characters is a digit of them, to the noun (`ships` of `two ships`: how
many there are says nothing of one) if any of its characters is one of it; where there is none, as in grounding, the
second mean is 0. Means, not sums: a box of more digits is not less certain. The number is a ranking; what share of
boxes of a confidence are right, `Calibration` learns from other images.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import isotonic_regression

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of
from earthgpt_jax.evaluation.predictions import WITH_BOXES, Prediction


def of_tokens(prediction: Prediction) -> tuple[float, ...] | None:
    """The confidence of each box that could be read, in (0, 1]; None where the tokens do not tell."""
    boxes = boxes_of(prediction).boxes
    if not boxes:
        return ()
    if not prediction.logprobs or not all(box.span[1] for box in boxes):
        return None
    starts, ends = _places(prediction)
    digits = np.array([any(map(str.isdigit, prediction.prediction[a:b])) for a, b in zip(starts, ends, strict=True)])
    return tuple(
        float(np.exp(_mean(prediction, box.span, digits) + _mean(prediction, box.noun))) for box in boxes
    )  # fmt: skip


def probability(prediction: Prediction, span: tuple[int, int] | None = None) -> float | None:
    """The geometric mean of the tokens' of an answer, or of those with a character in a span; None where not kept."""
    if not prediction.logprobs:
        return None
    return float(np.exp(_mean(prediction, span or (0, len(prediction.prediction)))))


def _places(prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Where tokens begin and end, in characters."""
    ends = np.cumsum(prediction.token_lengths)
    return ends - prediction.token_lengths, ends


def _mean(prediction: Prediction, span: tuple[int, int], among: np.ndarray | bool = True) -> float:
    """Mean log-probability of the tokens with a character in the span; 0 without any."""
    starts, ends = _places(prediction)
    chosen = (starts < span[1]) & (ends > span[0]) & among
    return float(np.asarray(prediction.logprobs)[chosen].mean()) if chosen.any() else 0.0


def settled(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The same answers, their boxes' `confidences` those of the file, else of its tokens; of each task all or none.

    Were some boxes' known and others not, their order would be made up.
    """
    known = [_known(p) for p in predictions]
    unknown = {p.task for p, sure in zip(predictions, known, strict=True) if sure is None}
    return [
        dataclasses.replace(p, confidences=() if p.task in unknown else sure or ()) if p.task in WITH_BOXES else p
        for p, sure in zip(predictions, known, strict=True)
    ]


def _known(prediction: Prediction) -> tuple[float, ...] | None:
    if prediction.task not in WITH_BOXES:
        return ()
    return prediction.confidences or of_tokens(prediction)


def remarks(predictions: Sequence[Prediction]) -> list[str]:
    """What a reader must know of a file's confidences, a line a task with boxes."""
    groups: dict[str, list[Prediction]] = collections.defaultdict(list)
    for p in predictions:
        if p.task in WITH_BOXES:
            groups[p.task].append(p)
    said = []
    for task, rows in sorted(groups.items()):
        without = sum(_known(p) is None for p in rows)
        with_boxes = sum(bool(boxes_of(p).boxes) for p in rows)
        if not probabilities(rows):
            said.append(f"{task}: the file's confidences are no probabilities; they rank boxes, nothing else.")
        if without == with_boxes > 0:
            said.append(f"{task}: no confidence in the file; all boxes count alike.")
        elif without:
            said.append(
                f"{task}: {without} of {with_boxes} answers with boxes have no log-probabilities: no confidence is "
                "used, all boxes count alike."
            )
    return said


def probabilities(predictions: Sequence[Prediction]) -> bool:
    """Whether all confidences are in [0, 1]."""
    return all(0 <= sure <= 1 for p in predictions for sure in p.confidences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Confidence -> share of boxes that are right: increasing, linear between its corners, level beyond them.

    Attributes:
        confidences, shares: of the corners, ascending.
        boxes: how many it was learnt from.
    """

    confidences: tuple[float, ...]
    shares: tuple[float, ...]
    boxes: int

    def __call__(self, confidences: np.ndarray) -> np.ndarray:
        return np.interp(confidences, self.confidences, self.shares)


def fit(confidences: np.ndarray, right: np.ndarray) -> Calibration:
    """Isotonic regression (Zadrozny and Elkan 2002), by scipy; boxes of one confidence count as one point.

    Raises:
        EarthGPTError: no boxes.
    """
    if not len(confidences):
        raise EarthGPTError("calibration: expected boxes to learn from, got none")
    levels, place, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    shares = np.bincount(place, np.asarray(right, float)) / counts
    fitted = isotonic_regression(shares, weights=counts)
    # The first and the last level of each block of equal shares.
    corners = np.unique(np.concatenate([fitted.blocks[:-1], fitted.blocks[1:] - 1]))
    return Calibration(
        confidences=tuple(levels[corners].tolist()), shares=tuple(fitted.x[corners].tolist()), boxes=len(confidences)
    )


def check_disjoint(learnt: Sequence[Prediction], scored: Sequence[Prediction], *, where: Path, of: Path) -> None:
    """That what a calibration is learnt from is not what it is judged on.

    Raises:
        EarthGPTError: a question or an image is in both; names one.
    """
    for what, name in (("questions", "id"), ("images", "record_id")):
        shared = {getattr(p, name) for p in learnt} & {getattr(p, name) for p in scored}
        if shared:
            raise EarthGPTError(
                f"{where}: expected answers about other images than {of}, got {len(shared)} {what} of it, as "
                f"{min(shared)}; a calibration judged on what it was learnt from flatters itself: take another split"
            )
