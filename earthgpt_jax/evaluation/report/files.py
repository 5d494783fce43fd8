"""A predictions file's whole report, as a page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.report import gallery, page
from earthgpt_jax.evaluation.report.tables import Table, confused, metrics, parts, reliability
from earthgpt_jax.evaluation.scores import Scores, markdown_table, to_markdown
from earthgpt_jax.records import Record

_PICTURES = 6  # worst, and best, images with pictures


def write_both(
    folder: Path,
    *,
    title: str,
    scores: Scores,
    predictions: Sequence[Prediction],
    records: Sequence[Record] | None,
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
    calibrations: Mapping[str, Calibration] | None = None,
) -> None:
    """`report.html` and `report.md` in a folder; the page has pictures where there are records.

    Raises:
        EarthGPTError: the folder cannot be written.
    """
    unreadable = gallery.failures(predictions)
    shown = gallery.extremes(records, predictions, count=_PICTURES) if records is not None else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write(
            folder / "report.html", title=title, runs={"these answers": scores}, curves={}, gallery=(), notes=notes,
            failures=unreadable, shown_failures=len(unreadable), predictions=predictions, tables=tables, extremes=shown,
            calibrations=calibrations,
        )  # fmt: skip
        binned = reliability(predictions, calibrations)
        text = _markdown(
            title, scores=scores, predictions=predictions, notes=notes, tables=[*tables, *([binned] if binned else [])]
        )
        (folder / "report.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise EarthGPTError(f"--report {folder}: cannot be written ({error.strerror}); name another") from error


def _markdown(
    title: str, *, scores: Scores, predictions: Sequence[Prediction], notes: Sequence[str], tables: Sequence[Table]
) -> str:
    blocks = [f"# {title}", "\n".join(f"- {note}" for note in notes), "## Scores", to_markdown(scores)]
    detailed = [
        table
        for task, groups in scores.items()
        for table in (metrics(task, groups), parts(task, groups))
        if table is not None
    ]
    more = confused(predictions)
    for table in [*tables, *detailed, *([more] if more else [])]:
        blocks += [f"## {table.title}", markdown_table([table.head, *table.rows])]
        if table.note:
            blocks.append(table.note)
    unreadable = gallery.failures(predictions)
    blocks += ["## Answers that could not be read", f"{len(unreadable)} of {len(predictions)}; they count as wrong."]
    if unreadable:
        rows = [[f.record_id, f.task, _code(f.prediction), f.reason] for f in unreadable]
        blocks.append(markdown_table([["image", "task", "answer", "reason"], *rows]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`" if text.strip() else "(empty)"
