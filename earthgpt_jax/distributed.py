"""The processes of one run, on one or several hosts: start-up, cross-process consistency checks, shared failures."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils

from earthgpt_jax import __version__
from earthgpt_jax.common.digests import fingerprint_stream
from earthgpt_jax.common.errors import EarthGPTError, RetryableError

_log = logging.getLogger(__name__)
_MAX_LISTED = 12  # differences that an error message lists


def start(*, coordinator: str = "", processes: int = 0, process: int = -1, timeout: int = 300) -> None:
    """Connect to the other processes of this run. Call it before anything uses a device.

    Without arguments, JAX detects the cluster: a TPU pod (TPU VM or GKE), SLURM's `srun`, Open MPI's `mpirun`, or a
    Kubernetes job (with the kubernetes package). If it detects none, this process is the only one.

    Args:
        coordinator: `HOST:PORT` of process 0, reachable from every host; "": auto-detect.
        processes: number of processes; 1 disables cluster detection; 0: auto-detect.
        process: index of this process, from 0; -1: auto-detect.
        timeout: seconds to wait for the other processes.

    Raises:
        EarthGPTError: the arguments contradict each other or the detected cluster.
        RetryableError: the coordinator cannot be started or reached. (If another process does not connect in time, JAX
            aborts this process with its own message.)
    """
    if coordinator and (processes < 1 or not 0 <= process < processes):
        raise EarthGPTError(
            f"coordinator {coordinator}: expected also the number of processes and the index of this one (0 to N-1), "
            f"got processes={processes}, process={process}"
        )
    if coordinator and not _is_address(coordinator):
        raise EarthGPTError(
            f"coordinator {coordinator!r}: expected HOST:PORT of process 0, such as 10.0.0.2:1234 or [::1]:1234"
        )
    if not coordinator and process >= 0 and processes != 1:
        raise EarthGPTError(f"process {process}: expected also a coordinator (HOST:PORT of process 0)")
    if processes == 1:
        return
    given = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    # All three are known, so disable detection; JAX's detection of SLURM would also hide all GPUs but one.
    options: dict[str, Any] = {**given, "cluster_detection_method": "deactivate"} if coordinator else {}
    try:
        jax.distributed.initialize(**options, initialization_timeout=timeout)
    except ValueError as error:
        if "must be defined" not in str(error) and "should be defined" not in str(error):
            raise EarthGPTError(_not_connected(error)) from error
    except jax.errors.JaxRuntimeError as error:
        raise RetryableError(
            f"the coordinator {coordinator or '(process 0)'} was not started or cannot be reached "
            f"({str(error).splitlines()[0]}). Check that its port is free, and open between the hosts."
        ) from error
    except (RuntimeError, OSError) as error:
        if "before any JAX calls" in str(error):
            raise EarthGPTError(
                "JAX has already been used in this process, so it cannot connect to others. Start a fresh process, or "
                "pass processes=1 to run this process alone."
            ) from error
        raise EarthGPTError(_not_connected(error)) from error
    if processes and jax.process_count() != processes:
        raise EarthGPTError(
            f"expected {processes} processes, found {jax.process_count()}: on TPU pods, under srun and mpirun they are "
            "detected automatically; otherwise give every process the coordinator, the number of processes, its index"
        )


def _is_address(text: str) -> bool:
    """Return whether `text` is HOST:PORT, with a host name, an IPv4 address or an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    named = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.%]+\]", host)
    return bool(named) and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16


def _not_connected(error: Exception) -> str:
    return (
        f"cannot connect to the other processes of this run ({error}). Give the coordinator, the number of processes "
        "and the index of this one; or processes=1 to run on this host alone."
    )


def describe() -> str:
    """Return one line about this process and its devices, or "" if it is the only process."""
    if jax.process_count() == 1:
        return ""
    kind = jax.local_devices()[0].device_kind
    return (
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({kind})"
    )


def gather_texts(text: str) -> list[str]:
    """Return the `text` of every process, in the order of their indices. All processes must call it."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    headers = multihost_utils.process_allgather(np.asarray([jax.process_index(), len(raw)], np.int32))
    padded = np.zeros(max(1, headers[:, 1].max()), np.uint8)
    padded[: len(raw)] = raw
    rows = multihost_utils.process_allgather(padded)
    texts = {int(index): bytes(row[:length]).decode() for (index, length), row in zip(headers, rows, strict=True)}
    return [texts[index] for index in sorted(texts)]


@contextlib.contextmanager
def fail_together(activity: str) -> Iterator[None]:
    """Run a block that fails on all processes if it fails on one, so that the others do not wait for it forever.

    The block itself must not wait for other processes.

    Args:
        activity: what the block does, for the message, for example "reading the config".

    Raises:
        EarthGPTError: the block failed on another process; the message says where and why. On the process on which it
            failed, its own exception is raised.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    for_user = isinstance(failure, EarthGPTError)
    texts = gather_texts(
        "" if failure is None else str(failure) if for_user else f"{type(failure).__name__}: {failure}"
    )
    if failure is not None:
        raise failure
    messages = {message: [i for i, other in enumerate(texts) if other == message] for message in texts if message}
    if messages:
        raise EarthGPTError(
            f"{activity} failed on "
            + "; on ".join(f"{_process_names(indices)}: {message}" for message, indices in messages.items())
        )


def check_consistent(facts: Mapping[str, Any]) -> None:
    """Check that all processes have the same `facts` (plain JSON values). Also a barrier: waits for all processes.

    Raises:
        EarthGPTError: on every process; lists each fact that differs, and which process has which value.
    """
    differing = inconsistencies([json.loads(text) for text in gather_texts(json.dumps(facts))])
    if differing:
        more = [f"and {len(differing) - _MAX_LISTED} more"] if len(differing) > _MAX_LISTED else []
        lines = "\n".join(f"  - {line}" for line in differing[:_MAX_LISTED] + more)
        raise EarthGPTError(
            f"the {jax.process_count()} processes of this run are inconsistent and would not train one model; start "
            f"them with the same command, code and data:\n{lines}"
        )


def inconsistencies(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per fact that differs between processes, sorted by name; nested facts are named by their path."""
    flat = [dict(_flatten(values)) for values in facts]
    names = sorted({name for values in flat for name in values})
    lines = []
    for name in names:
        by_value: dict[str, list[int]] = {}
        for process, values in enumerate(flat):
            by_value.setdefault(repr(values[name]) if name in values else "nothing", []).append(process)
        if len(by_value) > 1:
            parts = [f"{value} on {_process_names(indices)}" for value, indices in by_value.items()]
            lines.append(f"{name}: {', '.join(parts)}")
    return lines


def code_version() -> dict[str, str]:
    """Return the versions of this package and of JAX, and a fingerprint of the package's source files."""
    root = Path(__file__).parent
    sources = (
        path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        for path in sorted(root.rglob("*.py"))
    )
    return {
        "earthgpt-jax": __version__,
        "sources": fingerprint_stream(sources),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _process_names(processes: Sequence[int]) -> str:
    """Return `process 3` or `processes 0-2, 5`, of increasing indices."""
    runs: list[list[int]] = []
    for process in processes:
        if runs and process == runs[-1][-1] + 1:
            runs[-1].append(process)
        else:
            runs.append([process])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"process{'es' if len(processes) > 1 else ''} {text}"
