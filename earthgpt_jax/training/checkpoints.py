"""Checkpoints of a run: what it trains and where it is in its data, never what is frozen.

```
workdir/
  config.json              the resolved recipe
  schedule.txt             what an epoch holds
  checkpoints/STEP/
    state/                 step, trained parameters, optimizer state (Orbax: OCDBT, Zarr)
    extra/metadata         JSON: what `Checkpoints.save` adds to what the run says of itself
  metrics.jsonl  tb/       one line a step; TensorBoard
  model/                   the finished model directory
```

Frozen weights are in none of them: a checkpoint names their fingerprint and where they are from.
"""

from __future__ import annotations

import datetime
import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSeconds,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from earthgpt_jax import __version__
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import CheckpointConfig
from earthgpt_jax.training.checksums import checksums, named
from earthgpt_jax.training.inspection import unfinished
from earthgpt_jax.training.step import State

_log = logging.getLogger(__name__)


class Checkpoints:
    """The complete checkpoints of a work directory. Orbax writes each beside its place and renames it into it."""

    def __init__(self, workdir: Path, config: CheckpointConfig):
        self._where = (workdir / "checkpoints").absolute()
        for torn in unfinished(self._where):
            _log.warning("%s: not finished when its run stopped; removed, nothing restores it", torn)
        self._manager = _Manager(
            self._where,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_kept(config), enable_async_checkpointing=True, cleanup_tmp_directories=True
            ),
        )

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def folder(self, step: int) -> Path:
        """Of the checkpoint of `step`."""
        return self._where / str(step)

    def save(self, step: int, state: State, extra: Mapping[str, Any]) -> None:
        """Starts writing; returns when the state is copied off the devices, which may then change it.

        Args:
            extra: plain JSON (data position, config, fingerprints); date, versions, and each array's type, shape and
                checksum are added.

        Raises:
            EarthGPTError: the disk is full; earlier checkpoints are untouched.
        """
        said = {
            **extra,
            "step": step,
            "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"earthgpt-jax": __version__, "jax": jax.__version__, "orbax-checkpoint": ocp.__version__},
            "arrays": _arrays(state),
            "checksums": checksums(state, whole=state.step.sharding),
        }
        with _explained(self._where):
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(said)),
                force=True,
            )  # fmt: skip

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """The state at `step`, in the shapes, dtypes and shardings of `like`, and its `extra`.

        Raises:
            EarthGPTError: arrays of other names, types or shapes; a file is missing, truncated or changed.
        """
        try:
            extra = self._manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore())).extra
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        here = _arrays(like)
        if other := [path for path, array in extra.get("arrays", here).items() if here.get(path) != array]:
            raise EarthGPTError(
                f"checkpoint {self.folder(step)}: expected the arrays of this config, got {len(other)} others "
                f"({', '.join(other[:3])}). Use the recipe it was made with (config.json in the work directory), or "
                "another --workdir."
            )
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))).state
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # of Orbax, TensorStore and the file system, of many types
            raise self._damaged(step, _first_line(error)) from error
        expected = extra.get("checksums", {})  # those before them have none
        found = checksums(state, whole=state.step.sharding) if expected else {}
        if wrong := [path for path in expected if found[path] != expected[path]]:
            raise self._damaged(step, f"{len(wrong)} of {len(found)} arrays are not what was saved: {wrong[0]}")
        return state, extra

    def _damaged(self, step: int, what: str) -> EarthGPTError:
        before = [known for known in self._manager.all_steps() if known < step]
        then = f"the one of step {max(before)}" if before else "the start, since there is no earlier one"
        aside = self._where.parent / f"damaged-{step}"
        return EarthGPTError(
            f"checkpoint {self.folder(step)}: damaged ({what}). It was left as it is. To go on from {then}, "
            f"move it out of the way (mv {self.folder(step)} {aside}) and start the same command again."
        )

    def wait(self) -> None:
        """Until what was started is on disk."""
        with _explained(self._where):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _explained(self._where):
            self._manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves preemption to `preemption.Notice`.

    Its own would ask the runtime from the thread that finishes an *earlier* step, and the runtime takes the number
    in the last question for where this process is: the step that all are to stop at could be one already done.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _kept(config: CheckpointConfig) -> PreservationPolicy:
    """The newest ones; and of the others one each so many steps and each so many hours, for good."""
    policies: list[PreservationPolicy] = [LatestN(config.keep)]
    if config.keep_every_steps:
        policies.append(EveryNSteps(config.keep_every_steps))
    if config.keep_every_hours:
        policies.append(EveryNSeconds(round(config.keep_every_hours * 3600)))
    return AnyPreservationPolicy(policies)


def _arrays(state: State) -> dict[str, list]:
    """Path -> type and shape."""
    return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in named(state).items()}


def _first_line(error: Exception) -> str:
    """What an error says, in one short line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"


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
