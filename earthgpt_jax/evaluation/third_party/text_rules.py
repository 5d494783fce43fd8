"""Published scoring rules for texts (classification, VQA, captions), reproduced with their defects."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import re
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes.plurals import NUMBER_WORDS
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.predictions import Prediction


def _geochat_text(text: str) -> str:
    return text.lower().replace(" ", "").replace(".", "")


def geochat_exact(predictions: Sequence[Prediction]) -> float:
    """GeoChat: equality of lower-case texts without spaces and full stops."""
    return float(np.mean([_geochat_text(p.prediction) == _geochat_text(p.answer) for p in predictions]))


_GEOCHAT_TYPES = ("presence", "comp", "comparison", "rural_urban")


def geochat_vqa(predictions: Sequence[Prediction]) -> float:
    """GeoChat and VHM: as `geochat_exact`, without questions of counts and areas; all, if a file has no such types."""
    chosen = [p for p in predictions if p.question_type in _GEOCHAT_TYPES] or predictions
    return geochat_exact(chosen)


def lhrs_classification(predictions: Sequence[Prediction]) -> float:
    """LHRS-Bot: the class with the longest common substring is taken; mean of the classes' recalls."""
    classes = sorted({p.answer.lower().replace("_", " ") for p in predictions})
    recalls = collections.defaultdict(list)
    for p in predictions:
        answer = p.prediction.strip()
        if answer not in classes:
            answer = max(classes, key=lambda name: _longest_common_substring(answer, name))  # ties: the first
        truth = p.answer.lower().replace("_", " ")
        recalls[truth].append(answer == truth)
    return float(np.mean([np.mean(hits) for hits in recalls.values()]))


def _longest_common_substring(text1: str, text2: str) -> int:
    return difflib.SequenceMatcher(None, text1, text2).find_longest_match(0, len(text1), 0, len(text2)).size


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def evalai_normalize(text: str) -> str:
    """Normalize a text as EvalAI does, in LHRS-Bot's version, but without its list of contractions."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").replace("\n", " ").strip()
    out = text
    for sign in _PUNCTUATION:
        out = out.replace(sign, "" if f"{sign} " in text or f" {sign}" in text else " ")
    words = re.sub(r"\.(?!\d)", "", out).split()
    numbers = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBER_WORDS)}
    return " ".join(numbers.get(word, word) for word in words if word not in ("a", "an", "the"))


def lhrs_vqa(predictions: Sequence[Prediction]) -> float:
    """LHRS-Bot: any substring of the true answer is correct, since the code expects a list there and gets a text."""
    chosen = [p for p in predictions if p.question_type not in ("count", "area")] or predictions
    return float(np.mean([evalai_normalize(p.prediction) in p.answer for p in chosen]))


def token_recall(answer: str, truth: str) -> float:
    """Return the fraction of the truth's tokens that the answer contains.

    Spaces are removed first, so tokens are the pieces between punctuation marks, and the marks themselves.
    """
    tokens, true_tokens = (
        [*re.findall(r"\w+|[^\w\s]", text.strip().lower().replace(" ", ""))] for text in (answer, truth)
    )
    return len(set(tokens) & set(true_tokens)) / len(true_tokens) if true_tokens else 0.0


def earthdial_recall(predictions: Sequence[Prediction]) -> float:
    """EarthDial: mean token recall."""
    return float(np.mean([token_recall(p.prediction, p.answer) for p in predictions]))


def vrsbench_vqa(predictions: Sequence[Prediction]) -> float:
    """VRSBench: the truth is a substring of the answer, so `no` is found in `I do not know`."""
    return float(np.mean([p.answer.lower() in p.prediction.lower() for p in predictions]))


def falcon_captions(predictions: Sequence[Prediction]) -> float:
    """Falcon: BLEU-1 with answer and truth exchanged, and one reference."""
    swapped = [dataclasses.replace(p, prediction=p.references[0], references=(p.prediction,)) for p in predictions]
    return captions(swapped)["bleu1"]
