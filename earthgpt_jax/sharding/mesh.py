"""Device meshes, and the placement of arrays on them.

A mesh has three axes, from the slowest links to the fastest: `data` shards the batch (several slices lie along it),
`fsdp` shards the batch and every large parameter, which is gathered where it is used, and `tensor` shards heads, FFN
channels and the vocabulary.
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
BATCH_AXES = ("data", "fsdp")  # shard the leading dimension of a batch
_DEFAULT = MeshConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """How the arrays of a run are placed on a mesh.

    Attributes:
        mesh: the mesh.
        specs: parameter path -> PartitionSpec (`rules.specs`); arrays that are not listed are replicated.
    """

    mesh: Mesh | AbstractMesh
    specs: Mapping[str, PartitionSpec] = dataclasses.field(default_factory=dict)

    @property
    def batch(self) -> NamedSharding:
        """Sharding of arrays whose leading dimension is the batch."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of arrays that every device holds completely."""
        return NamedSharding(self.mesh, PartitionSpec())

    def shardings(self, tree: Any) -> Any:
        """Return a tree with the sharding of every leaf, for a tree of parameters, optimizer moments or both.

        A leaf is placed like the parameter whose path is its innermost dict key. A dimension of size one, as in the
        scales of an int8 kernel, is replicated.
        """

        def sharding(path: tuple, leaf: Any) -> NamedSharding:
            keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            spec = self.specs.get(keys[-1], PartitionSpec()) if keys else PartitionSpec()
            sizes = zip(spec, leaf.shape, strict=False)
            return NamedSharding(self.mesh, PartitionSpec(*(axes if size > 1 else None for axes, size in sizes)))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def put(self, tree: Any) -> Any:
        """Return the tree with each array placed as in `shardings`."""
        return jax.device_put(tree, self.shardings(tree))


def build_mesh(config: MeshConfig, *, rows: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of `config`.

    Args:
        rows: packed sequences per microbatch. With the default config, a single process uses the largest number of its
            devices that divides them.
        devices: devices to use; all by default.

    Raises:
        EarthGPTError: the axis sizes do not multiply to the number of devices, or `data * fsdp` does not divide `rows`.
    """
    devices = jax.devices() if devices is None else list(devices)
    if config == _DEFAULT and jax.process_count() == 1:
        devices = devices[: math.gcd(rows, len(devices))]
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    sizes = axis_sizes(config, devices=len(devices), rows=rows, slices=slices)
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh((sizes[0] // slices, *sizes[1:]), (slices, 1, 1), devices)
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(sizes, devices)
    else:
        grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(config: MeshConfig, *, devices: int, rows: int, slices: int = 1) -> tuple[int, int, int]:
    """Return the sizes of the axes (data, fsdp, tensor), with -1 replaced by the devices that remain.

    Args:
        devices: number of devices.
        rows: packed sequences per microbatch.
        slices: number of TPU slices.

    Raises:
        EarthGPTError: the sizes do not multiply to `devices`, `data` is not a multiple of `slices`, or `data * fsdp`
            does not divide `rows`.
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
            f"expected data * fsdp to divide the {rows} packed sequences of a microbatch, got "
            f"{filled[0]} * {filled[1]} (change data.batch_size, optim.microbatches or the mesh)"
        )
    if errors:
        raise EarthGPTError(f"mesh: {'; '.join(errors)}")
    return filled[0], filled[1], filled[2]


def data_parallel(rows: int) -> Placement:
    """Return a placement with replicated parameters and a batch that is sharded over the devices; see `build_mesh`."""
    return Placement(mesh=build_mesh(_DEFAULT, rows=rows))


@contextlib.contextmanager
def use_mesh(mesh: Mesh | AbstractMesh | None) -> Iterator[None]:
    """Set the mesh that `constrain` and kernels refer to inside a jitted function; None: no mesh."""
    if mesh is None:
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Constrain the sharding of `x` on the current mesh (`use_mesh`); without a mesh, and in `shard_map`, return `x`.

    Constraints are needed where the shardings of the arguments do not determine those of intermediate arrays, which the
    compiler would otherwise guess. A dimension that its axes do not divide is replicated.

    Args:
        axes: mesh axis or axes of each dimension of `x`; None: replicated. Missing ones count as None.
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
    """Return the indices of the batch that are on the devices of this process, in increasing order."""
    shards = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in shards if index for row in range(batch_size)[index[0]]})
