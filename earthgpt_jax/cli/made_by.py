"""What made a page: the first note of every report."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping

from earthgpt_jax import __version__


def made_by(args: argparse.Namespace, *, inputs: Mapping[str, str] | None = None, samples: int = 0) -> str:
    """Return version, date and command, and what the page depends on.

    Args:
        args: the parsed arguments of the command.
        inputs: name of a dataset or model -> its digest.
        samples: bootstrap samples of the intervals.

    Example: "earthgpt-jax 0.1.0, 2026-12-01 05:20 UTC: `earthgpt data stats d`. Digests: d 8b2f0c11."
    """
    now = datetime.datetime.now(datetime.UTC)
    parts = [f"earthgpt-jax {__version__}, {now:%Y-%m-%d %H:%M} UTC: `{args.command_line}`."]
    if samples:
        parts.append(f"Intervals: {samples} bootstrap samples, seed 0.")
    if inputs:
        parts.append(f"Digests: {', '.join(f'{name} {digest}' for name, digest in inputs.items())}.")
    return " ".join(parts)
