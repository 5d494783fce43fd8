"""Write the complete report of a predictions file, as an HTML page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_text
from earthgpt_jax.evaluation.confidence import Calibration
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.report import gallery, page
from earthgpt_jax.evaluation.report.markdown import headline_table, markdown_table
from earthgpt_jax.evaluation.report.tables import (
    Table,
    breakdown_table,
    confusions_table,
    metrics_table,
    reliability_table,
    stretch_table,
)
from earthgpt_jax.evaluation.scores import Scores
from earthgpt_jax.records import Record

_PICTURES = 6  # number of worst images, and of best images, shown with pictures


def write_report(
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
    """Write `report.html` and `report.md` into a folder.

    Args:
        folder: created if it does not exist.
        title: title of the report.
        scores: scores of the predictions (`scores.with_breakdown`).
        predictions: the answers.
        records: the records that they are about, for pictures; None for a report without pictures.
        notes: facts about the predictions, listed at the top.
        tables: further tables, shown after the scores.
        calibrations: task -> calibration, shown next to the uncalibrated confidences.

    Raises:
        EarthGPTError: the folder cannot be written.
    """
    failures = gallery.parse_failures(predictions)
    tables = [*tables, stretch_table(predictions)]
    extremes = gallery.best_and_worst(records, predictions, count=_PICTURES) if records is not None else {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write_page(
            folder / "report.html", title=title, runs={"these answers": scores}, curves={}, images=(), notes=notes,
            failures=failures, max_failures=len(failures), predictions=predictions, tables=tables, extremes=extremes,
            calibrations=calibrations,
        )  # fmt: skip
        reliability = reliability_table(predictions, calibrations)
        text = _markdown(
            title,
            scores=scores,
            predictions=predictions,
            notes=notes,
            tables=[*tables, *([reliability] if reliability else [])],
        )
        write_text(folder / "report.md", text)
    except OSError as error:
        raise EarthGPTError(
            f"--report {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error  # fmt: skip


def _markdown(
    title: str, *, scores: Scores, predictions: Sequence[Prediction], notes: Sequence[str], tables: Sequence[Table]
) -> str:
    blocks = [f"# {title}", "\n".join(f"- {note}" for note in notes), "## Scores", headline_table(scores)]
    detailed = [
        table
        for task, groups in scores.items()
        for table in (metrics_table(task, groups), breakdown_table(task, groups))
        if table is not None
    ]
    confusions = confusions_table(predictions)
    for table in [*tables, *detailed, *([confusions] if confusions else [])]:
        blocks += [f"## {table.title}", markdown_table([table.head, *table.rows])]
        if table.note:
            blocks.append(table.note)
    failures = gallery.parse_failures(predictions)
    blocks += [
        "## Answers that could not be parsed",
        f"{len(failures)} of {len(predictions)}; they count as wrong.",
    ]
    if failures:
        rows = [[f.record_id, f.task, _code(f.prediction), f.reason] for f in failures]
        blocks.append(markdown_table([["image", "task", "answer", "reason"], *rows]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`" if text.strip() else "(empty)"
