"""`earthgpt score`: a predictions file, without a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NAME = "score"
HELP = "score an existing predictions file, without a model"
DESCRIPTION = """\
Scores a predictions file that `earthgpt eval` or `earthgpt quickstart` wrote. The truth is in the
file, so neither the model nor the dataset is needed.

example:
  earthgpt score runs/eval/predictions_image.jsonl --json scores.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="predictions, JSONL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all metrics into this file")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.errors import EarthGPTError
    from earthgpt_jax.evaluation import predictions, scores

    _, answered = predictions.read(args.file)
    table = scores.score(answered)
    print(scores.to_markdown(table))
    if args.json:
        try:
            args.json.write_text(json.dumps(table, indent=1) + "\n")
        except OSError as error:
            raise EarthGPTError(f"--json {args.json}: cannot be written ({error.strerror}); name another") from error
    return 0
