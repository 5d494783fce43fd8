"""What is in dataset directories, record by record: classes, boxes, texts in tokens; as text, JSON and HTML."""

from __future__ import annotations

import array
import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tqdm import tqdm

from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.input.prompts.questions import BoxStyle, evaluation_questions
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import Record, Task

COCO = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}  # from this area on, px^2: COCO's evaluation code
_QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
_STEPS = (0, *(step * 2**power for power in range(20) for step in (1, 1.5) if step * 2**power % 1 == 0))
_ASPECTS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 50)
_PLOT = (440, 150)  # width and height
_BARS = 30  # classes on the page's plot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """How a quantity is spread.

    Attributes:
        quantiles: name -> value, the mean among them; empty where there is nothing to measure.
        edges, counts: a histogram; `counts[i]` values lie in `edges[i] <= value < edges[i + 1]`, the last without end.
    """

    name: str
    unit: str
    count: int
    quantiles: Mapping[str, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Of one dataset, or of several together.

    Attributes:
        counts: total, sensor, task, label (of scenes), object (labels) -> name -> split -> count.
        coco: small, medium, large -> boxes.
        spreads: box side (root of its area), aspect, objects an image of a detection set, longer side of an image.
        texts: kind of question -> (tokens of the question, tokens of the answer).
        native: kind -> native, kept, quarantined, dropped; empty for several datasets.
        dropped: the card's reason -> how many.
    """

    name: str
    splits: tuple[str, ...]
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    coco: Mapping[str, int]
    spreads: tuple[Distribution, ...]
    texts: Mapping[str, tuple[Distribution, Distribution]]
    native: Mapping[str, Mapping[str, int]]
    dropped: Mapping[str, int]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class _Measured:
    """Numbers of the records seen so far: 4 bytes each, never the records."""

    def __init__(self) -> None:
        self.sides, self.aspects, self.objects, self.images = (array.array("f") for _ in range(4))
        self.coco: collections.Counter[str] = collections.Counter()
        self.texts: dict[str, tuple[array.array, array.array]] = {}

    def add(self, record: Record, texts: Sequence[tuple[str, int, Sequence[int]]]) -> None:
        if {Task.HBB, Task.OBB} & set(record.tasks):
            self.objects.append(len(record.objects))
        if record.image:
            self.images.append(max(record.width, record.height))
        if record.objects:
            areas, aspects = _extents(np.stack([item.polygon for item in record.objects]))
            self.sides.extend(np.sqrt(areas).tolist())
            self.aspects.extend(aspects.tolist())
            sizes = np.searchsorted(list(COCO.values()), areas, side="right") - 1
            self.coco.update(np.array(list(COCO))[sizes].tolist())
        for kind, question, answers in texts:
            asked, answered = self.texts.setdefault(kind, (array.array("f"), array.array("f")))
            asked.append(question)
            answered.extend(answers)

    def spreads(self) -> tuple[Distribution, ...]:
        return (
            _spread("side of a box", "px, root of its area", self.sides),
            _spread("aspect of a box", "longer side / shorter side", self.aspects, edges=_ASPECTS),
            _spread("objects an image", "", self.objects),
            _spread("longer side of an image", "px", self.images),
        )

    def asked(self) -> dict[str, tuple[Distribution, Distribution]]:
        return {
            kind: (_spread("question", "tokens", asked), _spread("answer", "tokens", answered))
            for kind, (asked, answered) in sorted(self.texts.items())
        }


def compute_statistics(directories: Sequence[Path], *, tokenizer: Tokenizer) -> list[DatasetStatistics]:
    """One for each directory; of several, one of all together behind them.

    Texts are the questions that evaluation asks, in their default wordings, and the answers to them; of captions
    every reference is an answer.
    """
    found, everything = [], _Measured()
    manifests = [read_manifest(directory) for directory in directories]
    for directory, values in zip(directories, manifests, strict=True):
        measured = _Measured()
        for split in values["counts"]:
            source = store.RecordSource(directory, split)
            for record in tqdm(source, desc=f"{values['name']}/{split}", unit="record", leave=False):
                texts = list(_texts(record, tokenizer))
                measured.add(record, texts)
                everything.add(record, texts)
        found.append(_statistics(values["name"], [values], measured))
    if len(found) > 1:
        found.append(_statistics("all together", manifests, everything))
    return found


