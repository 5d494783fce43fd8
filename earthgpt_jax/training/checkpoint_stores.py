"""Where checkpoints are kept: on a disk, written by Orbax, or in a bucket, written by JAX's array serialization.

Both write asynchronously, with TensorStore: every process writes its own shards and reads those that it needs. What
differs is how a checkpoint becomes complete. On a disk, Orbax renames a folder. A bucket has no renames, and Orbax
writes to `gs://` only; there a checkpoint is complete when it has its metadata, which is written last:

```
checkpoints/STEP/state-RUN/PATH/   an array: .zarray, and an object per shard (Zarr)
checkpoints/STEP/extra/metadata    JSON; deleted first when a checkpoint is deleted
owner.json                         the run that may complete checkpoints: the last that was started
```

A process that was believed dead can do no harm: RUN differs at each start, and only the owner completes a checkpoint.
"""

from __future__ import annotations

import datetime
import functools
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import jax
import orbax.checkpoint as ocp
from jax.experimental.array_serialization.serialization import GlobalAsyncCheckpointManager
from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy

from earthgpt_jax import distributed
from earthgpt_jax.common import files, typed
from earthgpt_jax.common.buckets import Action, BucketPath, explain_errors
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.training.inspection import METADATA, checkpoint_steps, unfinished_checkpoints
from earthgpt_jax.training.state import State, leaves_by_path

_log = logging.getLogger(__name__)
_OWNER_FILE = "owner.json"
_WAIT = 3600  # seconds that processes wait for each other's uploads
_ATTEMPTS = 8  # of each request of TensorStore, with waits that double from 1 to 32 s: about two minutes
# Codes with which TensorStore reports that a service refused or could not answer.
_SERVICE_ERRORS = re.compile("PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED")
_READ_GB = 4  # host memory for arrays that are being read


class CheckpointStore(Protocol):
    """Complete checkpoints by step. All processes call each method with the same arguments."""

    state_folder: str  # name of the folder of the state in that of a checkpoint

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are complete or being saved."""

    def save(self, step: int, state: State, metadata: Mapping[str, Any]) -> None:
        """Start a save and return when `state` may be donated; wait for an earlier save before."""

    def metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata of a checkpoint."""

    def restore(self, step: int, target: State, metadata: Mapping[str, Any]) -> State:
        """Return the state of a checkpoint in the shapes, dtypes and shardings of `target`."""

    def wait(self) -> None:
        """Wait until all saves are complete."""

    def close(self) -> None:
        """Wait for all saves and release resources."""


def open_store(directory: Path, policy: PreservationPolicy) -> CheckpointStore:
    """Open the folder of a run's checkpoints; unfinished ones are removed.

    Args:
        policy: which checkpoints a save preserves; it may change its mind between saves.
    """
    if jax.process_index() == 0:
        for path in unfinished_checkpoints(directory):
            _log.warning("%s: removed; its run stopped before this checkpoint was complete", path)
    return (BucketStore if isinstance(directory, BucketPath) else DiskStore)(directory, policy)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------- disk


class DiskStore:
    """Checkpoints on a disk, by Orbax's manager; each appears under its name when it is complete."""

    state_folder = "state"

    def __init__(self, directory: Path, policy: PreservationPolicy) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._manager = _Manager(directory, options=options)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, metadata: Mapping[str, Any]) -> None:
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(dict(metadata)))
        self._manager.save(step, args=items, force=True)

    def metadata(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore())).extra

    def restore(self, step: int, target: State, metadata: Mapping[str, Any]) -> State:
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))).state

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its preemption handling; `lifecycle.PreemptionSignal` handles preemption.

    Orbax would query JAX's preemption service from the thread that finishes an *earlier* save. The service takes the
    step of the latest query as this process's progress, so it could choose a stopping step that is already past.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


# ------------------------------------------------------------------------------------------------------------- bucket


class _Owner(TypedDict):
    """The run that may complete checkpoints."""

    run: str
    host: str
    started: str


class _Saved(NamedTuple):
    """A checkpoint, as preservation policies see it."""

    step: int
    time: datetime.datetime
    metrics: None = None


