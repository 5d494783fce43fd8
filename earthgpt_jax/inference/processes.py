"""The processes that share the questions of a run, and how they stay in step."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from orbax.checkpoint import multihost

from earthgpt_jax import distributed
from earthgpt_jax.common.errors import EarthGPTError

# No process waits in vain for this long: when one dies, JAX's coordinator ends the others.
_TIMEOUT_MS = 7 * 24 * 3600 * 1000  # a week
_barriers = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """One of the processes that share the questions of a run."""

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Process:
        """Return this process, as `jax.distributed` numbers it."""
        return cls(index=jax.process_index(), count=jax.process_count())

    @property
    def is_main(self) -> bool:
        """Whether this process joins the answers, uses them and prints."""
        return self.index == 0

    def wait(self, name: str) -> None:
        """Wait until every process has called this."""
        if jax.process_count() > 1:
            multihost.get_barrier_sync_fn()(key=f"inference/{next(_barriers)}/{name}", timeout_ms=_TIMEOUT_MS)

    def check_consistent(self, header: Mapping[str, Any]) -> None:
        """Check that all processes would give the same answers to the same questions.

        Raises:
            EarthGPTError: on every process, naming each entry of the header that differs.
        """
        differing = distributed.inconsistencies(
            [json.loads(text) for text in distributed.gather_texts(json.dumps(header))]
        )
        if differing:
            raise EarthGPTError(
                f"the {self.count} processes of this run differ ({'; '.join(differing)}); start all of them "
                "with the same command, and with folders that hold the same model and data"
            )

    @contextlib.contextmanager
    def synchronized(self, activity: str) -> Iterator[None]:
        """Run the block on every process, and leave it once all have finished, however long that takes.

        Args:
            activity: what the block does, for error messages.

        Raises:
            EarthGPTError: on every process, if the block fails on one.
        """
        with distributed.fail_together(activity):
            try:
                yield
            except Exception:
                self.wait(activity)
                raise
            self.wait(activity)
