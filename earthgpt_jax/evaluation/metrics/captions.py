"""BLEU-1..4, ROUGE-L and CIDEr through pycocoevalcap's pure-Python scorers.

pycocoevalcap's own PTB tokenizer needs Java; here a text is lower-cased and split into words and
numbers, punctuation dropped, on both sides alike. On plain captions that is what PTB followed by its
punctuation list gives; figures are comparable among themselves, not to the last digit with Java's.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from earthgpt_jax.evaluation.predictions import Prediction


def tokenise(text: str) -> str:
    """Lower case; words, numbers and contractions, separated by single spaces."""
    return " ".join(re.findall(r"\d+(?:\.\d+)?|\w+(?:'\w+)?", text.lower()))


def captions(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Corpus figures; CIDEr takes its document frequencies from the references at hand."""
    references = {i: [tokenise(text) for text in p.references] for i, p in enumerate(predictions)}
    hypotheses = {i: [tokenise(p.prediction)] for i, p in enumerate(predictions)}
    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its lengths
        bleu, _ = Bleu(4).compute_score(references, hypotheses)
        rouge, _ = Rouge().compute_score(references, hypotheses)
        cider, _ = Cider().compute_score(references, hypotheses)
    return {
        **{f"bleu{n}": float(value) for n, value in enumerate(bleu, start=1)},
        "rouge_l": float(rouge),
        "cider": float(cider),
    }
