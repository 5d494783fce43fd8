"""The train step: one pure function of state, frozen weights and batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from earthgpt_jax.config import Config
from earthgpt_jax.models.earthgpt import EarthGPT, Features
from earthgpt_jax.models.llama import PLAIN, ExecutionOptions
from earthgpt_jax.ops.attention import make_attention_mask
from earthgpt_jax.ops.attention_impl import select_attention
from earthgpt_jax.ops.losses import supervised_loss
from earthgpt_jax.params import Params, merge, merge_module
from earthgpt_jax.sharding.mesh import ROWS, constrain, use
from earthgpt_jax.training import guard

ENCODED = 8  # images at a time, at most
_KERNELS = r"llm/blocks/(attn|mlp)/\w+/kernel"
IMAGES = "image_chunks"  # scope of the loop over them, whose turns the data decides


class State(NamedTuple):
    """What training changes; nothing here ever holds a frozen weight.

    Attributes:
        step: i32[], updates done.
        trainable: fp32 parameters of the stage.
        opt_state: optax's state over exactly those.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState


class DeviceBatch(NamedTuple):
    """The arrays of an `input.batch.Batch`, as the step takes them."""

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    question_index: jax.Array
    loss_weights: jax.Array
    images: jax.Array
    image_slots: jax.Array
    unlisted: jax.Array
    damaged: jax.Array


def execution(config: Config, *, platform: str) -> ExecutionOptions:
    """How the blocks of a run of `config` are computed on devices of `platform`."""
    attention = select_attention(
        config.attention_impl,
        platform=platform,
        dtype=config.model.compute_dtype,
        length=config.data.seq_len,
        head_dim=config.model.llm.head_dim,
    )
    return ExecutionOptions(remat=config.remat, attention=attention, kernel_dtype=config.model.compute_dtype)


def hidden(model: EarthGPT, features: Features, batch: DeviceBatch, *, execution: ExecutionOptions) -> jax.Array:
    """[B, T, D] through the final norm, of packed rows whose images are encoded already."""
    rows = batch.tokens.shape[0]
    visual = model.perceive(features)  # B*I P D
    x = model.embed(batch.tokens, batch.image_slots, visual.reshape(rows, -1, visual.shape[-1]))
    mask = make_attention_mask(batch.segments, batch.question_index)
    x, _ = model.llm(constrain(x, ROWS), positions=batch.positions, mask=mask, execution=execution)
    return x


def encode_images(encode: Callable[[jax.Array], Features], images: jax.Array, *, used: jax.Array) -> Features:
    """Features of B*I images of which only the first `used[b]` of each row are encoded; those of padding are zero.

    Args:
        encode: of u8[N, S, S, 3]; not differentiated.
        images: u8[B, I, S, S, 3].
        used: i32[B].
    """
    per_row = images.shape[1]
    flat = images.reshape(-1, *images.shape[2:])
    if per_row == 1:
        return encode(flat)
    real = (jnp.arange(per_row) < used[:, None]).reshape(-1)
    order = jnp.argsort(~real, stable=True)  # real ones first
    chunk = math.gcd(len(flat), ENCODED)
    empty = jax.tree.map(lambda x: jnp.zeros((len(flat), *x.shape[1:]), x.dtype), jax.eval_shape(encode, flat))

    def some(number: jax.Array, features: Features) -> Features:
        chosen = jax.lax.dynamic_slice_in_dim(order, number * chunk, chunk)
        return jax.tree.map(lambda all_, new: all_.at[chosen].set(new), features, encode(flat[chosen]))

    with jax.named_scope(IMAGES):
        return jax.lax.fori_loop(0, -(-jnp.sum(real) // chunk), some, empty)


def _narrowed(trainable: Params, execution: ExecutionOptions) -> Params:
    """`trained` with kernels in the dtype that they multiply in.

    A gradient of a bfloat16 product is bfloat16; cast inside of the differentiated function, all layers' gradients
    would be kept in fp32 until the step's end, twice the memory for the same numbers.
    """
    dtype = jnp.dtype(execution.kernel_dtype)
    return {path: x.astype(dtype) if re.fullmatch(_KERNELS, path) else x for path, x in trainable.items()}


def _encoders(params: Params) -> dict[str, jax.Array | None]:
    """The encoders' parameters; of the others the paths alone, so that nothing of them is moved or gathered."""
    return {path: value if path.startswith(("vit/", "convnext/")) else None for path, value in params.items()}


def make_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int,
    execution: ExecutionOptions = PLAIN,
    mesh: Mesh | AbstractMesh | None = None,
) -> Callable[[State, Params, DeviceBatch], tuple[State, dict[str, jax.Array]]]:
    """`step(state, frozen, batch) -> (state, metrics)`, to be jitted with the state donated.

    Args:
        mesh: that the arguments are placed on; None for one device.
    """

    def loss_sums(trainable: Params, frozen: Params, features: Features, batch: DeviceBatch):
        model = merge_module(graphdef, merge(trainable, frozen))
        x = hidden(model, features, batch, execution=execution)
        return supervised_loss(x, model.llm.unembedding(), batch.tokens, batch.loss_weights, chunk=execution.loss_chunk)

    gradient = jax.value_and_grad(loss_sums, has_aux=True)
    update = optax.with_extra_args_support(optimizer).update

    def encode(encoders: dict, images: jax.Array, segments: jax.Array) -> Features:
        return encode_images(merge_module(graphdef, encoders).encode, images, used=jnp.max(segments, axis=1))

    if mesh is not None:  # each device the images of its own rows, however many they are
        rows = PartitionSpec(ROWS)
        encode = jax.shard_map(
            encode, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=rows, check_vma=False
        )  # fmt: skip

    @use(mesh)
    def step(state: State, frozen: Params, batch: DeviceBatch) -> tuple[State, dict[str, jax.Array]]:
        def accumulate(sums, part: DeviceBatch):
            # Outside of the differentiated function: no residual of a frozen encoder is ever kept.
            features = encode(_encoders(merge(state.trainable, frozen)), part.images, part.segments)
            (loss, weight), gradients = gradient(narrowed, frozen, features, part)
            return jax.tree.map(jnp.add, sums, (loss, weight, gradients)), None

        narrowed = _narrowed(state.trainable, execution)
        # Every microbatches-th row: each device's rows stay where they are.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable))
        (loss, weight, gradients), _ = jax.lax.scan(accumulate, zero, parts)

        # Divided once, by the weight of the whole batch: every supervised token counts alike.
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
