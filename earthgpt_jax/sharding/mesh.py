"""Meshes and where arrays live on them.

Three axes, slowest links first: `data` (rows of a batch; several slices lie along it), `fsdp` (rows too, and
every large weight in slices that are gathered when needed), `tensor` (heads, ffn channels and the vocabulary).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that a batch's rows are spread over
_DEFAULT = MeshConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a run's arrays live.

    Attributes:
        specs: parameter path -> its axes (`rules.specs`); whatever is in no table is whole on every device.
    """

    mesh: Mesh | AbstractMesh
    specs: Mapping[str, PartitionSpec] = dataclasses.field(default_factory=dict)

    @property
    def batch(self) -> NamedSharding:
        """Of arrays whose leading axis is rows."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    @property
    def whole(self) -> NamedSharding:
        """Of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, tree: Any) -> Any:
        """A sharding for every leaf of a tree of parameters, optimizer moments or both.

        A leaf lives where the parameter lives after which its innermost dict key is named; a dimension of one, as
        in the scales of an int8 kernel, is whole everywhere.
        """

        def sharding(path: tuple, leaf: Any) -> NamedSharding:
            keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            spec = self.specs.get(keys[-1], PartitionSpec()) if keys else PartitionSpec()
            sizes = zip(spec, leaf.shape, strict=False)
            return NamedSharding(self.mesh, PartitionSpec(*(axes if size > 1 else None for axes, size in sizes)))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def put(self, tree: Any) -> Any:
        """The tree's arrays, each where `shardings` says."""
        return jax.device_put(tree, self.shardings(tree))


def build_mesh(config: MeshConfig, *, rows: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (default: all).

    Args:
        rows: rows of a batch (of a microbatch). With the default config a process that is alone takes as many
            devices as divide them.

    Raises:
        EarthGPTError: the axes do not multiply to the number of devices, or do not divide the rows; all together.
    """
    devices = jax.devices() if devices is None else list(devices)
    if config == _DEFAULT and jax.process_count() == 1:
        devices = devices[: math.gcd(rows, len(devices))]
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    sizes = resolve(config, devices=len(devices), rows=rows, slices=slices)
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh((sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices)
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(sizes, devices)
    else:
        grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def resolve(config: MeshConfig, *, devices: int, rows: int, slices: int = 1) -> tuple[int, int, int]:
    """Sizes of the three axes, -1 filled in.

    Raises:
        EarthGPTError: they do not multiply to the devices, or do not divide over the rows or the slices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    filled = [devices // known if size == -1 else size for size in sizes]
    errors = []
    if math.prod(filled) != devices:
        errors.append(f"expected sizes that multiply to {devices} devices, got {dict(zip(AXES, sizes, strict=True))}")
    elif filled[0] % slices:
        errors.append(f"expected data to be a multiple of the {slices} slices, which lie along it, got {filled[0]}")
    elif rows % (filled[0] * filled[1]):
        errors.append(
            f"expected data * fsdp to divide the {rows} rows of a microbatch, got {filled[0]} * {filled[1]} "
            "(change data.batch_size, optim.microbatches or the mesh)"
        )
    if errors:
        raise EarthGPTError(f"mesh: {'; '.join(errors)}")
    return filled[0], filled[1], filled[2]


def data_parallel(rows: int) -> Placement:
    """Everything whole on every device; the rows split over them, see `build_mesh`."""
    return Placement(mesh=build_mesh(_DEFAULT, rows=rows))


@contextlib.contextmanager
def use(mesh: Mesh | AbstractMesh | None) -> Iterator[None]:
    """Inside a jitted function: `constrain` and kernels are about this mesh."""
    if mesh is None:
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x` with its axes laid over those of the mesh in use (`use`); unchanged where none is, and in a `shard_map`.

    The compiler spreads what the arguments' placement leaves open by guesses; this ends the guessing. A
    dimension that its axes do not divide stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(AXES) <= set(mesh.axis_names) or mesh.manual_axes:
        return x
    fitting = [
        axis
        if size % math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ())) == 0
        else None
        for axis, size in zip(axes, x.shape, strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*fitting)))


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """Which rows of a batch this process's devices hold, in order."""
    shards = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in shards if index for row in range(batch_size)[index[0]]})
