"""Checkpoints of a run: the training state and its position in the data, without frozen parameters.

```
workdir/
  config.json              the resolved recipe
  schedule.txt             what an epoch of the packing schedule contains
  remat.json               the choice of `remat=auto`, and the devices it was made for
  checkpoints/STEP/
    state/                 step, trainable parameters, optimizer state
    extra/metadata         JSON: the run's metadata, and what `Checkpoints.save` adds
  metrics.jsonl  tb/       one line per step and per validation; TensorBoard events
  validation.json          the best and the last validation
  model/                   the finished model directory
```

A checkpoint identifies the frozen parameters by their fingerprint and the model they came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    EveryNSeconds,
    EveryNSteps,
    LatestN,
    PreservationContext,
    PreservationPolicy,
)
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo as PolicyCheckpointInfo

from earthgpt_jax import __version__
from earthgpt_jax.common.digests import fingerprint_json
from earthgpt_jax.common.errors import EarthGPTError, find_full_disk
from earthgpt_jax.common.typed import show
from earthgpt_jax.config import CheckpointConfig
from earthgpt_jax.training.checkpoint_stores import open_store
from earthgpt_jax.training.inspection import CHECKPOINT_FORMAT, check_metadata, metadata_digest, saved_format
from earthgpt_jax.training.state import State, leaves_by_path

# Commands that move a folder, by the scheme of its address.
_MOVE = {"": "mv", "gs": "gcloud storage mv", "s3": "aws s3 mv --recursive"}


class Checkpoints:
    """Save and restore the checkpoints of a work directory, on a disk or in a bucket (`checkpoint_stores`)."""

    def __init__(self, workdir: Path, config: CheckpointConfig) -> None:
        self._directory = (workdir / "checkpoints").absolute()
        self._protected = _Protected()
        self._store = open_store(self._directory, _preservation_policy(config, self._protected))

    def latest(self) -> int | None:
        """Return the step of the newest complete checkpoint, or None."""
        return max(self._store.steps(), default=None)

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are saved or being saved, in ascending order."""
        return self._store.steps()

    def protect(self, step: int) -> None:
        """Retain the checkpoint of `step` in addition to those that the config retains, instead of an earlier choice.

        Every process must choose the same step. The next save removes the earlier one.
        """
        self._protected.step = step

    def folder(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self._directory / str(step)

    def save(self, step: int, state: State, metadata: Mapping[str, Any]) -> None:
        """Start an asynchronous save; return when the state has been copied off the devices and may be donated.

        On CPU devices, return when it is saved. The arrays are written from where they are, and a step that ran at the
        same time would need memory for a second state.

        Args:
            metadata: plain JSON (data position, config, fingerprints). The date, versions, and the type, shape and
                checksum of every array are added.

        Raises:
            EarthGPTError: the disk is full; earlier checkpoints are intact.
        """
        extra = {
            **metadata,
            "format": CHECKPOINT_FORMAT,
            "step": step,
            "state_folder": self._store.state_folder,
            "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"earthgpt-jax": __version__, "jax": jax.__version__, "orbax-checkpoint": ocp.__version__},
            "arrays": _dtypes_and_shapes(state),
            "checksums": checksums(state, replicated=state.step.sharding),
        }
        extra["digest"] = metadata_digest(extra)
        with _explain_full_disk(self._directory):
            self._store.save(step, state, extra)
            if jax.default_backend() == "cpu":
                self._store.wait()

    def restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Return the state saved at `step` and its metadata.

        Args:
            like: state whose shapes, dtypes and shardings the restored arrays get.

        Raises:
            EarthGPTError: the checkpoint has another format; its arrays have other names, types or shapes than `like`;
                or a file is missing, truncated or changed.
        """
        try:
            extra = self._store.metadata(step)
        except EarthGPTError:  # for example a bucket that does not answer
            raise
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        self._check_compatible(step, extra, like)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            state = self._store.restore(step, target, extra)
        except (MemoryError, jax.errors.JaxRuntimeError, EarthGPTError):
            raise
        except Exception as error:  # Orbax, TensorStore and the file system raise many types
            raise self._damaged(step, _first_line(error)) from error
        expected, got = extra["checksums"], checksums(state, replicated=state.step.sharding)
        if wrong := [path for path in expected if got[path] != expected[path]]:
            raise self._damaged(step, f"{len(wrong)} of {len(got)} arrays have another checksum than saved: {wrong[0]}")
        return state, extra

    def wait(self) -> None:
        """Wait until all saves are on disk."""
        with _explain_full_disk(self._directory):
            self._store.wait()

    def close(self) -> None:
        """Wait for all saves and release the manager."""
        with _explain_full_disk(self._directory):
            self._store.close()

    def _check_compatible(self, step: int, extra: Mapping[str, Any], like: State) -> None:
        try:
            saved = saved_format(extra)
            if saved == CHECKPOINT_FORMAT:
                check_metadata(extra)
        except EarthGPTError as error:
            raise self._damaged(step, str(error)) from error
        if saved != CHECKPOINT_FORMAT:
            raise EarthGPTError(
                f"checkpoint {self.folder(step)}: expected checkpoint format {CHECKPOINT_FORMAT}, got {show(saved)}. "
                "Resume the run with the version of earthgpt-jax that started it, or start again in another --workdir."
            )
        expected = _dtypes_and_shapes(like)
        if different := [path for path, array in extra["arrays"].items() if expected.get(path) != array]:
            raise EarthGPTError(
                f"checkpoint {self.folder(step)}: expected the arrays of this config, got {len(different)} others "
                f"({', '.join(different[:3])}). Use the recipe that created it (config.json in the work directory), or "
                "another --workdir."
            )

    def _damaged(self, step: int, reason: str) -> EarthGPTError:
        earlier = [saved for saved in self._store.steps() if saved < step]
        origin = f"the checkpoint of step {max(earlier)}" if earlier else "the beginning (no earlier checkpoint)"
        target = self._directory.parent / f"damaged-{step}"
        move = _MOVE[getattr(self._directory, "scheme", "")]
        return EarthGPTError(
            f"checkpoint {self.folder(step)}: damaged ({reason}). It was not changed. To resume from {origin}, move it "
            f"away ({move} {self.folder(step)} {target}) and rerun the same command."
        )


@dataclasses.dataclass(kw_only=True)
class _Protected:
    """Preservation policy that keeps the checkpoint of one step, which may change between saves."""

    step: int | None = None

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


def _preservation_policy(config: CheckpointConfig, protected: _Protected) -> PreservationPolicy:
    """Keep the newest checkpoints and the protected one, and permanently those of the `keep_every` settings."""
    policies: list[PreservationPolicy] = [LatestN(config.keep), protected]
    if config.keep_every_steps:
        policies.append(EveryNSteps(config.keep_every_steps))
    if config.keep_every_hours:
        policies.append(EveryNSeconds(round(config.keep_every_hours * 3600)))
    return AnyPreservationPolicy(policies)


def _dtypes_and_shapes(state: State) -> dict[str, list]:
    return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves_by_path(state).items()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


@contextlib.contextmanager
def _explain_full_disk(directory: Path) -> Iterator[None]:
    """Turn a full disk, reported by whichever layer, into an EarthGPTError."""
    try:
        yield
    except Exception as error:
        if find_full_disk(error) is None:
            raise
        raise EarthGPTError(
            f"checkpoint in {directory}: the disk is full; earlier checkpoints are intact. Free some space and rerun "
            "the same command."
        ) from error


# ---------------------------------------------------------------------------------------------------------- checksums
#
# The storage layer detects a truncated file but not a changed byte. These checksums are computed on the devices, before
# saving and after restoring, so they cover everything in between.

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # bytes per element -> dtype of the same width


def checksums(tree: Any, *, replicated: Sharding) -> dict[str, int]:
    """Return a 32-bit checksum of each leaf by its path; it does not depend on the mesh or the sharding.

    Each element is mixed with its index, and the results are summed modulo 2**32. Integer sums do not depend on their
    order, and hence not on how an array is sharded. The mixing is a bijection, so a change in a single element always
    changes the checksum; changes in several elements almost certainly do.

    Args:
        tree: arrays with at most four bytes per element, on any devices.
        replicated: sharding of a value that is replicated over the devices of the arrays.
    """
    leaves = leaves_by_path(tree)
    sums = jax.device_get(_sums(list(leaves.values()), replicated=replicated))
    return dict(zip(leaves, map(int, sums), strict=True))


def fingerprint(tree: Any, *, replicated: Sharding) -> str:
    """Return a fingerprint of paths, dtypes, shapes and checksums; it does not depend on the mesh or the sharding."""
    leaves, sums = leaves_by_path(tree), checksums(tree, replicated=replicated)
    return fingerprint_json({path: [str(leaf.dtype), list(leaf.shape), sums[path]] for path, leaf in leaves.items()})


@functools.partial(jax.jit, static_argnames="replicated")
def _sums(leaves: list[jax.Array], *, replicated: Sharding) -> jax.Array:
    """Return u32[number of leaves]."""
    sums: list[jax.Array] = []
    for leaf in leaves:
        if sums:  # one leaf after the other, so that the temporary arrays of all do not exist at the same time
            leaf, sums[-1] = jax.lax.optimization_barrier((leaf, sums[-1]))
        sums.append(_sum(leaf))
    return jax.lax.with_sharding_constraint(jnp.stack(sums), replicated)


def _sum(x: jax.Array) -> jax.Array:
    """Return the checksum of an array; layer by layer for stacked parameters, whose leading axis is not sharded."""
    if x.ndim < 3:
        return _sum_from(x, jnp.uint32(0))
    stride = math.prod(x.shape[1:])

    def add(layer: jax.Array, total: jax.Array) -> jax.Array:
        return total + _sum_from(x[layer], layer.astype(jnp.uint32) * jnp.uint32(stride % 2**32))

    return jax.lax.fori_loop(0, x.shape[0], add, jnp.uint32(0))


def _sum_from(x: jax.Array, index: jax.Array) -> jax.Array:
    """Return the checksum of elements whose indices begin with `index`."""
    words = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    return jnp.sum(_mix(words + index * jnp.uint32(0x9E3779B9)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Apply MurmurHash3's 32-bit finalizer (A. Appleby, public domain), a bijection on 32-bit words."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