def _texts(record: Record, tokenizer: Tokenizer) -> Iterator[tuple[str, int, list[int]]]:
    for question in evaluation_questions(record, box_style=BoxStyle()):
        kind = f"{question.task}: {question.question_type}" if question.question_type else question.task
        yield kind, len(tokenizer.encode(question.text)), [len(tokenizer.encode(t)) for t in question.references]


def _statistics(name: str, manifests: Sequence[Mapping[str, Any]], measured: _Measured) -> DatasetStatistics:
    counts: dict[str, dict[str, collections.Counter]] = {k: {} for k in ("total", "sensor", "task", "label", "object")}
    for values in manifests:
        for split, kinds in values["counts"].items():
            for kind, rows in counts.items():
                for row, count in kinds[kind].items():
                    rows.setdefault(row, collections.Counter())[split] += count
    alone = manifests[0] if len(manifests) == 1 else {}
    return DatasetStatistics(
        name=name,
        splits=tuple(dict.fromkeys(split for values in manifests for split in values["counts"])),
        counts={kind: {row: dict(c) for row, c in sorted(rows.items())} for kind, rows in counts.items()},
        coco={size: measured.coco[size] for size in COCO},
        spreads=measured.spreads(),
        texts=measured.asked(),
        native={kind: dict(row) for kind, row in alone.get("native", {}).items() if row["native"]},
        dropped=dict(alone.get("dropped", {})),
    )


