"""BLEU-1 to 4, ROUGE-L and CIDEr of captions, computed by pycocoevalcap's pure-Python scorers.

pycocoevalcap's own PTB tokenizer needs Java. `tokenize` follows those of its rules that matter for captions, for
answers and references alike. Values are comparable with each other, but may differ in the last digits from values
computed with the Java tokenizer. METEOR and SPICE are in `meteor_spice`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, ratio
from earthgpt_jax.evaluation.predictions import Prediction

# As in the Penn Treebank, numbers keep their inner point or comma, words keep their inner hyphens, and symbols that are
# not punctuation are tokens. Everything else is punctuation that pycocoevalcap drops, or a bracket or quote.
_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:-[^\W_]+)*(?:'[^\W_]+)?|[%$&#@+=*]")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))$")
_ORDERS = (1, 2, 3, 4)
_SMALL, _TINY = 1e-9, 1e-15  # BleuScorer's constants against division by zero


@functools.lru_cache(maxsize=2**17)  # a model and its baselines share their references
def tokenize(text: str) -> str:
    """Return lower-case tokens separated by single spaces, without punctuation; `doesn't` becomes `does n't`."""
    words = _TOKEN.findall(text.lower().replace("\u2019", "'"))
    return " ".join(_CLITIC.sub(r" \1", word) for word in words)


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

    return {"cider": np.asarray(Cider().compute_score(*tokenize_all(predictions))[1], float)}


def _compute(sums: Statistics) -> Values:
    """Compute the caption metrics over a corpus.

    - `bleu1` to `bleu4`: corpus BLEU with brevity penalty against the closest reference length, in [0, 1]
      (Papineni et al. 2002).
    - `rouge_l`: mean ROUGE-L F-score, in [0, 1] (Lin 2004).
    - `cider`: mean CIDEr, in [0, 10] (Vedantam et al. 2015). It weights an n-gram by how few questions have it in
      their references. It therefore needs several questions (for a single one it is 0), and the value of a sensor is
      not an average that adds up to the value over all sensors. Bootstrap samples keep the document frequencies of all
      questions.
    """
    lengths = (sums["length"] + _TINY) / (sums["closest"] + _SMALL)
    brevity = np.where(lengths < 1, np.exp(1 - 1 / np.minimum(lengths, 1)), 1.0)
    values, product = {}, np.ones_like(brevity)
    for order in _ORDERS:
        product = product * (sums[f"correct{order}"] + _TINY) / (sums[f"guess{order}"] + _SMALL)
        values[f"bleu{order}"] = product ** (1 / order) * brevity
    return values | {name: ratio(sums[name], sums["n"]) for name in ("rouge_l", "cider")}


captions = Metric(statistics=_statistics, compute=_compute, corpus=_cider_statistics, unbounded=frozenset({"cider"}))
