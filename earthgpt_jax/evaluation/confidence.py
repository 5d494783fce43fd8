"""Confidences of the boxes in predictions, and their calibration.

`inference.confidence` defines the confidence of a box. Confidences rank boxes; `Calibration` turns them into the
fraction of boxes that are correct.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.parsed_boxes import parse_answer
from earthgpt_jax.evaluation.predictions import BOX_TASKS, Prediction
from earthgpt_jax.inference.confidence import box_confidences, mean_logprob


def token_confidences(prediction: Prediction) -> tuple[float, ...] | None:
    """Return the confidence of each parsed box, in (0, 1]; None if the tokens are not stored or cannot be aligned."""
    return box_confidences(
        prediction.prediction,
        parse_answer(prediction).boxes,
        logprobs=prediction.logprobs,
        token_lengths=prediction.token_lengths,
    )


def answer_probability(prediction: Prediction, span: tuple[int, int] | None = None) -> float | None:
    """Return the geometric mean probability of the tokens of an answer; None if they are not stored.

    Args:
        prediction: the answer.
        span: characters (start, end); only tokens that overlap them count. Default: the whole answer.
    """
    if not prediction.logprobs:
        return None
    whole = (0, len(prediction.prediction))
    return float(np.exp(mean_logprob(prediction.logprobs, prediction.token_lengths, span or whole)))


def assign_confidences(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Set the `confidences` of each answer with boxes: those of the file if present, else those of its tokens.

    Per task, either all boxes get a confidence or none does: if some were unknown, their place in the ranking would be
    arbitrary.
    """
    confidences = [_confidences(p) for p in predictions]
    unknown = {p.task for p, values in zip(predictions, confidences, strict=True) if values is None}
    return [
        dataclasses.replace(p, confidences=() if p.task in unknown else values or ()) if p.task in BOX_TASKS else p
        for p, values in zip(predictions, confidences, strict=True)
    ]


def _confidences(prediction: Prediction) -> tuple[float, ...] | None:
    if prediction.task not in BOX_TASKS:
        return ()
    return prediction.confidences or token_confidences(prediction)


def notes(predictions: Sequence[Prediction]) -> list[str]:
    """Return what a reader must know about a file's confidences, one sentence per task with boxes."""
    groups: dict[str, list[Prediction]] = collections.defaultdict(list)
    for p in predictions:
        if p.task in BOX_TASKS:
            groups[p.task].append(p)
    lines = []
    for task, rows in sorted(groups.items()):
        without = sum(_confidences(p) is None for p in rows)
        with_boxes = sum(bool(parse_answer(p).boxes) for p in rows)
        if not are_probabilities(rows):
            lines.append(f"{task}: the file's confidences are not in [0, 1]; they are used to rank boxes only.")
        if without == with_boxes > 0:
            lines.append(f"{task}: the file has no confidences; all boxes rank equally.")
        elif without:
            lines.append(
                f"{task}: {without} of {with_boxes} answers with boxes have no log-probabilities, so no confidences "
                "are used and all boxes rank equally."
            )
    return lines


def are_probabilities(predictions: Sequence[Prediction]) -> bool:
    """Return whether all confidences are in [0, 1]."""
    return all(0 <= value <= 1 for p in predictions for value in p.confidences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """A function from confidence to the fraction of boxes that are correct.

    It is increasing, linear between its corners, and constant beyond them.

    Attributes:
        confidences, fractions: the corners, in ascending order.
        boxes: number of boxes that it was fitted to.
    """

    confidences: tuple[float, ...]
    fractions: tuple[float, ...]
    boxes: int

    def __call__(self, confidences: np.ndarray) -> np.ndarray:
        """Return the calibrated confidences, f[n]."""
        return np.interp(confidences, self.confidences, self.fractions)


def fit_calibration(confidences: np.ndarray, correct: np.ndarray) -> Calibration:
    """Fit a calibration by isotonic regression (Zadrozny and Elkan 2002).

    Args:
        confidences: of the boxes, f[n]; boxes of equal confidence count as one point.
        correct: whether each box is correct, bool[n].

    Raises:
        EarthGPTError: there are no boxes.
    """
    from scipy.optimize import isotonic_regression

    if not len(confidences):
        raise EarthGPTError("calibration: expected at least one box to fit to, got none")
    levels, level, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    fractions = np.bincount(level, np.asarray(correct, float)) / counts
    fitted = isotonic_regression(fractions, weights=counts)
    # The first and the last level of each block of equal fractions.
    corners = np.unique(np.concatenate([fitted.blocks[:-1], fitted.blocks[1:] - 1]))
    return Calibration(
        confidences=tuple(levels[corners].tolist()),
        fractions=tuple(fitted.x[corners].tolist()),
        boxes=len(confidences),
    )


def check_disjoint(
    fitted: Sequence[Prediction], scored: Sequence[Prediction], *, fitted_path: Path, scored_path: Path
) -> None:
    """Check that a calibration is not evaluated on the data that it was fitted to.

    Raises:
        EarthGPTError: a question or an image is in both files; names one.
    """
    for what, name in (("questions", "id"), ("images", "record_id")):
        shared = {getattr(p, name) for p in fitted} & {getattr(p, name) for p in scored}
        if shared:
            raise EarthGPTError(
                f"{fitted_path}: expected answers about other images than {scored_path}, got {len(shared)} {what} in "
                f"common, for example {min(shared)}. A calibration error measured on the data that the calibration was "
                "fitted to is too low: use another split"
            )
