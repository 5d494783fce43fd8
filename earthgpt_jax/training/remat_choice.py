"""`remat=auto` in a run: choose a policy at the first start, and use it again when the run is resumed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from jax.sharding import Mesh

from earthgpt_jax import distributed
from earthgpt_jax.common import files, typed
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.config import Config, Remat

_log = logging.getLogger(__name__)

DEFAULT = Remat.FULL  # where nobody chooses, or the memory of the devices is unknown, as on CPUs
_FILE = "remat.json"


class _Saved(TypedDict):
    remat: str
    devices: dict[str, Any]


def resolve(config: Config, workdir: Path, *, mesh: Mesh, choose: Callable[[Config], str] | None) -> Config:
    """Return `config` with a policy in the place of `auto`.

    A run that is resumed on the same mesh of the same devices uses the policy of its first start. The policy changes no
    result beyond rounding.

    Args:
        choose: returns the policy for a config; default: `DEFAULT`.
    """
    if config.remat != Remat.AUTO:
        return config
    policy = _saved(workdir, mesh) or (choose(config) if choose else DEFAULT)
    _log.info("remat: auto is %r", str(policy))
    distributed.check_consistent({"remat": str(policy)})
    return dataclasses.replace(config, remat=policy)


def save(config: Config, workdir: Path, *, mesh: Mesh) -> None:
    """Record the policy of a run and the devices that it was chosen for."""
    files.write_json(workdir / _FILE, {"remat": str(config.remat), "devices": _devices(mesh)})


def _saved(workdir: Path, mesh: Mesh) -> str | None:
    """Return the policy of an earlier start on the same mesh of the same devices."""
    path = workdir / _FILE
    if not path.exists():
        return None
    saved = typed.check(_Saved, parse_json(path.read_bytes(), where=str(path)), where=str(path))
    return saved["remat"] if saved["devices"] == _devices(mesh) else None


def _devices(mesh: Mesh) -> dict[str, Any]:
    return {"kind": mesh.devices.flat[0].device_kind, "mesh": dict(mesh.shape)}
