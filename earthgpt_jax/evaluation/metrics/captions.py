"""BLEU-1..4, ROUGE-L and CIDEr through pycocoevalcap's pure-Python scorers.

pycocoevalcap's own PTB tokenizer needs Java. `tokenise` follows the rules of it that matter for captions,
on hypotheses and references alike; figures are comparable among themselves, not to the last digit with
Java's. METEOR and SPICE are in `java`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from earthgpt_jax.evaluation.metrics.base import Counts, Figures, Metric, ratio
from earthgpt_jax.evaluation.predictions import Prediction

# Numbers keep their inner point or comma and words their inner hyphens, as in the Penn Treebank; signs that are not
# punctuation are tokens. All else is on pycocoevalcap's list of dropped punctuation, or a bracket or quote.
_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:-[^\W_]+)*(?:'[^\W_]+)?|[%$&#@+=*]")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))$")
_ORDERS = (1, 2, 3, 4)
_SMALL, _TINY = 1e-9, 1e-15  # BleuScorer's, against division by zero


@functools.lru_cache(maxsize=2**17)  # references are the same for a model and its baselines
def tokenise(text: str) -> str:
    """Lower-case tokens, separated by single spaces; punctuation dropped, `doesn't` as `does n't`."""
    words = _TOKEN.findall(text.lower().replace("\u2019", "'"))
    return " ".join(_CLITIC.sub(r" \1", word) for word in words)


def tokenised(predictions: Sequence[Prediction]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """(references, hypotheses) by place, as pycocoevalcap's `compute_score` takes them, in this order."""
    return (
        {i: [tokenise(text) for text in p.references] for i, p in enumerate(predictions)},
        {i: [tokenise(p.prediction)] for i, p in enumerate(predictions)},
    )


def cider(references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, str]) -> float:
    """CIDEr of one hypothesis a key; texts as they are, tokenised here."""
    score, _ = Cider().compute_score(
        {key: [tokenise(text) for text in texts] for key, texts in references.items()},
        {key: [tokenise(text)] for key, text in hypotheses.items()},
    )
    return float(score)


def _counts(predictions: Sequence[Prediction]) -> Counts:
    references, hypotheses = tokenised(predictions)
    bleu = BleuScorer(n=len(_ORDERS))
    for i in hypotheses:
        bleu += (hypotheses[i][0], references[i])
    length = np.array([item["testlen"] for item in bleu.ctest], float)
    closest = [min(item["reflen"], key=lambda ref: (abs(ref - item["testlen"]), ref)) for item in bleu.ctest]
    columns = {"n": np.ones(len(predictions)), "length": length, "closest": np.array(closest, float)}
    for order in _ORDERS:
        for name in ("correct", "guess"):
            columns[f"{name}{order}"] = np.array([item[name][order - 1] for item in bleu.ctest], float)
    columns["rouge_l"] = np.asarray(Rouge().compute_score(references, hypotheses)[1], float)
    return columns


def _cider(predictions: Sequence[Prediction]) -> Counts:
    return {"cider": np.asarray(Cider().compute_score(*tokenised(predictions))[1], float)}


def _figures(sums: Counts) -> Figures:
    """Corpus figures; CIDEr takes its document frequencies from the references at hand.

    CIDEr weighs a word by how few of the questions have it, so it needs several: of one question it is 0,
    and a sensor's figure is not a share of the figure over all. Bootstrap samples keep the frequencies.
    """
    lengths = (sums["length"] + _TINY) / (sums["closest"] + _SMALL)
    brevity = np.where(lengths < 1, np.exp(1 - 1 / np.minimum(lengths, 1)), 1.0)
    figures, product = {}, np.ones_like(brevity)
    for order in _ORDERS:
        product = product * (sums[f"correct{order}"] + _TINY) / (sums[f"guess{order}"] + _SMALL)
        figures[f"bleu{order}"] = product ** (1 / order) * brevity
    return figures | {name: ratio(sums[name], sums["n"]) for name in ("rouge_l", "cider")}


captions = Metric(counts=_counts, figures=_figures, corpus=_cider)
