"""TensorBoard events of a run, on a disk or in a bucket."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from earthgpt_jax.common import files
from earthgpt_jax.common.buckets import BucketPath

_FILE_BYTES = 1 << 20  # of an event file in a bucket, after which the next one is begun


class EventFiles:
    """Write scalars to event files in `folder`.

    In a bucket, a file is written to local scratch space and uploaded by `flush`, each time as a whole.

    Args:
        purge_step: step from which TensorBoard ignores the events of earlier processes.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        self._folder, self._purge_step = folder, purge_step
        self._stack = contextlib.ExitStack()
        self._local = folder
        if isinstance(folder, BucketPath):
            self._local = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="earthgpt-")))
        self._writer = _summary_writer(self._local, purge_step=purge_step)

    def add_scalar(self, name: str, value: Any, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Store all events."""
        self._writer.flush()
        if self._local == self._folder:
            return
        for file in self._local.iterdir():
            files.copy(file, self._folder / file.name)
            if file.stat().st_size > _FILE_BYTES:
                self._writer.close()
                file.unlink()
                self._writer = _summary_writer(self._local, purge_step=None)

    def close(self) -> None:
        with self._stack:
            self.flush()
            self._writer.close()


def _summary_writer(folder: Path, *, purge_step: int | None) -> Any:
    """Open a TensorBoard writer without importing torch.

    `tensorboardX.writer` imports torch where it is installed, which takes seconds, to accept its tensors as histograms.
    We write scalars only. A `None` in `sys.modules` makes that import fail, and tensorboardX handles the failure.
    """
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX
    finally:
        if hide_torch:
            del sys.modules["torch"]
    return tensorboardX.SummaryWriter(str(folder), purge_step=purge_step)
