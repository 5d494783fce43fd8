"""One self-contained page and its Markdown: scores beside their baselines, curves, images with boxes, failures."""

from earthgpt_jax.evaluation.report.files import write_both
from earthgpt_jax.evaluation.report.gallery import Answer, Box, Case, Failure, cases, extremes, failures
from earthgpt_jax.evaluation.report.page import write
from earthgpt_jax.evaluation.report.tables import Table, by_rule, confidences, published

__all__ = [
    "Answer", "Box", "Case", "Failure", "Table", "by_rule", "cases", "confidences", "extremes", "failures", "published",
    "write", "write_both",
]  # fmt: skip
