"""The processes of one run, on one host or on many: how they find each other, and whether they are of one mind."""

from __future__ import annotations

import contextlib
import json
import logging
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
_SHOWN = 12  # differences in one message, at most


def start(*, coordinator: str = "", processes: int = 0, process: int = -1, timeout: int = 300) -> None:
    """Joins the other processes of this run; to be called before anything touches a device.

    Without arguments JAX looks around: a TPU pod (TPU VM or GKE), SLURM's `srun`, Open MPI's `mpirun`, Kubernetes
    jobs (with the kubernetes package). Where there is none of these, this process is the only one.

    Args:
        coordinator: `HOST:PORT`, on the host of process 0, that every host can reach; "": JAX's finding.
        processes: how many there are; 1: this one is alone, whatever surrounds it; 0: JAX's finding.
        process: which of them this is, from 0; -1: JAX's finding.
        timeout: seconds to wait for the others.

    Raises:
        EarthGPTError: the arguments do not fit each other or what was found.
        RetryableError: the coordinator cannot be started or reached. (Where others do not come in time, JAX aborts the
            process with a message of its own.)
    """
    if coordinator and (processes < 1 or not 0 <= process < processes):
        raise EarthGPTError(
            f"coordinator {coordinator}: expected the number of processes and which one this is (0 to N-1) with it, "
            f"got processes={processes}, process={process}"
        )
    if not coordinator and process >= 0 and processes != 1:
        raise EarthGPTError(f"process {process}: expected a coordinator (HOST:PORT of process 0) with it")
    if processes == 1:
        return
    given = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    # With all three there is nothing to look for; SLURM's way would also hide all GPUs but one.
    words: dict[str, Any] = {**given, "cluster_detection_method": "deactivate"} if coordinator else {}
    try:
        jax.distributed.initialize(**words, initialization_timeout=timeout)
    except ValueError as error:
        if "must be defined" not in str(error) and "should be defined" not in str(error):
            raise EarthGPTError(_unfound(error)) from error
    except jax.errors.JaxRuntimeError as error:
        raise RetryableError(
            f"the coordinator {coordinator or '(process 0)'} was not started or not reached "
            f"({str(error).splitlines()[0]}). Is its port free, and open between the hosts?"
        ) from error
    except (RuntimeError, OSError) as error:
        if "before any JAX calls" in str(error):
            raise EarthGPTError(
                "JAX has computed in this process before, so it cannot look for others any more. Start in a fresh "
                "process, or with processes=1 for a run of this one alone."
            ) from error
        raise EarthGPTError(_unfound(error)) from error
    if processes and jax.process_count() != processes:
        raise EarthGPTError(
            f"expected {processes} processes, found {jax.process_count()}: on TPU pods, under srun and mpirun they are "
            "found by themselves; elsewhere give every process the coordinator, their number and which one it is"
        )


def _unfound(error: Exception) -> str:
    return (
        f"the other processes of this run were not found ({error}). Give the coordinator, the number of processes "
        "and which one this is; or processes=1 for a run on this host alone."
    )


def describe() -> str:
    """One line about the processes and their devices; "" where there is but one process."""
    if jax.process_count() == 1:
        return ""
    kind = jax.local_devices()[0].device_kind
    return (
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({kind})"
    )


def gather_texts(text: str) -> list[str]:
    """What every process gave, in their order; all of them must call it."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    heads = multihost_utils.process_allgather(np.asarray([jax.process_index(), len(raw)], np.int32))
    padded = np.zeros(max(1, heads[:, 1].max()), np.uint8)
    padded[: len(raw)] = raw
    rows = multihost_utils.process_allgather(padded)
    texts = {int(index): bytes(row[:length]).decode() for (index, length), row in zip(heads, rows, strict=True)}
    return [texts[index] for index in sorted(texts)]


@contextlib.contextmanager
def fail_together(doing: str) -> Iterator[None]:
    """What fails inside on one process fails on all, with its message; otherwise the others would wait for it forever.

    Nothing inside may itself wait for the other processes.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    known = isinstance(failure, EarthGPTError)
    said = gather_texts("" if failure is None else str(failure) if known else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    messages = {message: [i for i, other in enumerate(said) if other == message] for message in said if message}
    if messages:
        raise EarthGPTError(
            f"{doing} failed on " + "; on ".join(f"{_named(who)}: {message}" for message, who in messages.items())
        )


def check_consistent(facts: Mapping[str, Any]) -> None:
    """Refuses, on every process, to go on where their `facts` (plain JSON) differ; also waits for all of them.

    Raises:
        EarthGPTError: which process has what, for each fact that differs.
    """
    differing = inconsistencies([json.loads(each) for each in gather_texts(json.dumps(facts))])
    if differing:
        more = [f"and {len(differing) - _SHOWN} more"] if len(differing) > _SHOWN else []
        lines = "\n".join(f"  - {line}" for line in differing[:_SHOWN] + more)
        raise EarthGPTError(
            f"the {jax.process_count()} processes of this run differ, and would not train one model; start them with "
            f"the same command, code and data:\n{lines}"
        )


def inconsistencies(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each fact (nested ones by their path) that not all processes have alike, in order of their names."""
    flat = [dict(_flat(each)) for each in facts]
    names = sorted({name for each in flat for name in each})
    lines = []
    for name in names:
        having: dict[str, list[int]] = {}
        for process, each in enumerate(flat):
            having.setdefault(repr(each[name]) if name in each else "nothing", []).append(process)
        if len(having) > 1:
            lines.append(f"{name}: " + ", ".join(f"{value} on {_named(who)}" for value, who in having.items()))
    return lines


def code_version() -> dict[str, str]:
    """What computes: our version and a digest of our sources, and the versions of JAX."""
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


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _named(processes: Sequence[int]) -> str:
    """`process 3`, `processes 0-2, 5`."""
    runs: list[list[int]] = []
    for process in processes:
        if runs and process == runs[-1][-1] + 1:
            runs[-1].append(process)
        else:
            runs.append([process])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"process{'es' if len(processes) > 1 else ''} {text}"
