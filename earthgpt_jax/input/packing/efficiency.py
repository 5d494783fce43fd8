"""What packing saves: the plan's rows beside one sample a row, padded; as tables."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.input.packing.sampler import count_by_task
from earthgpt_jax.input.packing.schedule import PackingSchedule

_BUCKETS = 8  # of equal width
_MISSED = 0.01  # by so much of a weight rounding is told
_Table = tuple[str, Sequence[str], list[tuple[str, ...]]]


def padded_lengths(tokens: np.ndarray, *, seq_len: int, batch_size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Way of padding -> i64[S], the length that each sample of `tokens` i[S] has then, one sample a row."""
    shuffled = np.random.default_rng(seed).permutation(tokens)
    begins = np.arange(0, len(tokens), batch_size)
    longest = np.repeat(np.maximum.reduceat(shuffled, begins), np.diff(np.append(begins, len(tokens))))
    width = -(-seq_len // _BUCKETS)
    return {
        "padded to T": np.full(len(tokens), seq_len),
        f"padded to the longest of {batch_size}": longest,
        f"{_BUCKETS} length buckets": np.minimum(-(-tokens // width) * width, seq_len),
    }


def tables(plan: PackingSchedule, *, batch_size: int) -> Iterator[_Table]:
    """(title, column names, rows), all of one epoch, on average over the plan's cycle."""
    epochs, wide = plan.cycle.epochs, plan.room.seq_len
    drawn = [each for epoch in plan.samples for each in epoch]
    tokens = np.concatenate([each.tokens for each in drawn]).astype(np.int64)
    held = _images(plan)

    ways = padded_lengths(tokens, seq_len=wide, batch_size=batch_size)
    rows = [(name, len(tokens), int(lengths.sum()), 1.0) for name, lengths in ways.items()]
    rows.append(("packed by the plan", plan.rows, plan.rows * wide, len(tokens) / plan.rows))
    packed = rows[-1][2]
    yield (
        f"rows of T = {wide} tokens, up to {plan.max_images} images",
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
        ("", "records", "weight", "passes", "samples", "questions", "full rows", "share of tokens"),
        [_source(plan, place, total=int(tokens.sum())) for place in range(len(plan.sources))],
    )
    yield "kinds", ("", "weight", "questions", "longer than a row, left out"), _kinds(plan)
    if lost := _lost(plan):
        yield f"weights that {epochs} epochs miss by more than {_MISSED:.0%}", ("", "wanted", "got", "kinds"), lost


def _lost(plan: PackingSchedule) -> list[tuple[str, ...]]:
    """A line for the kinds of a source that rounding changes alike."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for (name, kind), (want, got) in plan.cycle.lost.items():
        if abs(got - want) > _MISSED * want:
            alike.setdefault((name, f"{want:.4g}", f"{got:.4g}"), []).append(kind)
    return [(*said, ", ".join(kinds)) for said, kinds in alike.items()]


def _images(plan: PackingSchedule) -> Mapping[int, int]:
    """Images -> rows of a cycle."""
    held: collections.Counter[int] = collections.Counter()
    for epoch in plan.epochs:
        for pattern in epoch.patterns:
            held[sum(images for _, images in pattern.sizes)] += pattern.rows
    return held


def _source(plan: PackingSchedule, place: int, *, total: int) -> tuple[str, ...]:
    source, drawn = plan.sources[place], [epoch[place] for epoch in plan.samples]
    tokens = sum(int(each.tokens.sum()) for each in drawn)
    return (
        source.name,
        str(len(source.records)),
        f"{source.weight:.4g}",
        f"{plan.epochs_per_source(plan.rows)[source.name] / plan.cycle.epochs:.4g}",
        *(_count(sum(len(of) for of in each), plan.cycle.epochs) for each in (drawn, [d.questions for d in drawn])),
        f"{tokens / plan.room.seq_len / plan.cycle.epochs:.1f}",
        f"{100 * tokens / total:.1f} %",
    )


def _kinds(plan: PackingSchedule) -> list[tuple[str, ...]]:
    asked: collections.Counter[str] = collections.Counter()
    for epoch in plan.samples:
        for source, each in zip(plan.sources, epoch, strict=True):
            asked.update(count_by_task(source.index, each.questions))
    return [
        (kind, f"{weight:g}", _count(asked[kind], plan.cycle.epochs), str(plan.left_out.get(kind, 0)))
        for kind, weight in plan.weights.items()
    ]


def _count(total: int, epochs: int) -> str:
    return f"{total / epochs:.0f}" if total % epochs == 0 else f"{total / epochs:.1f}"


def format_report(plan: PackingSchedule, *, batch_size: int) -> str:
    """All tables, for a terminal."""
    lines = [
        "What training packs, beside what padding would cost. Counts are of an epoch"
        + (f", the mean of {plan.cycle.epochs}." if plan.cycle.epochs > 1 else ".")
    ]
    for title, columns, rows in tables(plan, batch_size=batch_size):
        lines += ["", f"  {title}", *align_columns([columns, *rows], indent="    ")]
    return "\n".join(lines)
