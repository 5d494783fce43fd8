"""The training step: one pure function of the state, the frozen parameters and a batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from earthgpt_jax.input.batch import Batch
from earthgpt_jax.models.earthgpt import EarthGPT, Features
from earthgpt_jax.models.llama import PackedAttention
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.losses import supervised_loss
from earthgpt_jax.params import Params, merge, merge_module
from earthgpt_jax.sharding.mesh import BATCH_AXES, use_mesh
from earthgpt_jax.training import guard
from earthgpt_jax.training.execution import DEFAULT_EXECUTION, ExecutionOptions
from earthgpt_jax.training.state import State

ENCODE_CHUNK = 8  # largest number of images encoded at a time
_KERNELS = r"llm/blocks/(attn|mlp)/\w+/kernel"
IMAGE_LOOP = "image_chunks"  # named scope of the encoder loop, whose trip count depends on the data


def hidden(model: EarthGPT, features: Features, batch: Batch, *, execution: ExecutionOptions) -> jax.Array:
    """Return the hidden states [B, T, D] of packed sequences whose images are encoded already."""
    mask = make_attention_mask(batch.segments, batch.question_index)
    return model(
        batch.tokens,
        image_slots=batch.image_slots,
        features=features,
        positions=batch.positions,
        attention=PackedAttention(mask, impl=execution.attention),
        remat=execution.remat,
    ).hidden


def encode_images(encode: Callable[[jax.Array], Features], images: jax.Array, *, used: jax.Array) -> Features:
    """Encode the first `used[b]` images of each sequence; the features of padding images are zero.

    Args:
        encode: function of u8[N, S, S, 3]; it is not differentiated.
        images: u8[B, I, S, S, 3].
        used: i32[B], number of images that each sequence has.

    Returns:
        Features of all B*I images.
    """
    per_sequence = images.shape[1]
    flat = images.reshape(-1, *images.shape[2:])
    if per_sequence == 1:
        return encode(flat)
    real = (jnp.arange(per_sequence) < used[:, None]).reshape(-1)
    order = jnp.argsort(~real, stable=True)  # real images first
    chunk = math.gcd(len(flat), ENCODE_CHUNK)
    empty = jax.tree.map(lambda x: jnp.zeros((len(flat), *x.shape[1:]), x.dtype), jax.eval_shape(encode, flat))

    def encode_chunk(number: jax.Array, features: Features) -> Features:
        chosen = jax.lax.dynamic_slice_in_dim(order, number * chunk, chunk)
        return jax.tree.map(lambda all_features, new: all_features.at[chosen].set(new), features, encode(flat[chosen]))

    with jax.named_scope(IMAGE_LOOP):
        return jax.lax.fori_loop(0, -(-jnp.sum(real) // chunk), encode_chunk, empty)


def cast_kernels(trainable: Params, execution: ExecutionOptions) -> Params:
    """Cast the kernels of the LLM to the compute dtype.

    The gradient of a bfloat16 product is bfloat16. If the cast were inside the differentiated function, the gradients
    of all layers would be kept in fp32 until the end of the step: twice the memory for the same values.
    """
    dtype = jnp.dtype(execution.kernel_dtype)
    return {path: x.astype(dtype) if re.fullmatch(_KERNELS, path) else x for path, x in trainable.items()}


def _encoders(params: Params) -> dict[str, jax.Array | None]:
    """Keep the parameters of the encoders and replace the others by None, so that no other weight is gathered."""
    return {path: value if path.startswith(("vit/", "convnext/")) else None for path, value in params.items()}


def make_encoder(graphdef: nnx.GraphDef, *, mesh: Mesh | AbstractMesh | None) -> Callable[[Params, Batch], Features]:
    """Return `encode(params, batch) -> features` of the batch's images; on a mesh, each device encodes its own.

    Features that were read from disk are unpacked.
    """

    def encode(encoders: dict, images: jax.Array, segments: jax.Array) -> Features:
        return encode_images(merge_module(graphdef, encoders).encode, images, used=jnp.max(segments, axis=1))

    if mesh is not None:
        rows = PartitionSpec(BATCH_AXES)
        encode = jax.shard_map(
            encode, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=rows, check_vma=False
        )  # fmt: skip

    def of_batch(params: Params, batch: Batch) -> Features:
        if batch.has_features:
            nothing: dict = dict.fromkeys(params)  # only the config of the model is read
            return merge_module(graphdef, nothing).unpack(batch.images.reshape(-1, batch.images.shape[-1]))
        return encode(_encoders(params), batch.images, batch.segments)

    return of_batch


def split_batch(batch: Any, parts: int) -> Any:
    """Return arrays [parts, B / parts, ...] of arrays [B, ...]; `jax.lax.scan` over them takes one part at a time.

    Part i takes the sequences i, i + parts, ...: no sequence moves to another device.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def make_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int,
    execution: ExecutionOptions = DEFAULT_EXECUTION,
    mesh: Mesh | AbstractMesh | None = None,
) -> Callable[[State, Params, Batch], tuple[State, dict[str, jax.Array]]]:
    """Return `step(state, frozen, batch) -> (state, metrics)`, to be jitted with the state donated.

    Args:
        graphdef: structure of the model.
        microbatches: number of parts whose gradients are accumulated.
        execution: how the LLM's blocks are computed.
        mesh: mesh that the arguments are placed on; None for a single device.
    """

    def loss_sums(trainable: Params, frozen: Params, features: Features, batch: Batch) -> tuple[jax.Array, jax.Array]:
        model = merge_module(graphdef, trainable, frozen=frozen)
        x = hidden(model, features, batch, execution=execution)
        return supervised_loss(x, model.llm.unembedding(), batch.tokens, batch.loss_weights, chunk=execution.loss_chunk)

    gradient = jax.value_and_grad(loss_sums, has_aux=True)
    update = optax.with_extra_args_support(optimizer).update

    encode = make_encoder(graphdef, mesh=mesh)

    @use_mesh(mesh)
    def step(state: State, frozen: Params, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        def accumulate(sums: Any, part: Batch) -> tuple[Any, None]:
            # Outside the differentiated function, so that no residuals of the frozen encoders are kept.
            features = encode(merge(state.trainable, frozen), part)
            (loss, weight), gradients = gradient(cast, frozen, features, part)
            return jax.tree.map(jnp.add, sums, (loss, weight, gradients)), None

        cast = cast_kernels(state.trainable, execution)
        parts = split_batch(batch, microbatches)
        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable))
        (loss, weight, gradients), _ = jax.lax.scan(accumulate, zero, parts)

        # Divide once, by the weight of the global batch, so that every supervised token counts the same.
        weight = jnp.maximum(weight, 1e-9)
        loss, gradients = loss / weight, jax.tree.map(lambda g: g / weight, gradients)
        norm = optax.tree.norm(gradients)
        updates, opt_state = update(gradients, state.opt_state, state.trainable, loss=loss, norm=norm)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "supervised_tokens": weight,
            "tokens": jnp.sum(batch.segments > 0),
            "images": jnp.sum(jnp.max(batch.segments, axis=1)),
            "unlisted": jnp.sum(batch.unlisted),
            "damaged": jnp.sum(batch.damaged),
            **guard.guard_metrics(opt_state),
        }
        return State(state.step + 1, trainable, opt_state), metrics

    return step
