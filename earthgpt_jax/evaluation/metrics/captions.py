"""BLEU-1 to 4, ROUGE-L and CIDEr of captions, computed by pycocoevalcap's pure-Python scorers.

Answers and references are tokenized by the same rules (`ptb`), which are those of pycocoevalcap's tokenizer without its
need for Java. METEOR and SPICE are in `meteor_spice`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, ratio
from earthgpt_jax.evaluation.metrics.ptb import tokenize
from earthgpt_jax.evaluation.predictions import Prediction

_ORDERS = (1, 2, 3, 4)
_SMALL, _TINY = 1e-9, 1e-15  # BleuScorer's constants against division by zero


def tokenize_all(predictions: Sequence[Prediction]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return tokenized (references, hypotheses) by index, the arguments of pycocoevalcap's `compute_score`."""
    return (
        {i: [tokenize(text) for text in p.references] for i, p in enumerate(predictions)},
        {i: [tokenize(p.prediction)] for i, p in enumerate(predictions)},
    )


def cider(references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, str]) -> float:
    """Return the CIDEr, in [0, 10], of one hypothesis per key; the texts are tokenized here."""
    from pycocoevalcap.cider.cider import Cider

    score, _ = Cider().compute_score(
        {key: [tokenize(text) for text in texts] for key, texts in references.items()},
        {key: [tokenize(text)] for key, text in hypotheses.items()},
    )
    return float(score)


def _statistics(predictions: Sequence[Prediction]) -> Statistics:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.rouge.rouge import Rouge

    references, hypotheses = tokenize_all(predictions)
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


def _cider_statistics(predictions: Sequence[Prediction]) -> Statistics:
    from pycocoevalcap.cider.cider import Cider

    if len(predictions) < 2:  # every n-gram is in all documents, so that its weight is log(1) = 0
        return {"cider": np.full(len(predictions), np.nan)}
    return {"cider": np.asarray(Cider().compute_score(*tokenize_all(predictions))[1], float)}


def _compute(sums: Statistics) -> Values:
    """Compute the caption metrics over a corpus.

    - `bleu1` to `bleu4`: corpus BLEU with brevity penalty against the closest reference length, in [0, 1]
      (Papineni et al. 2002).
    - `rouge_l`: mean ROUGE-L F-score, in [0, 1] (Lin 2004).
    - `cider`: mean CIDEr, in [0, 10] (Vedantam et al. 2015). It weights an n-gram by how few questions have it in
      their references. It therefore needs several questions (for a single one it is undefined, NaN), and the value of
      a sensor is not an average that adds up to the value over all sensors. Bootstrap samples keep the document
      frequencies of all questions.
    """
    lengths = (sums["length"] + _TINY) / (sums["closest"] + _SMALL)
    brevity = np.where(lengths < 1, np.exp(1 - 1 / np.minimum(lengths, 1)), 1.0)
    values, product = {}, np.ones_like(brevity)
    for order in _ORDERS:
        product = product * (sums[f"correct{order}"] + _TINY) / (sums[f"guess{order}"] + _SMALL)
        values[f"bleu{order}"] = product ** (1 / order) * brevity
    return values | {name: ratio(sums[name], sums["n"]) for name in ("rouge_l", "cider")}


captions = Metric(statistics=_statistics, compute=_compute, corpus=_cider_statistics, unbounded=frozenset({"cider"}))
