"""The evaluation report: a self-contained HTML page, and its tables as Markdown.

It shows scores with intervals and baselines, training curves, images with boxes, and answers that could not be parsed.
"""

from earthgpt_jax.evaluation.report.files import write_report
from earthgpt_jax.evaluation.report.gallery import (
    Answer,
    Box,
    ImageCase,
    ParseFailure,
    best_and_worst,
    first_images,
    parse_failures,
)
from earthgpt_jax.evaluation.report.markdown import format_value, headline_table, markdown_table
from earthgpt_jax.evaluation.report.page import write_page
from earthgpt_jax.evaluation.report.tables import (
    Table,
    confidence_table,
    paired_table,
    published_table,
    scene_table,
    third_party_table,
)

__all__ = [
    "Answer", "Box", "ImageCase", "ParseFailure", "Table", "best_and_worst", "confidence_table", "first_images",
    "format_value", "headline_table", "markdown_table", "paired_table", "parse_failures", "published_table",
    "scene_table", "third_party_table", "write_page", "write_report",
]  # fmt: skip
