"""One self-contained HTML page: scores beside their baselines, loss curves, a gallery with boxes."""

from earthgpt_jax.evaluation.report.gallery import Answer, Box, Case, Failure, cases, failures
from earthgpt_jax.evaluation.report.page import write

__all__ = ["Answer", "Box", "Case", "Failure", "cases", "failures", "write"]
