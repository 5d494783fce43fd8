"""Checkpoints of a run: trained state and data position every time, frozen weights once.

```
workdir/
  config.json              the resolved recipe
  frozen/                  model.safetensors of what the stage does not train, written once
  checkpoints/STEP/        Orbax: step, trained parameters, optimizer state; extra: data position, fingerprints
  metrics.jsonl  tb/       one line a logged step; TensorBoard
  model/                   the finished model directory
```
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from earthgpt_jax.config import CheckpointConfig
from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.training.step import State


class Checkpoints:
    """The newest complete checkpoints of a work directory; Orbax commits each one atomically."""

    def __init__(self, workdir: Path, config: CheckpointConfig):
        self._where = (workdir / "checkpoints").absolute()
        self._manager = ocp.CheckpointManager(
            self._where,
            options=ocp.CheckpointManagerOptions(max_to_keep=config.keep, enable_async_checkpointing=True),
        )

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, extra: dict[str, Any]) -> None:
        """Starts writing; `extra` is plain JSON (data position, fingerprints).

        Raises:
            EarthGPTError: the disk is full; earlier checkpoints are untouched.
        """
        with _explained(self._where):
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)),
            )

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """The state at `step`, in the shapes, dtypes and shardings of `like`, and its `extra`."""
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore()),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise EarthGPTError(
                f"checkpoint {self._where / str(step)}: its state does not fit this config "
                f"({str(error).strip().splitlines()[0]}). Use the recipe it was made with (config.json in the work "
                "directory), or another --workdir."
            ) from error
        return restored.state, restored.extra

    def wait(self) -> None:
        """Until what was started is on disk."""
        with _explained(self._where):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _explained(self._where):
            self._manager.close()


class _explained:
    """Turns a full disk, from whatever layer it surfaces, into a message."""

    def __init__(self, where: Path):
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None and _is_full_disk(error):
            raise EarthGPTError(
                f"checkpoint in {self._where}: the disk is full; nothing that was saved before is lost. "
                "Free some space and start the same command again."
            ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        text = str(error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
            return True
        error = error.__cause__ or error.__context__
    return False
