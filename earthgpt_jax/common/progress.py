"""Progress bars: drawn in place on a terminal, plain lines in a log file."""

from __future__ import annotations

import io
import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0  # between two lines where standard error is no terminal


class Bar(tqdm):
    """A `tqdm` bar on standard error. Where that is no terminal, it prints a line every `LINE_SECONDS`.

    Work that takes less than `LINE_SECONDS` prints no line there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not sys.stderr.isatty():
            kwargs |= {"file": _Lines(), "mininterval": LINE_SECONDS, "delay": LINE_SECONDS, "ncols": 100}
        super().__init__(*args, **kwargs)


class _Lines(io.TextIOBase):
    """Writes each state of a bar as a line, instead of over the last one."""

    def write(self, text: str) -> int:
        line = text.replace("\r", "").rstrip()
        if line:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        return len(text)
