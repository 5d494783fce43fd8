"""TPU slices by their cloud names: topology, memory and peak rates.

Rates and the memory of hosts are from docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}. A chip's share of its host's PCIe
link, and of the network between slices where those pages give none, is from jax-ml.github.io/scaling-book/tpus.
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
        device_kind: regex of JAX's name.
        hbm_gib: memory that a program can use, as the compiler reports when a program does not fit.
        bf16_tflops: peak compute rate.
        hbm_gb_per_second: memory bandwidth.
        link_gb_per_second: bandwidth of one link to a neighbour, in one direction.
        ring: the axes of a topology are rings if the lengths of all axes are multiples of this.
        dcn_gb_per_second: network bandwidth between slices.
        host_gb_per_second: bandwidth to host memory.
        hosts: chips of a virtual machine -> its memory in GB. A slice on one machine uses the first that has all its
            chips; a larger slice consists of machines with four chips.
        names_per_chip: 2 if the number in a slice's name counts TensorCores, of which a chip has two; otherwise 1.
        grids: number of chips in a slice -> topology.
    """

    kind: str
    device_kind: str
    hbm_gib: float
    bf16_tflops: float
    hbm_gb_per_second: float
    link_gb_per_second: float
    ring: int
    dcn_gb_per_second: float
    host_gb_per_second: float
    hosts: dict[int, int]
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
            kind="v5e", device_kind=r"TPU v5( lite|e)", hbm_gib=15.75, bf16_tflops=197, hbm_gb_per_second=819,
            link_gb_per_second=50, ring=16, dcn_gb_per_second=3.125, host_gb_per_second=15,
            hosts={4: 192, 8: 384}, names_per_chip=1,
            grids=_FLAT,
        ),
        Chip(
            kind="v6e", device_kind=r"TPU v6( lite|e)", hbm_gib=31.25, bf16_tflops=918, hbm_gb_per_second=1638,
            link_gb_per_second=100, ring=16, dcn_gb_per_second=12.5, host_gb_per_second=32,
            hosts={4: 720, 8: 1440}, names_per_chip=1,
            grids=_FLAT,
        ),
        Chip(
            kind="v5p", device_kind=r"TPU v5p?", hbm_gib=95.74, bf16_tflops=459, hbm_gb_per_second=2765,
            link_gb_per_second=100, ring=4, dcn_gb_per_second=6.25, host_gb_per_second=15,
            hosts={4: 448}, names_per_chip=2,
            grids=_CUBES,
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """The value of `--topology`: `count` slices of `chips` chips each."""

    name: str
    chip: Chip
    chips: int
    count: int

    @property
    def devices(self) -> int:
        """Number of chips in all slices."""
        return self.chips * self.count

    @property
    def chips_per_host(self) -> int:
        """Number of chips of each virtual machine; each runs one process."""
        return self.chips if self.chips in self.chip.hosts else min(self.chip.hosts)

    @property
    def ici_gb_per_second(self) -> float:
        """Peak bandwidth of a chip over all its links; on an axis that is no ring, the end chips have one link."""
        sides = [int(side) for side in self.chip.grids[self.chips].split("x")]
        ends = 2 if all(side % self.chip.ring == 0 for side in sides) else 1
        links = sum(ends for side in sides if side > 1)
        return links * self.chip.link_gb_per_second

    def same_generation(self) -> list[Slice]:
        """Return all single slices of this generation, smallest first."""
        return [parse(f"{self.chip.kind}-{chips * self.chip.names_per_chip}") for chips in sorted(self.chip.grids)]


def parse(name: str) -> Slice:
    """Parse a name: `v5e-8`, `v5p-128` (64 chips), or `2xv5e-256` (two slices).

    Raises:
        EarthGPTError: there is no such slice; the message lists all slices.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(v\d\w)-(\d+)", name)
    chip = CHIPS.get(match[2]) if match else None
    if match and chip:
        chips, rest = divmod(int(match[3]), chip.names_per_chip)
        if not rest and chips in chip.grids and int(match[1] or 1) > 0:
            return Slice(name=name, chip=chip, chips=chips, count=int(match[1] or 1))
    names = (f"{chip.kind}-{n * chip.names_per_chip}" for chip in CHIPS.values() for n in chip.grids)
    raise EarthGPTError(f"topology {name!r}: expected a slice, or several as 2xv5e-256. Slices: {', '.join(names)}.")


def chip_of(device_kind: str) -> Chip | None:
    """Return the TPU generation that JAX names `device_kind`; None if it is not known here."""
    return next((chip for chip in CHIPS.values() if re.fullmatch(chip.device_kind, device_kind)), None)


def compiler_is_available() -> bool:
    """Return whether the TPU compiler (package libtpu) is installed."""
    return importlib.util.find_spec("libtpu") is not None


def devices(slice_: Slice) -> Sequence[jax.Device]:
    """Return the devices of a slice, for compiling only. Needs the libtpu package, but no TPU."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # not a TPU VM: skip the metadata server
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # compiling needs no exclusive access to a chip
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{slice_.chip.kind}:{slice_.chip.grids[slice_.chips]}",
        num_slices=slice_.count,
    )
    return topology.devices
