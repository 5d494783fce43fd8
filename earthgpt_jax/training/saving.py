"""When a run saves: every so many steps, at its end, and where it is told to stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earthgpt_jax.common.errors import RunStopped
from earthgpt_jax.training.checkpoints import Checkpoints
from earthgpt_jax.training.preemption import PreemptionSignal
from earthgpt_jax.training.step import State


class CheckpointScheduler:
    """Asked once behind every step, with that step's number, whether it is `due`; called where it is.

    Args:
        every: steps between checkpoints.
        last: the run's last step.
        about: what every checkpoint says of the run; plain JSON.
    """

    def __init__(
        self, checkpoints: Checkpoints, *, every: int, last: int, notice: PreemptionSignal, about: Mapping[str, Any]
    ) -> None:
        self._checkpoints, self._notice, self._about = checkpoints, notice, dict(about)
        self._every, self._last, self._told = every, last, False

    def due(self, step: int) -> bool:
        """Whether the state behind `step` steps is to be saved; the same answer on every process."""
        self._told = self._notice.reached(step)
        return self._told or step % self._every == 0 or step == self._last

    def __call__(self, step: int, state: State) -> None:
        """Saves it.

        Raises:
            RunStopped: the run was told to stop, and this step is on disk.
        """
        self._checkpoints.save(step, state, self._about | {"data_position": step})
        if self._told:
            self._checkpoints.wait()
            raise RunStopped(
                f"stopped ({self._notice.because()}): step {step} of {self._last} is saved in "
                f"{self._checkpoints.folder(step)}. The same command goes on from there.",
                status=self._notice.status,
            )