class BucketStore:
    """Checkpoints in a bucket; each is complete when it has its metadata."""

    def __init__(self, directory: BucketPath, policy: PreservationPolicy) -> None:
        self._directory, self._policy = directory, policy
        self._saver = GlobalAsyncCheckpointManager(timeout_secs=_WAIT)
        self._failed = False
        self._owner = directory.parent / _OWNER_FILE
        self._run = distributed.gather_texts(uuid.uuid4().hex[:12])[0]
        self.state_folder = f"state-{self._run}"
        with distributed.fail_together("opening the checkpoints"):
            if jax.process_index() == 0:
                started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                files.write_json(self._owner, {"run": self._run, "host": socket.gethostname(), "started": started})
                for path in unfinished_checkpoints(directory):
                    files.remove_folder(path)
            self._saved = [self._describe(step) for step in checkpoint_steps(directory)]

    def steps(self) -> list[int]:
        return [saved.step for saved in self._saved]

    def save(self, step: int, state: State, metadata: Mapping[str, Any]) -> None:
        self.wait()
        new = _Saved(step, datetime.datetime.fromisoformat(metadata["saved"]))
        self._saved = sorted({saved.step: saved for saved in (*self._saved, new)}.values())
        preserved = self._policy.should_preserve(self._saved, context=PreservationContext())
        removed = [saved.step for saved, keep in zip(self._saved, preserved, strict=True) if not keep]
        self._saved = [saved for saved in self._saved if saved.step not in removed]
        leaves = leaves_by_path(state)
        with explain_errors(self._directory / str(step), Action.WRITE):
            self._saver.serialize(
                list(leaves.values()),
                self._specs(step, self.state_folder, leaves),
                on_commit_callback=functools.partial(self._complete, step, metadata, removed),
            )

    def metadata(self, step: int) -> dict[str, Any]:
        content = (self._directory / str(step) / METADATA).read_bytes()
        try:
            return parse_json(content, where=METADATA)
        except EarthGPTError as error:  # `Checkpoints` reports the checkpoint as damaged
            raise ValueError(str(error)) from error

    def restore(self, step: int, target: State, metadata: Mapping[str, Any]) -> State:
        leaves = leaves_by_path(target)
        try:
            arrays = self._saver.deserialize(
                [leaf.sharding for leaf in leaves.values()],
                self._specs(step, metadata["state_folder"], leaves),
                dtypes=[leaf.dtype for leaf in leaves.values()],
                concurrent_gb=_READ_GB,
            )
        except Exception as error:
            if not _SERVICE_ERRORS.search(str(error)):
                raise  # missing or damaged objects
            with explain_errors(self._directory / str(step), Action.READ):
                raise
        return jax.tree.unflatten(jax.tree.structure(target), arrays)

    def wait(self) -> None:
        if self._failed:  # after a failure, the saver would wait for process 0 to complete the checkpoint
            return
        try:
            with explain_errors(self._directory, Action.WRITE):
                self._saver.wait_until_finished()
        except BaseException:
            self._failed = True
            raise

    def close(self) -> None:
        self.wait()

    def _complete(self, step: int, metadata: Mapping[str, Any], removed: Sequence[int]) -> None:
        """Write the metadata after all arrays, and remove old checkpoints; on process 0, in the saver's thread."""
        where = str(self._owner)
        owner = typed.check(_Owner, parse_json(self._owner.read_bytes(), where=where), where=where)
        if owner["run"] != self._run:
            raise EarthGPTError(
                f"{self._directory.parent}: another run, started on {owner['host']} at {owner['started']}, now uses "
                "this work directory. This one has stopped; use one --workdir per run."
            )
        files.write_bytes(self._directory / str(step) / METADATA, json.dumps(dict(metadata)).encode())
        for old in removed:
            (self._directory / str(old) / METADATA).unlink(missing_ok=True)
            files.remove_folder(self._directory / str(old))

    def _describe(self, step: int) -> _Saved:
        try:
            return _Saved(step, datetime.datetime.fromisoformat(self.metadata(step)["saved"]))
        except (EarthGPTError, ValueError, KeyError, TypeError):  # damaged; restoring it says so
            return _Saved(step, datetime.datetime.now(datetime.UTC))

    def _specs(self, step: int, state_folder: str, leaves: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the TensorStore spec of each array."""
        folder = self._directory / str(step) / state_folder
        return [
            {
                "driver": "zarr",
                "kvstore": _kvstore(folder / path),
                # The shards of an array are read once. Nothing in the cache changes, so do not ask for newer versions.
                "cache_pool": {"total_bytes_limit": 1 << 28},
                "recheck_cached_data": False,
                "recheck_cached_metadata": False,
            }
            for path in leaves
        ]


def _kvstore(path: BucketPath) -> dict[str, Any]:
    """Return TensorStore's spec of the objects in a folder."""
    key = "/".join(path.parts[2:]) + "/"
    if path.scheme == "gs":
        retries = {"gcs_request_retries": {"max_retries": _ATTEMPTS}}
        return {"driver": "gcs", "bucket": path.bucket, "path": key, **retries}
    options: dict[str, Any] = {"s3_request_retries": {"max_retries": _ATTEMPTS}}
    # Variables that Amazon's own programs read.
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        options["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # otherwise TensorStore reports that there are no files with credentials
        options["aws_credentials"] = {"type": "environment"}
    return {"driver": "s3", "bucket": path.bucket, "path": key, **options}
