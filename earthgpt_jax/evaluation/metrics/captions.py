"""BLEU-1..4, ROUGE-L and CIDEr through pycocoevalcap's pure-Python scorers.

pycocoevalcap's own PTB tokenizer needs Java. `tokenise` follows the rules of it that matter for captions,
on hypotheses and references alike; figures are comparable among themselves, not to the last digit with
Java's.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from earthgpt_jax.evaluation.predictions import Prediction

# Numbers keep their inner point or comma and words their inner hyphens, as in the Penn Treebank; signs that are not
# punctuation are tokens. All else is on pycocoevalcap's list of dropped punctuation, or a bracket or quote.
_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:-[^\W_]+)*(?:'[^\W_]+)?|[%$&#@+=*]")
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))$")


def tokenise(text: str) -> str:
    """Lower-case tokens, separated by single spaces; punctuation dropped, `doesn't` as `does n't`."""
    words = _TOKEN.findall(text.lower().replace("\u2019", "'"))
    return " ".join(_CLITIC.sub(r" \1", word) for word in words)


def cider(references: Mapping[int, Sequence[str]], hypotheses: Mapping[int, str]) -> float:
    """CIDEr of one hypothesis a key; texts as they are, tokenised here."""
    score, _ = Cider().compute_score(
        {key: [tokenise(text) for text in texts] for key, texts in references.items()},
        {key: [tokenise(text)] for key, text in hypotheses.items()},
    )
    return float(score)


def captions(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Corpus figures; CIDEr takes its document frequencies from the references at hand.

    CIDEr weighs a word by how few of the questions have it, so it needs several: of one question it is 0,
    and a sensor's figure is not a share of the figure over all.
    """
    references = {i: [tokenise(text) for text in p.references] for i, p in enumerate(predictions)}
    hypotheses = {i: [tokenise(p.prediction)] for i, p in enumerate(predictions)}
    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its lengths
        bleu, _ = Bleu(4).compute_score(references, hypotheses)
        rouge, _ = Rouge().compute_score(references, hypotheses)
        consensus, _ = Cider().compute_score(references, hypotheses)
    return {
        **{f"bleu{n}": float(value) for n, value in enumerate(bleu, start=1)},
        "rouge_l": float(rouge),
        "cider": float(consensus),
    }
