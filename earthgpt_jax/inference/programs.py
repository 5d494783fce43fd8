"""The functions of `inference.decode`, compiled for a model and a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from earthgpt_jax.config import ModelConfig
from earthgpt_jax.inference import decode
from earthgpt_jax.inference.decode import (
    DecodeState,
    ImagePrefix,
    NewRequests,
    RefillThreshold,
    StateShape,
    StopCondition,
)
from earthgpt_jax.inference.sampling import Sampling
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.ops.kv_cache import Cache
from earthgpt_jax.params import Params, merge_module
from earthgpt_jax.sharding import mesh as mesh_lib
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import AXES, BATCH_AXES, Placement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled functions; their arrays are those of all device groups together.

    Attributes:
        init: `() -> (prefixes, state)`, see `decode.init`.
        encode: `(params, images u8[E, S, S, 3]) -> visual tokens [E, P, D]`.
        prefill: `(params, prefixes, visual_tokens, index) -> prefixes`, see `decode.prefill`.
        insert: `(params, prefixes, state, NewRequests) -> state`, see `decode.insert`.
        generate: `(params, prefixes, state, RefillThreshold) -> state`, see `decode.generate`.
        placement: shardings of the parameters, and of arrays with a leading slot axis (`batch`).
        images: sharding of the images to encode.
        groups: number of device groups.
    """

    init: Callable[[], tuple[Cache, DecodeState]]
    encode: Callable[..., jax.Array]
    prefill: Callable[..., Cache]
    insert: Callable[..., DecodeState]
    generate: Callable[..., DecodeState]
    placement: Placement
    images: NamedSharding
    groups: int


@functools.lru_cache(maxsize=16)
def placement(config: ModelConfig, mesh: Mesh) -> Placement:
    """Return the shardings of a model's parameters.

    Raises:
        EarthGPTError: the mesh does not divide the model.
    """
    return rules.placement(config, earthgpt.abstract(config)[1], mesh=mesh)


@functools.lru_cache(maxsize=16)
def _param_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    return placement(config, mesh).shardings(earthgpt.abstract(config)[1])


@functools.lru_cache(maxsize=16)
def _encoder(graphdef: nnx.GraphDef, config: ModelConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    """Return the compiled encoder: images to visual tokens.

    It is cached apart from the other programs, because it takes longest to compile and does not depend on the shape of
    the decode state. Every device, also along `tensor`, encodes its own images with replicated encoders, which are
    small.
    """
    place = placement(config, mesh)

    def encode(params: Params, images: jax.Array) -> jax.Array:
        model: EarthGPT = merge_module(graphdef, params)
        return model.project(model.encode(images))

    replicated = ("vit/", "convnext/", "perception/", "projector/")
    specs = {path: P() if path.startswith(replicated) else spec for path, spec in place.specs.items()}
    mapped = jax.shard_map(encode, mesh=mesh, in_specs=(specs, P(AXES)), out_specs=P(AXES), check_vma=False)
    images = NamedSharding(mesh, P(AXES))
    return jax.jit(mapped, in_shardings=(_param_shardings(config, mesh), images), out_shardings=place.batch)


@functools.lru_cache(maxsize=16)
def build_programs(
    graphdef: nnx.GraphDef,
    *,
    config: ModelConfig,
    prefix: ImagePrefix,
    shape: StateShape,
    stop: StopCondition,
    sampling: Sampling,
    mesh: Mesh,
) -> Programs:
    """Return the programs of a model, compiled at their first call and shared by all calls with equal arguments.

    Args:
        graphdef: structure of the model.
        config: config of the model.
        prefix: tokens and image slots in front of every question.
        shape: sizes of the decode state.
        stop: when an answer ends.
        sampling: how tokens are chosen.
        mesh: mesh with the axes of `sharding.mesh`; its devices need not exist as long as nothing is run.
    """
    place = placement(config, mesh)
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    params = _param_shardings(config, mesh)
    prefixes = _cache_sharding(mesh)
    # The same tuples with a sharding per field; `_make`, unlike their constructors, is not typed for arrays.
    state = DecodeState._make([prefixes, *[place.batch] * (len(DecodeState._fields) - 1)])
    new = NewRequests._make([place.batch] * len(NewRequests._fields))
    threshold = RefillThreshold._make([place.batch, place.replicated])

    def compile_init() -> Callable[..., Any]:
        def init() -> tuple[Cache, DecodeState]:
            with mesh_lib.use_mesh(mesh):
                return decode.init(config, shape, prefix_length=len(prefix.tokens), stop=stop, groups=groups)

        return jax.jit(init, out_shardings=(prefixes, state))

    def compile_step(
        function: Callable[..., Any], *arguments: Any, out: Any, donated: int, **options: Any
    ) -> Callable[..., Any]:
        """Compile a function of `decode` as a function of the parameters instead of the model."""

        def program(params: Params, *values: Any) -> Any:
            with mesh_lib.use_mesh(mesh):
                return function(merge_module(graphdef, params), *values, groups=groups, **options)

        program.__name__ = function.__name__  # the name in profiles
        return jax.jit(program, in_shardings=(params, *arguments), out_shardings=out, donate_argnums=donated)

    how = {"stop": stop, "sampling": sampling}
    return Programs(
        init=compile_init(),
        encode=_encoder(graphdef, config, mesh),
        prefill=compile_step(
            decode.prefill, prefixes, place.batch, place.batch, out=prefixes, donated=1, prefix=prefix
        ),
        insert=compile_step(decode.insert, prefixes, state, new, out=state, donated=2, **how),
        generate=compile_step(decode.generate, prefixes, state, threshold, out=state, donated=2, **how),
        placement=place,
        images=NamedSharding(mesh, P(AXES)),
        groups=groups,
    )


def _cache_sharding(mesh: Mesh) -> Cache:
    """Return the shardings of a cache [L, B, K, S, H]: slots over the groups, heads over `tensor`."""
    sharding = NamedSharding(mesh, P(None, BATCH_AXES, "tensor"))
    return Cache._make([sharding] * len(Cache._fields))
