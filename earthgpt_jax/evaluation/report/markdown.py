"""Markdown tables of scores, and how values are written in every table of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from earthgpt_jax.evaluation.scores import BASELINES, HEADLINE, Scores
from earthgpt_jax.records import Sensor


def format_value(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Format a value with three decimals, a count as an integer, and an interval in brackets; "" for None."""
    if value is None:
        return ""
    if math.isnan(value):
        return "undefined"
    text = str(value) if isinstance(value, int) else f"{value:.3f}"
    return text if interval is None else f"{text} [{interval[0]:.3f}, {interval[1]:.3f}]"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table; the first row is the head, and all columns but the first are right-aligned."""
    head, *body = rows
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (head, ["---", *["---:"] * (len(head) - 1)], *body)
    )


def headline_table(scores: Scores) -> str:
    """Return a Markdown table of the headline metrics: all images, each sensor, and the baselines over all images."""
    sensors = [sensor.value for sensor in Sensor]
    baselines = [name for name in BASELINES if any(name in groups["all"] for groups in scores.values())]
    rows = [["task", "all", *sensors, *baselines, "parsed", "n"]]
    for task, (metric, title) in HEADLINE.items():
        groups = scores.get(str(task))
        if groups:
            overall = groups["all"]
            rows.append(
                [
                    title,
                    format_value(overall.get(metric), overall.get("intervals", {}).get(metric)),
                    *(format_value(groups.get(sensor, {}).get(metric)) for sensor in sensors),
                    *(format_value(overall.get(name, {}).get(metric)) for name in baselines),
                    format_value(overall.get("parse_rate")),
                    str(overall["n"]),
                ]
            )
    return markdown_table(rows)
