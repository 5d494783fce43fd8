"""What packing saves on dataset directories: the plan's rows beside one sample a row, padded; as tables."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from earthgpt_jax.config import Config
from earthgpt_jax.input.conversation import conversation
from earthgpt_jax.input.lengths import Asking
from earthgpt_jax.input.plan import Plan, Source
from earthgpt_jax.input.questions import Grammar, task_of
from earthgpt_jax.input.rows import image_prefix
from earthgpt_jax.input.samples import Room
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.mmrs.length_cache import lengths
from earthgpt_jax.mmrs.store import open_source
from earthgpt_jax.mmrs.tables import aligned

_BUCKETS = 8  # of equal width
_Table = tuple[str, Sequence[str], list[tuple[str, ...]]]


def planned(
    directory: Path,
    config: Config,
    *,
    tokenizer: Tokenizer,
    images_per_row: int | None = None,
    workers: int | None = None,
) -> Plan:
    """The plan of a recipe over a dataset directory, or over a folder of them, as training would read it.

    Args:
        images_per_row: at most; None: as many as a row has room for.
        workers: processes that measure lengths where they are not known yet; None: one a core.

    Raises:
        EarthGPTError: there is nothing to read or to ask, as `open_source` and `Plan` say.
    """
    data = config.data
    weights = {kind: weight for kind, weight in sorted(data.task_weights.items()) if weight > 0}
    prefix, _ = image_prefix(tokenizer, conversation(data.conversation), visual_tokens=config.model.visual_tokens)
    room = Room(shared=len(prefix), tokens_per_row=data.tokens_per_row, max_questions=data.max_questions)
    asking = Asking(
        kinds=tuple(weights),
        tokenizer=tokenizer,
        conversation=data.conversation,
        grammar=Grammar(decimals=data.decimals, max_boxes=data.max_boxes),
        room=room.tokens_per_row - room.shared,
        seed=config.seed,
    )
    together = open_source(directory, data.split, tasks=sorted({task_of(kind) for kind in weights}))
    sources = []
    for source, records in together.parts():
        found = lengths(source, asking=asking, workers=workers)
        sources.append(Source(name=source.name, index=found.index, records=records, identity=found.identity))
    return Plan(
        sources,
        weights=weights,
        room=room,
        images_per_row=images_per_row or max(1, data.tokens_per_row // (room.shared + 1)),
        seed=config.seed,
    )


def padded(tokens: np.ndarray, *, tokens_per_row: int, batch_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Way of padding -> i64[S], the length that each sample of `tokens` i[S] has then, one sample a row."""
    shuffled = np.random.default_rng(seed).permutation(tokens)
    begins = np.arange(0, len(tokens), batch_size)
    longest = np.repeat(np.maximum.reduceat(shuffled, begins), np.diff(np.append(begins, len(tokens))))
    width = -(-tokens_per_row // _BUCKETS)
    return {
        "padded to T": np.full(len(tokens), tokens_per_row),
        f"padded to the longest of {batch_size}": longest,
        f"{_BUCKETS} length buckets": np.minimum(-(-tokens // width) * width, tokens_per_row),
    }


def tables(plan: Plan, *, batch_size: int) -> Iterator[_Table]:
    """(title, column names, rows), all of one epoch, on average over the plan's cycle."""
    epochs, wide = plan.cycle.epochs, plan.room.tokens_per_row
    drawn = [each for epoch in plan.samples for each in epoch]
    tokens = np.concatenate([each.tokens for each in drawn]).astype(np.int64)
    held = _images(plan)

    ways = padded(tokens, tokens_per_row=wide, batch_size=batch_size)
    rows = [(name, len(tokens), int(lengths.sum()), 1.0) for name, lengths in ways.items()]
    rows.append(("packed by the plan", plan.rows, plan.rows * wide, len(tokens) / plan.rows))
    packed = rows[-1][2]
    yield (
        f"rows of T = {wide} tokens, up to {plan.images_per_row} images",
        ("", "rows", "tokens", "occupancy", "images a row", "tokens / the plan's"),
        [
            (name, _count(count, epochs), _count(total, epochs), f"{tokens.sum() / total:.4f}", f"{images:.2f}",
             f"{total / packed:.2f}")
            for name, count, total, images in rows
        ],
    )  # fmt: skip
    yield (
        "images of the plan's rows",
        ("images", "rows", "share"),
        [(str(n), _count(count, epochs), f"{100 * count / plan.rows:.1f} %") for n, count in sorted(held.items())],
    )
    counts = np.concatenate([each.count for each in drawn])
    spread = [("tokens", tokens), ("questions", counts)]
    yield (
        f"an image with its questions ({plan.room.shared} tokens are its own and the system text's)",
        ("", "min", "median", "95 %", "max", "mean"),
        [(name, *(f"{q:.0f}" for q in np.quantile(v, (0, 0.5, 0.95, 1))), f"{v.mean():.1f}") for name, v in spread],
    )
    yield (
        "sources",
        ("", "records", "weight", "samples", "questions", "full rows", "share of tokens"),
        [_source(plan, place, total=int(tokens.sum())) for place in range(len(plan.sources))],
    )
    yield "kinds", ("", "weight", "questions", "longer than a row, left out"), _kinds(plan)
    if lost := plan.cycle.lost:
        yield (
            f"weights that {epochs} epochs do not meet",
            ("", "kind", "wanted", "got"),
            [(name, kind, f"{want:.4g}", f"{got:.4g}") for (name, kind), (want, got) in lost.items()],
        )


def _images(plan: Plan) -> Mapping[int, int]:
    """Images -> rows of a cycle."""
    held: collections.Counter[int] = collections.Counter()
    for epoch in plan.epochs:
        for pattern in epoch.patterns:
            held[sum(images for _, images in pattern.sizes)] += pattern.rows
    return held


def _source(plan: Plan, place: int, *, total: int) -> tuple[str, ...]:
    source, drawn = plan.sources[place], [epoch[place] for epoch in plan.samples]
    tokens = sum(int(each.tokens.sum()) for each in drawn)
    return (
        source.name,
        str(len(source.records)),
        f"{source.weight:g}",
        *(_count(sum(len(of) for of in each), plan.cycle.epochs) for each in (drawn, [d.questions for d in drawn])),
        f"{tokens / plan.room.tokens_per_row / plan.cycle.epochs:.1f}",
        f"{100 * tokens / total:.1f} %",
    )


def _kinds(plan: Plan) -> list[tuple[str, ...]]:
    asked: collections.Counter[str] = collections.Counter()
    for epoch in plan.samples:
        for source, each in zip(plan.sources, epoch, strict=True):
            counts = np.bincount(source.index.kind[each.questions], minlength=len(source.index.kinds))
            asked.update(dict(zip(source.index.kinds, counts.tolist(), strict=True)))
    return [
        (kind, f"{weight:g}", _count(asked[kind], plan.cycle.epochs), str(plan.left_out.get(kind, 0)))
        for kind, weight in plan.weights.items()
    ]


def _count(total: int, epochs: int) -> str:
    return f"{total / epochs:.0f}" if total % epochs == 0 else f"{total / epochs:.1f}"


def text(plan: Plan, *, batch_size: int) -> str:
    """All tables, for a terminal."""
    lines = [
        "An estimate of what packing would save: training does not pack by this plan yet. Counts are of an epoch"
        + (f", the mean of {plan.cycle.epochs}." if plan.cycle.epochs > 1 else ".")
    ]
    for title, columns, rows in tables(plan, batch_size=batch_size):
        lines += ["", f"  {title}", *aligned([columns, *rows], indent="    ")]
    return "\n".join(lines)
