"""The option `--json FILE`, whose name `-` stands for standard output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from earthgpt_jax.common import files

STDOUT = "-"


@contextlib.contextmanager
def json_output(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Yield the function that writes the file of `--json`.

    For the name `-` it writes to standard output; all that is printed in the block goes to standard error instead.
    """
    out = sys.stdout
    if str(path) == STDOUT:
        with contextlib.redirect_stdout(sys.stderr):
            yield out.write
    else:
        yield lambda text: files.write_output(path, text.encode()) if path else None
