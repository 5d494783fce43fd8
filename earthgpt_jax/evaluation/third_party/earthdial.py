"""EarthDial's scoring rules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import shapely

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.rule import Figures, Rule, answer_in_format, fraction, truth_in_format
from earthgpt_jax.records import Task

_FORMAT = "earthdial"
_TYPES = ("comp", "presence", "rural_urban")
_SIZES = ("small", "medium", "large")


def tokens(text: str) -> list[str]:
    """Return the tokens of a text without spaces, by nltk's word tokenizer, which EarthDial uses."""
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ModuleNotFoundError as error:
        raise EarthGPTError(
            "EarthDial's rule uses the tokenizer of nltk, which is not installed; pip install 'earthgpt-jax[score]'"
        ) from error
    return NLTKWordTokenizer().tokenize(text.strip().lower().replace(" ", "").strip())


def token_recall(answer: str, truth: str) -> float:
    """Return the fraction of the truth's tokens that the answer contains.

    Spaces are removed first, so tokens are the pieces between punctuation marks, and the marks themselves.
    """
    true_tokens = tokens(truth)
    return len(set(tokens(answer)) & set(true_tokens)) / len(true_tokens) if true_tokens else 0.0


def classification(predictions: Sequence[Prediction]) -> Figures:
    """Compute the mean token recall."""
    return {"recall": float(np.mean([token_recall(p.prediction, p.answer) for p in predictions]))}


def vqa(predictions: Sequence[Prediction]) -> Figures:
    """Compute the mean token recall of each of three types; questions of other types do not count."""
    recalls = {
        name: [token_recall(p.prediction, p.answer) for p in predictions if p.question_type == name] for name in _TYPES
    }
    return {name: float(np.mean(values)) for name, values in recalls.items() if values}


def _integers(text: str) -> list[list[int]]:
    """Return the integers of each bracket, however many they are."""
    text = text.replace("][", "], [").replace("]], [[", "], [")
    return [[int(n) for n in part.split(",")] for part in re.findall(r"\[\s*(\d+(?:,\s*\d+)*)\s*\]", text)]


def _polygon(numbers: Sequence[int]) -> shapely.Polygon:
    """Return the rotated box of five numbers.

    Raises:
        ValueError: there are not five, as their code raises then.
    """
    left, top, right, bottom, degrees = numbers
    centre = np.array([(left + right) / 2, (top + bottom) / 2])
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]]) - centre
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return shapely.Polygon(corners @ np.array([[cos, -sin], [sin, cos]]) + centre)


def _is_correct(box: Sequence[int], truths: Sequence[Sequence[int]]) -> bool:
    """Return whether a box overlaps any object; a malformed box or truth ends the search, as their `except` does."""
    try:
        polygon = _polygon(box)
        for numbers in truths:
            truth = _polygon(numbers)
            if polygon.is_valid and truth.is_valid:
                union = polygon.union(truth).area
                if union > 0 and polygon.intersection(truth).area / union >= 0.5:
                    return True
    except ValueError:
        pass
    return False


def _text(prediction: Prediction, text: str) -> str:
    """Return a text written in EarthDial's format with angles from 0 to 180: its parser reads no minus sign."""
    if prediction.box_format == _FORMAT:
        return text
    return re.sub(r",\s*-(\d+)\]", lambda match: f",{180 - int(match[1])}]", text)


def detection(predictions: Sequence[Prediction]) -> Figures:
    """Compute the precision, which the paper calls mAP: of all boxes, and by number and size of the true objects.

    Any number of boxes may count on one object, and missed objects cost nothing. A bracket with another number of
    integers than five is a claim that is wrong.
    """
    correct: dict[str, int] = {}
    claims: dict[str, int] = {}
    for p in predictions:
        truths = _integers(_text(p, truth_in_format(p, _FORMAT)))
        boxes = _integers(_text(p, answer_in_format(p, _FORMAT)))
        hits = sum(_is_correct(box, truths) for box in boxes)
        size = (p.question_type,) if p.question_type in _SIZES else ()
        for group in ("all", "single" if len(truths) == 1 else "multiple", *size):
            correct[group] = correct.get(group, 0) + hits
            claims[group] = claims.get(group, 0) + len(boxes)
    return {group: fraction(correct[group], claims[group]) if claims[group] else 0.0 for group in correct}


def captions(predictions: Sequence[Prediction]) -> Figures:
    """Compute ROUGE-1 and ROUGE-L, averaged over the references, by the package rouge-score with stemming."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise EarthGPTError(
            "EarthDial's rule uses rouge-score, which is not installed; pip install 'earthgpt-jax[score]'"
        ) from error
    from nltk.tokenize import NLTKWordTokenizer

    scorer, tokenize = RougeScorer(["rouge1", "rougeL"], use_stemmer=True), NLTKWordTokenizer().tokenize
    values: dict[str, list[float]] = {"rouge1": [], "rougeL": []}
    for p in predictions:
        answer = " ".join(tokenize(p.prediction))
        scores = [scorer.score(" ".join(tokenize(text)), answer) for text in p.references]
        for name, column in values.items():
            column.append(float(np.mean([score[name].fmeasure for score in scores])))
    return {name: float(np.mean(column)) for name, column in values.items()}


_RECALL = "fraction of the truth's tokens, commas included, that the answer contains"
_PRECISION = Rule(
    compute=detection, ours={"all": "precision"}, file="src/earthdial/eval/rs_detection/eval.py",
    description="precision, called mAP: a box is correct if its IoU with any object is 0.5, even of another class and "
                "however many boxes there are on it; missed objects cost nothing. Their program prints the groups "
                "without `all`",
)  # fmt: skip
RULES: Mapping[str, Rule] = {
    Task.CLASSIFICATION: Rule(
        compute=classification, ours={"recall": "top1"}, file="src/earthdial/eval/rs_classification/eval.py",
        description=_RECALL),
    Task.VQA: Rule(
        compute=vqa, ours={name: f"accuracy_{name}" for name in _TYPES}, file="src/earthdial/eval/rs_vqa/eval.py",
        description=f"{_RECALL}; three types of questions, each by itself"),
    Task.CAPTION: Rule(
        compute=captions, ours={"rouge1": "rouge_l", "rougeL": "rouge_l"},
        file="src/earthdial/eval/rs_image_caption/eval.py",
        description="mean over the references, with stemming; METEOR by nltk, which needs WordNet, is left out"),
    Task.HBB: _PRECISION,
    Task.OBB: _PRECISION,
    Task.GROUNDING: _PRECISION,
}  # fmt: skip
