"""An evaluation's files: a part for each process while it runs, one file when all is answered.

`predictions.jsonl` is written as `predictions-0-of-2.jsonl`, `predictions-1-of-2.jsonl`, a line an answer, and joined
by id. Whatever parts are there count, of any number of processes, so an evaluation may go on with another number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
from orbax.checkpoint import multihost

from earthgpt_jax import distributed
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import write_text
from earthgpt_jax.evaluation import predictions as predictions_lib
from earthgpt_jax.evaluation.predictions import Prediction

_A_WEEK = 7 * 24 * 3600 * 1000  # ms; a process that dies ends the others, so nobody waits in vain
_barriers = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """One of several that share the work."""

    index: int = 0
    count: int = 1

    @classmethod
    def this(cls) -> Process:
        """As `jax.distributed` has it."""
        return cls(index=jax.process_index(), count=jax.process_count())

    @property
    def leads(self) -> bool:
        """Whether this is the one that joins, scores and speaks."""
        return self.index == 0

    def wait(self, what: str) -> None:
        """Until all are here."""
        if jax.process_count() > 1:
            multihost.get_barrier_sync_fn()(key=f"evaluation/{next(_barriers)}/{what}", timeout_ms=_A_WEEK)

    def agree(self, header: Mapping[str, Any]) -> None:
        """Refuses, on all of them, to go on where they would answer something else, or differently."""
        differing = distributed.inconsistencies(
            [json.loads(text) for text in distributed.gather_texts(json.dumps(header))]
        )
        if differing:
            raise EarthGPTError(
                f"the {self.count} processes of this evaluation differ ({'; '.join(differing)}); give all of them the "
                "same command, and folders that hold the same model and data"
            )

    @contextlib.contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """Goes on when all processes are through with what is inside, however long one takes.

        Raises:
            EarthGPTError: on all of them, where it failed on one.
        """
        with distributed.fail_together(doing):
            try:
                yield
            except Exception:
                self.wait(doing)
                raise
            self.wait(doing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one evaluation.

    Attributes:
        out: what they become.
        header: of each of them.
    """

    out: Path
    header: Mapping[str, Any]

    def answered(self) -> dict[str, Prediction]:
        """What is in any of the files, by id.

        Raises:
            EarthGPTError: a file is of another evaluation, or two files answer a question differently.
        """
        found: dict[str, Prediction] = {}
        for path in (self.out, *self._parts()):
            for prediction in self._read(path):
                first = found.setdefault(prediction.id, prediction)
                if first != prediction:
                    raise EarthGPTError(
                        f"{path}: {prediction.id} has another answer than in another part of {self.out}; "
                        "was the same evaluation started twice? Delete one of the two files."
                    )
        return found

    def append_to(self, process: Process) -> TextIO:
        """This process's part, cleared of a line that a kill cut off."""
        path = self.out.with_name(f"{self.out.stem}-{process.index}-of-{process.count}{self.out.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, self._read(path))
        return path.open("a", encoding="utf-8")

    def join(self, ids: Iterable[str]) -> None:
        """Parts into `out`, each id once, in the ids' order.

        Raises:
            EarthGPTError: an id has no answer.
        """
        found, ids = self.answered(), list(ids)
        missing = [name for name in ids if name not in found]
        if missing:
            raise EarthGPTError(
                f"{self.out}: {len(missing)} of {len(ids)} questions have no answer, the first is {missing[0]}; "
                "do all processes see the same folder? The same command answers what is missing."
            )
        self._write(self.out, [found[name] for name in ids])
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self.out.parent.glob(f"{self.out.stem}-*-of-*{self.out.suffix}"))

    def _read(self, path: Path) -> list[Prediction]:
        # A file without a whole header is of a process that has just begun, or was killed then.
        if not path.exists() or self._first().encode().startswith(path.read_bytes()):
            return []
        saved, answered = predictions_lib.read(path)
        wanted = json.loads(self._first())["header"]  # a tuple comes back as a list
        differing = [
            f"{key} was {saved.get(key)!r}, is {wanted.get(key)!r}"
            for key in sorted(saved.keys() | wanted.keys())
            if saved.get(key) != wanted.get(key)
        ]
        if differing:
            raise EarthGPTError(
                f"{path} holds answers of another evaluation: {'; '.join(differing)}. Name another folder, or delete it"
            )
        return answered

    def _first(self) -> str:
        return json.dumps({"header": dict(self.header)}) + "\n"

    def _write(self, path: Path, predictions: Iterable[Prediction]) -> None:
        write_text(path, self._first() + "".join(map(predictions_lib.to_line, predictions)))