def _extents(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32[n, 8] -> (f64[n] areas, f64[n] aspects of at least 1), of boxes at any orientation."""
    corners = polygons.reshape(-1, 4, 2).astype(np.float64)
    following = np.roll(corners, -1, axis=1)
    cross = corners[..., 0] * following[..., 1] - corners[..., 1] * following[..., 0]
    edges = np.linalg.norm(following - corners, axis=2)
    sides = np.sort((edges[:, :2] + edges[:, 2:]) / 2, axis=1)
    return np.abs(cross.sum(axis=1)) / 2, sides[:, 1] / np.maximum(sides[:, 0], 1e-6)


def _spread(name: str, unit: str, values: array.array, *, edges: Sequence[float] = _STEPS) -> Distribution:
    numbers = np.array(values, np.float64)
    if not len(numbers):
        return Distribution(name=name, unit=unit, count=0, quantiles={}, edges=(), counts=())
    quantiles = dict(zip(_QUANTILES, np.quantile(numbers, list(_QUANTILES.values())).tolist(), strict=True))
    edges = [*edges, np.inf]
    counts, _ = np.histogram(numbers, edges)
    first, last = np.flatnonzero(counts)[[0, -1]].tolist()
    return Distribution(
        name=name,
        unit=unit,
        count=len(numbers),
        quantiles={**quantiles, "mean": float(numbers.mean())},
        edges=tuple(float(edge) for edge in edges[first : last + 1]),
        counts=tuple(counts[first : last + 1].tolist()),
    )


_Row = tuple[str, ...]


def tables(found: DatasetStatistics) -> Iterator[tuple[str, _Row, list[_Row]]]:
    """(title, column names, rows) of everything, as text."""
    for kind, title in (("total", "records"), ("sensor", "sensors"), ("task", "tasks")):
        yield title, ("", *found.splits, "all"), _by_split(found, kind)
    for kind, title in (("label", "classes of scenes"), ("object", "classes of objects")):
        if found.counts[kind]:
            rows = sorted(_by_split(found, kind), key=lambda row: -int(row[-1]))
            yield title, ("", *found.splits, "all"), rows
    total = sum(found.coco.values())
    if total:
        rows = [(size, str(count), f"{100 * count / total:.1f} %") for size, count in found.coco.items()]
        yield "boxes by COCO's sizes (below 32 x 32 px, below 96 x 96 px, larger)", ("", "boxes", "share"), rows
    rows = [(s.name, *(_figure(v) for v in s.quantiles.values())) for s in found.spreads if s.count]
    yield "sizes (px of the original image)", ("", *_QUANTILES, "mean"), rows
    if found.texts:
        short = ("median", "95 %", "max")
        columns = ("", "questions", *(f"question {q}" for q in short), "answers", *(f"answer {q}" for q in short))
        rows = [
            (
                kind,
                *(word for part in parts for word in (str(part.count), *(_figure(part.quantiles[q]) for q in short))),
            )
            for kind, parts in found.texts.items()
        ]
        yield "texts (tokens)", columns, rows
    if found.native:
        names = ("native", "kept", "quarantined", "dropped")
        yield (
            "native files",
            ("", *names),
            [(f"{kind}s", *(str(row[name]) for name in names)) for kind, row in found.native.items()],
        )
    if found.dropped:
        yield "dropped", ("", "count"), [(reason, str(count)) for reason, count in found.dropped.items()]


def _by_split(found: DatasetStatistics, kind: str) -> list[_Row]:
    return [
        (name, *(str(row.get(split, 0)) for split in found.splits), str(sum(row.values())))
        for name, row in found.counts[kind].items()
    ]


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def format_statistics(found: DatasetStatistics) -> str:
    """All tables, for a terminal."""
    lines = [found.name]
    for title, columns, rows in tables(found):
        lines += ["", f"  {title}", *align_columns([columns, *rows], indent="    ")]
    return "\n".join(lines)


def render_page(found: Sequence[DatasetStatistics], *, title: str, tokenizer: str) -> str:
    """The HTML page: every table, with plots; everything in it is inline, and it has no JavaScript.

    Args:
        tokenizer: what counted the tokens, for the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("earthgpt_jax.input", "pages"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    sections = [(each.name, list(_plots(each)), list(tables(each))) for each in found]
    return environment.get_template("stats.html").render(title=title, tokenizer=tokenizer, sections=sections)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Bar:
    """A bar of a plot, in its coordinates, y from the top."""

    x: float
    y: float
    width: float
    height: float
    title: str


def _plots(found: DatasetStatistics) -> Iterator[dict[str, Any]]:
    for kind, title in (("label", "classes of scenes"), ("object", "classes of objects")):
        rows = sorted(((sum(row.values()), name) for name, row in found.counts[kind].items()), reverse=True)
        if rows:
            more = f", the first {_BARS} of {len(rows)}" if len(rows) > _BARS else ""
            names, counts = [name for _, name in rows[:_BARS]], [count for count, _ in rows[:_BARS]]
            yield _plot(f"{title}{more}", names, counts, ends=(names[0], names[-1] if len(names) > 1 else ""))
    answers = [dataclasses.replace(parts[1], name=f"answer, {kind}") for kind, parts in found.texts.items()]
    for spread in (*found.spreads, *answers):
        if spread.count and len(spread.counts) > 1:
            names = [f"from {_figure(edge)}" for edge in spread.edges]
            unit = f" ({spread.unit})" if spread.unit else ""
            ends = (_figure(spread.edges[0]), f"{_figure(spread.edges[-1])} and more")
            yield _plot(f"{spread.name}{unit}", names, spread.counts, ends=ends)


def _plot(title: str, names: Sequence[str], counts: Sequence[int], *, ends: tuple[str, str]) -> dict[str, Any]:
    width, height = _PLOT
    step, most = width / len(counts), max(counts)
    bars = [
        _Bar(
            x=place * step, y=height * (1 - count / most), width=max(step - 1.5, 1), height=height * count / most,
            title=f"{name}: {count}",
        )
        for place, (name, count) in enumerate(zip(names, counts, strict=True))
    ]  # fmt: skip
    return {"title": title, "bars": bars, "most": most, "ends": ends, "width": width, "height": height}
