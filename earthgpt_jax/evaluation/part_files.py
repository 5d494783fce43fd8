"""The files of a running evaluation: one part file per process, joined into one file when every question is answered.

While an evaluation runs, `predictions.jsonl` is written as `predictions-0-of-2.jsonl` and `predictions-1-of-2.jsonl`,
one line per answer. All part files count, of any number of processes, so a stopped evaluation may continue with another
number of processes. In a bucket, where nothing can be appended, each process writes a series of part files
(`predictions-0-of-2-00000.jsonl`, ...), one for the answers of every `UPLOAD_SECONDS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_text
from earthgpt_jax.evaluation import predictions_file
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.inference.processes import Process

UPLOAD_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartFiles:
    """The files of one evaluation.

    Attributes:
        out: the file that the parts are joined into.
        header: the header of every file.
    """

    out: Path
    header: Mapping[str, Any]

    def answered(self) -> dict[str, Prediction]:
        """Return the answers in all files, by question id.

        Raises:
            EarthGPTError: a file belongs to another evaluation, or two files answer a question differently.
        """
        found: dict[str, Prediction] = {}
        for path in (self.out, *self._parts()):
            for prediction in self._read(path):
                first = found.setdefault(prediction.id, prediction)
                if first != prediction:
                    raise EarthGPTError(
                        f"{path}: {prediction.id} has another answer than in another part of {self.out}; was the same "
                        "evaluation started twice? Delete one of the two files"
                    )
        return found

    def append_to(self, process: Process) -> TextIO | _PartSeries:
        """Open the part file of a process for appending, after removing an incomplete last line."""
        path = self.out.with_name(f"{self.out.stem}-{process.index}-of-{process.count}{self.out.suffix}")
        if isinstance(path, BucketPath):
            return _PartSeries(path, header=self._header_line())
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, self._read(path))
        return path.open("a", encoding="utf-8")

    def join(self, ids: Iterable[str]) -> None:
        """Write the answers to `out`, each once, in the order of `ids`, and delete the parts.

        Raises:
            EarthGPTError: an id has no answer.
        """
        found, ids = self.answered(), list(ids)
        missing = [name for name in ids if name not in found]
        if missing:
            raise EarthGPTError(
                f"{self.out}: {len(missing)} of {len(ids)} questions have no answer, the first is {missing[0]}; do all "
                "processes see the same folder? Run the same command again to answer the missing questions"
            )
        self._write(self.out, [found[name] for name in ids])
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.out.parent.glob(f"{self.out.stem}-*-of-*{self.out.suffix}"))

    def _read(self, path: Path) -> list[Prediction]:
        # A process that has just started, or was killed then, leaves a file with an incomplete header.
        if not path.exists() or self._header_line().encode().startswith(path.read_bytes()):
            return []
        saved, predictions = predictions_file.read(path)
        expected = json.loads(json.dumps(self.header))  # tuples become lists, as in the file
        differing = [
            f"{key} was {saved.get(key)!r}, is {expected.get(key)!r}"
            for key in sorted(saved.keys() | expected.keys())
            if saved.get(key) != expected.get(key)
        ]
        if differing:
            raise EarthGPTError(
                f"{path} holds answers of another evaluation: {'; '.join(differing)}. Choose another folder, or delete "
                "the file"
            )
        return predictions

    def _header_line(self) -> str:
        return predictions_file.header_line(self.header)

    def _write(self, path: Path, predictions: Iterable[Prediction]) -> None:
        write_text(path, self._header_line() + "".join(map(predictions_file.to_line, predictions)))


class _PartSeries(contextlib.AbstractContextManager):
    """Writes lines to numbered part files in a bucket, which are complete files with a header."""

    def __init__(self, path: BucketPath, *, header: str):
        self._path, self._header = path, header
        self._number = len(list(path.parent.glob(f"{path.stem}-*{path.suffix}")))  # written before it was stopped
        self._lines: list[str] = []
        self._uploaded = time.monotonic()

    def write(self, line: str) -> None:
        self._lines.append(line)

    def flush(self) -> None:
        """Upload the lines if the last upload was long enough ago."""
        if time.monotonic() - self._uploaded >= UPLOAD_SECONDS:
            self._upload()

    def __exit__(self, *_: object) -> None:
        self._upload()

    def _upload(self) -> None:
        if self._lines:
            path = self._path.with_name(f"{self._path.stem}-{self._number:05d}{self._path.suffix}")
            write_text(path, self._header + "".join(self._lines))
        self._number, self._lines, self._uploaded = self._number + 1, [], time.monotonic()
