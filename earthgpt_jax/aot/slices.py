"""TPU slices by the names they are rented under: topology, memory, peak rates.

Rates: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}; a chip's share of its host's PCIe link, and of the
network between slices where that page gives none: jax-ml.github.io/scaling-book/tpus.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax

from earthgpt_jax.common.errors import EarthGPTError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A TPU generation.

    Attributes:
        hbm_gib: what a program can use, as the compiler says when one does not fit.
        bf16_tflops: peak.
        hbm_gb_per_second: GB/s, as all rates.
        link_gb_per_second: of one link to a neighbour, one way.
        ring: axes close to rings where the lengths of all are multiples of this.
        dcn_gb_per_second: between slices.
        host_gb_per_second: to the host's memory.
        names_per_chip: the number in a slice's name counts TensorCores on some generations, two a chip.
        grids: chips of a slice -> topology.
    """

    kind: str
    hbm_gib: float
    bf16_tflops: float
    hbm_gb_per_second: float
    link_gb_per_second: float
    ring: int
    dcn_gb_per_second: float
    host_gb_per_second: float
    names_per_chip: int
    grids: dict[int, str]


_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"
}  # fmt: skip
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip(
            kind="v5e", hbm_gib=15.75, bf16_tflops=197, hbm_gb_per_second=819, link_gb_per_second=50, ring=16,
            dcn_gb_per_second=3.125, host_gb_per_second=15, names_per_chip=1, grids=_FLAT,
        ),
        Chip(
            kind="v6e", hbm_gib=31.25, bf16_tflops=918, hbm_gb_per_second=1638, link_gb_per_second=100, ring=16,
            dcn_gb_per_second=12.5, host_gb_per_second=32, names_per_chip=1, grids=_FLAT,
        ),
        Chip(
            kind="v5p", hbm_gib=95.74, bf16_tflops=459, hbm_gb_per_second=2765, link_gb_per_second=100, ring=4,
            dcn_gb_per_second=6.25, host_gb_per_second=15, names_per_chip=2, grids=_CUBES,
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """What `--topology` names: `count` slices of `chips` chips each."""

    name: str
    chip: Chip
    chips: int
    count: int

    @property
    def devices(self) -> int:
        return self.chips * self.count

    @property
    def ici_gb_per_second(self) -> float:
        """What a chip sends to its neighbours at best, over all its links; on an open axis the end has one only."""
        sides = [int(side) for side in self.chip.grids[self.chips].split("x")]
        ends = 2 if all(side % self.chip.ring == 0 for side in sides) else 1
        links = sum(ends for side in sides if side > 1)
        return links * self.chip.link_gb_per_second

    def same_generation(self) -> list[Slice]:
        """All single slices of this generation, smallest first."""
        return [parse(f"{self.chip.kind}-{chips * self.chip.names_per_chip}") for chips in sorted(self.chip.grids)]


def parse(name: str) -> Slice:
    """`v5e-8`, `v5p-128` (64 chips), or `2xv5e-256` (two slices).

    Raises:
        EarthGPTError: no slice of that name; the message lists those there are.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(v\d\w)-(\d+)", name)
    chip = CHIPS.get(found[2]) if found else None
    if found and chip:
        chips, rest = divmod(int(found[3]), chip.names_per_chip)
        if not rest and chips in chip.grids and int(found[1] or 1) > 0:
            return Slice(name=name, chip=chip, chips=chips, count=int(found[1] or 1))
    known = (f"{chip.kind}-{n * chip.names_per_chip}" for chip in CHIPS.values() for n in chip.grids)
    raise EarthGPTError(f"topology {name!r}: expected a slice, or several as 2xv5e-256. Slices: {', '.join(known)}.")


def compiler_is_there() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def devices(wanted: Slice) -> Sequence[jax.Device]:
    """Devices of the slice that programs can be compiled for, not run on; needs the libtpu package, no TPU."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this machine is no TPU VM: do not ask who it is
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # compiling needs no chip to itself
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{wanted.chip.kind}:{wanted.chip.grids[wanted.chips]}",
        num_slices=wanted.count,
    )
    return topology.devices
