"""The report on a packing schedule (`schedule.txt`): what packing saves compared with padding, as tables."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.input.packing.schedule import PackingSchedule

_BUCKETS = 8  # length buckets of equal width
_ROUNDING_SHOWN = 0.01  # report weights that rounding changes by more than this share
_Table = tuple[str, Sequence[str], list[tuple[str, ...]]]


def padded_lengths(
    tokens: Int[np.ndarray, " S"], *, seq_len: int, batch_size: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return, for each way of padding, the padded length i64[S] of each sample if it had a sequence to itself."""
    shuffled = np.random.default_rng(seed).permutation(tokens)
    begins = np.arange(0, len(tokens), batch_size)
    longest = np.repeat(np.maximum.reduceat(shuffled, begins), np.diff(np.append(begins, len(tokens))))
    width = -(-seq_len // _BUCKETS)
    return {
        "padded to T": np.full(len(tokens), seq_len),
        f"padded to the longest of {batch_size}": longest,
        f"{_BUCKETS} length buckets": np.minimum(-(-tokens // width) * width, seq_len),
    }


def tables(schedule: PackingSchedule, *, batch_size: int) -> Iterator[_Table]:
    """Yield `(title, column names, rows)`; all counts are per epoch, averaged over the schedule's cycle."""
    epochs, seq_len = schedule.cycle.epochs, schedule.budget.seq_len
    samples = [part for epoch in schedule.samples for part in epoch]
    tokens = np.concatenate([part.tokens for part in samples]).astype(np.int64)
    sequences = schedule.sequences_per_cycle
    packed = sequences * seq_len

    ways = padded_lengths(tokens, seq_len=seq_len, batch_size=batch_size)
    rows = [(name, len(tokens), int(lengths.sum()), 1.0) for name, lengths in ways.items()]
    rows.append(("packed", sequences, packed, len(tokens) / sequences))
    yield (
        f"sequences of T = {seq_len} tokens, up to {schedule.max_images} images",
        ("", "sequences", "tokens", "efficiency", "images per sequence", "tokens / packed"),
        [
            (name, _count(count, epochs), _count(total, epochs), f"{tokens.sum() / total:.4f}", f"{images:.2f}",
             f"{total / packed:.2f}")
            for name, count, total, images in rows
        ],
    )  # fmt: skip
    yield (
        "images per packed sequence",
        ("images", "sequences", "share"),
        [
            (str(images), _count(count, epochs), f"{100 * count / sequences:.1f} %")
            for images, count in sorted(_image_counts(schedule).items())
        ],
    )
    questions = np.concatenate([part.count for part in samples])
    spread = [("tokens", tokens), ("questions", questions)]
    yield (
        f"samples: one image with its questions ({schedule.budget.prefix_tokens} tokens are image and system text)",
        ("", "min", "median", "95 %", "max", "mean"),
        [(name, *(f"{q:.0f}" for q in np.quantile(v, (0, 0.5, 0.95, 1))), f"{v.mean():.1f}") for name, v in spread],
    )
    yield (
        "sources",
        ("", "records", "weight", "epochs", "samples", "questions", "full sequences", "share of tokens"),
        [_source_row(schedule, number, total=int(tokens.sum())) for number in range(len(schedule.sources))],
    )
    yield "tasks", ("", "weight", "questions", "left out (longer than a sequence)"), _task_rows(schedule)
    if rounded := _rounded_rows(schedule):
        title = f"weights that a cycle of {epochs} epochs rounds by more than {_ROUNDING_SHOWN:.0%}"
        yield title, ("", "wanted", "actual", "tasks"), rounded


def _rounded_rows(schedule: PackingSchedule) -> list[tuple[str, ...]]:
    """Return one row for all tasks of a source whose weights are rounded alike."""
    tasks: dict[tuple[str, ...], list[str]] = {}
    for (name, task), (wanted, actual) in schedule.cycle.rounded.items():
        if abs(actual - wanted) > _ROUNDING_SHOWN * wanted:
            tasks.setdefault((name, f"{wanted:.4g}", f"{actual:.4g}"), []).append(task)
    return [(*row, ", ".join(names)) for row, names in tasks.items()]


def _image_counts(schedule: PackingSchedule) -> Mapping[int, int]:
    """Return the number of sequences per cycle for each number of images."""
    counts: collections.Counter[int] = collections.Counter()
    for epoch in schedule.epochs:
        for pattern in epoch.patterns:
            counts[sum(images for _, images in pattern.sizes)] += pattern.count
    return counts


def _source_row(schedule: PackingSchedule, number: int, *, total: int) -> tuple[str, ...]:
    source, samples = schedule.sources[number], [epoch[number] for epoch in schedule.samples]
    epochs = schedule.cycle.epochs
    tokens = sum(int(part.tokens.sum()) for part in samples)
    source_epochs = schedule.epochs_per_source(schedule.sequences_per_cycle)[source.name] / epochs
    return (
        source.name,
        str(len(source.records)),
        f"{source.weight:.4g}",
        f"{source_epochs:.4g}",
        _count(sum(map(len, samples)), epochs),
        _count(sum(len(part.questions) for part in samples), epochs),
        f"{tokens / schedule.budget.seq_len / epochs:.1f}",
        f"{100 * tokens / total:.1f} %",
    )


def _task_rows(schedule: PackingSchedule) -> list[tuple[str, ...]]:
    asked: collections.Counter[str] = collections.Counter()
    for epoch in schedule.samples:
        for source, part in zip(schedule.sources, epoch, strict=True):
            asked.update(source.index.count_by_task(part.questions))
    return [
        (task, f"{weight:g}", _count(asked[task], schedule.cycle.epochs), str(schedule.too_long.get(task, 0)))
        for task, weight in schedule.weights.items()
    ]


def _count(total: int, epochs: int) -> str:
    return f"{total / epochs:.0f}" if total % epochs == 0 else f"{total / epochs:.1f}"


def format_report(schedule: PackingSchedule, *, batch_size: int) -> str:
    """Return all tables as text."""
    cycle = f", averaged over a cycle of {schedule.cycle.epochs}" if schedule.cycle.epochs > 1 else ""
    lines = [f"The packing schedule compared with padding. Counts are per epoch{cycle}."]
    for title, columns, rows in tables(schedule, batch_size=batch_size):
        lines += ["", f"  {title}", *align_columns([columns, *rows], indent="    ")]
    return "\n".join(lines)
