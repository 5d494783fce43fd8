"""One self-contained HTML page: scores beside their baselines, loss curves, a gallery with boxes."""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from earthgpt_jax.evaluation.metrics import classification
from earthgpt_jax.evaluation.metrics.detection import matching
from earthgpt_jax.evaluation.metrics.grounding import iou
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.scores import HEADLINE, Scores
from earthgpt_jax.geometry import BoxKind, Square, parse
from earthgpt_jax.input.images import decode
from earthgpt_jax.mmrs.record import Record, Sensor, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A box to draw: label and the corners as an SVG `points` attribute, in pixels of the image."""

    label: str
    points: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A question with its answer and truth; `verdict` is right, wrong or "" where there is no single truth."""

    task: str
    question: str
    prediction: str
    truth: str
    verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An image of the gallery; `image` is a PNG as a data URI."""

    title: str
    sensor: str
    source: str
    image: str
    width: int
    height: int
    boxes: Mapping[str, tuple[Sequence[Box], Sequence[Box]]]  # kind -> (truth, predicted)
    answers: Sequence[Answer]


def cases(records: Sequence[Record], predictions: Sequence[Prediction], *, per_sensor: int) -> list[Case]:
    """The first images of each sensor that have every task's answer; not chosen by how good they are."""
    by_record: dict[str, list[Prediction]] = collections.defaultdict(list)
    for prediction in predictions:
        by_record[prediction.record_id].append(prediction)
    found: dict[Sensor, list[Case]] = {sensor: [] for sensor in Sensor}
    for index in range(len(records)):
        record = records[index]
        answers = by_record.get(record.id, [])
        if len(found[record.sensor]) < per_sensor and answers and record.image:
            found[record.sensor].append(_case(record, answers))
    return [case for group in found.values() for case in group]


def _case(record: Record, predictions: Sequence[Prediction]) -> Case:
    boxes = {}
    for prediction in predictions:
        if prediction.task in (Task.HBB, Task.OBB):
            truth = [Box(label=item.label, points=_points(item.polygon)) for item in prediction.objects]
            square = Square(prediction.width, prediction.height)
            got = [
                Box(label=box.label, points=_points(box.pixels(square))) for box in parse(prediction.prediction).boxes
            ]
            boxes[prediction.task] = (truth, got)
    return Case(
        title=record.id,
        sensor=record.sensor.value,
        source=record.source,
        image=_data_uri(record.image),
        width=record.width,
        height=record.height,
        boxes=boxes,
        answers=[
            Answer(task=p.task, question=p.question, prediction=p.prediction, truth=p.answer, verdict=_verdict(p))
            for p in predictions
        ],
    )


def _points(polygon: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(polygon).reshape(-1, 2))


def _data_uri(data: bytes) -> str:
    """PNG, whatever the original was: browsers do not show TIFF."""
    out = io.BytesIO()
    Image.fromarray(decode(data)).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _verdict(prediction: Prediction) -> str:
    match prediction.task:
        case Task.CLASSIFICATION | Task.VQA:
            good = classification.right(prediction)
        case Task.GROUNDING:
            good = (iou(prediction) or 0.0) >= 0.5
        case Task.HBB | Task.OBB:
            matched = matching(prediction, BoxKind(prediction.task))
            good = matched.spurious == matched.missed == 0
        case _:
            return ""
    return "right" if good else "wrong"


def write(
    path: Path,
    *,
    title: str,
    runs: Mapping[str, Scores],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    gallery: Sequence[Case],
    notes: Sequence[str] = (),
) -> None:
    """Writes the page.

    Args:
        runs: a model's name -> its scores with baselines (`scores.assemble`).
        curves: a run's name -> its `(step, loss)`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.evaluation", "report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    page = environment.get_template("page.html").render(
        title=title,
        runs=runs,
        headline=[(task.value, metric, name) for task, (metric, name) in HEADLINE.items()],
        groups=["all", *(sensor.value for sensor in Sensor)],
        curves=[_curve(name, points) for name, points in curves.items() if points],
        gallery=gallery,
        notes=notes,
    )
    path.write_text(page)


def _curve(name: str, points: Sequence[tuple[int, float]], *, width: int = 420, height: int = 180) -> dict[str, str]:
    """An SVG path of a loss curve, smoothed over a twentieth of its length, and its end points in words."""
    steps, losses = (np.array(column, float) for column in zip(*points, strict=True))
    window = max(1, len(losses) // 20)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    x = np.interp(np.arange(len(smooth)), [0, max(len(smooth) - 1, 1)], [0, width])
    low, high = float(smooth.min()), float(smooth.max())
    y = height - (smooth - low) / max(high - low, 1e-9) * height
    return {
        "name": name,
        "path": "M" + " L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)),
        "view": f"-6 -6 {width + 12} {height + 12}",
        "words": f"{losses[:window].mean():.3f} at first, {losses[-window:].mean():.3f} after {int(steps[-1])} steps",
        "high": f"{high:.2f}",
        "low": f"{low:.2f}",
    }
