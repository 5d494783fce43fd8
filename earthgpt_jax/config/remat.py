"""Rematerialization policies as text: what the forward pass of the LLM's blocks keeps for the backward pass.

A policy is a member of `Remat`, or the names of the outputs to keep:

    o,down                  keep the outputs of `o` and `down` in every layer
    o,down,gate:30          and that of `gate` in 30 of the layers
    o,down,q@host           and that of `q` in host memory
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import re

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config.model_schema import LINEARS

CONTEXT = "context"  # the output of attention
KEPT = (*LINEARS, CONTEXT)
_ENTRY = re.compile(r"(?P<name>[a-z]+)(:(?P<layers>\d+)|(?P<host>@host))?")


class Remat(enum.StrEnum):
    """Rematerialization policies that have a name of their own.

    auto: chosen when a run starts, see `training.remat_choice`. none: JAX's default, everything that a gradient needs.
    minimal: the outputs of the seven linear layers and of attention, so that no matrix product is repeated.
    attention: the same without `gate` and `up`. full: the block's input only. offload: what `attention` keeps, in host
    memory.
    """

    AUTO = "auto"
    NONE = "none"
    MINIMAL = "minimal"
    ATTENTION = "attention"
    FULL = "full"
    OFFLOAD = "offload"


_ATTENTION = ("q", "k", "v", CONTEXT, "o", "down")
_NAMES = {Remat.MINIMAL: KEPT, Remat.ATTENTION: _ATTENTION, Remat.FULL: (), Remat.OFFLOAD: _ATTENTION}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Consecutive layers that keep the same.

    Attributes:
        layers: number of layers.
        names: outputs that each of them keeps on the device.
        offloaded: outputs that each of them keeps in host memory.
    """

    layers: int
    names: tuple[str, ...]
    offloaded: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What the layers keep.

    Attributes:
        layers: name -> number of layers that keep this output on the device; None: all. The last layers keep the most:
            their backward pass comes first, when the most memory is in use.
        offloaded: outputs that all layers keep in host memory.
    """

    layers: dict[str, int | None]
    offloaded: tuple[str, ...] = ()

    def runs(self, depth: int) -> list[Run]:
        """Return the runs of an LLM of `depth` layers, first layer first.

        Raises:
            EarthGPTError: a number of layers exceeds the depth.
        """
        counts = {name: depth if count is None else count for name, count in self.layers.items()}
        for name, count in counts.items():
            if count > depth:
                raise EarthGPTError(f"remat: {name}: expected at most {depth} layers, as the LLM has, got {count}")
        bounds = sorted({0, depth, *(depth - count for count in counts.values())})
        return [
            Run(
                layers=stop - start,
                names=tuple(name for name, count in counts.items() if depth - count <= start),
                offloaded=self.offloaded,
            )
            for start, stop in itertools.pairwise(bounds)
        ]

    def __str__(self) -> str:
        names = [name if count is None else f"{name}:{count}" for name, count in self.layers.items()]
        return ",".join([*names, *(f"{name}@host" for name in self.offloaded)]) or Remat.FULL.value


def kept(policy: str) -> Kept:
    """Return what a policy keeps, except for `none` and `auto`, which cannot be listed.

    Raises:
        EarthGPTError: the text is no policy.
    """
    if policy == Remat.OFFLOAD:
        return Kept(layers={}, offloaded=_ATTENTION)
    if policy in _NAMES:
        return Kept(layers=dict.fromkeys(_NAMES[Remat(policy)]))
    entries = [_ENTRY.fullmatch(entry) for entry in policy.split(",")]
    names = [entry["name"] for entry in entries if entry]
    if len(names) < len(entries) or len(set(names)) < len(names) or not set(names) <= set(KEPT):
        raise EarthGPTError(
            f"remat: expected one of {', '.join(Remat)}, or names of {', '.join(KEPT)} such as 'o,down,gate:30,q@host' "
            f"(gate in 30 layers, q in host memory), got {policy!r}"
        )
    return Kept(
        layers={
            entry["name"]: int(entry["layers"]) if entry["layers"] else None
            for entry in entries
            if entry and not entry["host"]
        },
        offloaded=tuple(entry["name"] for entry in entries if entry and entry["host"]),
    )


def policy_errors(policy: str, *, depth: int) -> list[str]:
    """Return what is wrong with a policy for an LLM of `depth` layers."""
    if policy in (Remat.AUTO, Remat.NONE):
        return []
    try:
        kept(policy).runs(depth)
    except EarthGPTError as error:
        return [str(error)]
    return []
