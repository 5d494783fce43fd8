"""Write the answers of a command to a file: JSON Lines, JSON or CSV, by the suffix of its name."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean

Answer = Mapping[str, Any]  # as a JSON object
ToRows = Callable[[Answer], Sequence[Sequence[Any]]]  # the rows of a CSV file for an answer


def add_argument(parser: argparse.ArgumentParser, *, more: Sequence[str] = ()) -> None:
    """Add `--out`; `more` are suffixes of formats that the command writes itself."""
    suffixes = (*_FORMATS, *more)
    parser.add_argument(
        "--out", type=functools.partial(_path, suffixes=suffixes), metavar="FILE",
        help="write the answers to this file instead of standard output; its suffix chooses the format: "
        f"{', '.join(suffixes)}",
    )  # fmt: skip


def write(path: Path, answers: Sequence[Answer], *, columns: Sequence[str], to_rows: ToRows) -> None:
    """Write answers to a file that appears when it is complete.

    Args:
        columns: the columns of a CSV file.

    Raises:
        EarthGPTError: the file cannot be written.
    """
    files.write_output(path, _FORMATS[path.suffix.lower()](answers, columns, to_rows).encode())


def _path(text: str, *, suffixes: Sequence[str]) -> Path:
    path = files.output_path(text)
    if path.suffix.lower() not in suffixes:
        known = ", ".join(suffixes)
        raise EarthGPTError(
            f"--out {text}: expected a name that ends in one of {known}"
            f"{did_you_mean(path.suffix.lower(), suffixes) if path.suffix else ''}"
        )
    return path


def _json_lines(answers: Sequence[Answer], columns: Sequence[str], to_rows: ToRows) -> str:
    return "".join(json.dumps(answer) + "\n" for answer in answers)


def _json(answers: Sequence[Answer], columns: Sequence[str], to_rows: ToRows) -> str:
    return json.dumps(answers, indent=1) + "\n"


def _csv(answers: Sequence[Answer], columns: Sequence[str], to_rows: ToRows) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(row for answer in answers for row in to_rows(answer))
    return file.getvalue()


_FORMATS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
