"""The train step: one pure function of state, frozen weights and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from earthgpt_jax.models.earthgpt import EarthGPT, Features
from earthgpt_jax.ops.attention import visible
from earthgpt_jax.ops.losses import next_token_loss
from earthgpt_jax.params import Params, merge, merge_module


class State(NamedTuple):
    """What training changes; nothing here ever holds a frozen weight.

    Attributes:
        step: i32[], updates done.
        trained: fp32 parameters of the stage.
        optimizer: optax's state over exactly those.
    """

    step: jax.Array
    trained: Params
    optimizer: optax.OptState


class DeviceBatch(NamedTuple):
    """The arrays of an `input.batch.Batch`, as the step takes them."""

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array
    branches: jax.Array
    loss_weights: jax.Array
    images: jax.Array
    image_slots: jax.Array


def forward(model: EarthGPT, features: Features, batch: DeviceBatch) -> jax.Array:
    """Logits f32[B, T, V] of packed rows whose images are encoded already."""
    rows = batch.tokens.shape[0]
    visual = model.perceive(features)  # B*I P D
    x = model.embed(batch.tokens, batch.image_slots, visual.reshape(rows, -1, visual.shape[-1]))
    x, _ = model.llm(x, positions=batch.positions, mask=visible(batch.segments, batch.branches))
    return model.llm.logits(x)


def make_step(
    graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation, *, microbatches: int
) -> Callable[[State, Params, DeviceBatch], tuple[State, dict[str, jax.Array]]]:
    """`step(state, frozen, batch) -> (state, metrics)`, to be jitted with the state donated."""

    def loss_sums(trained: Params, frozen: Params, features: Features, batch: DeviceBatch):
        model = merge_module(graphdef, merge(trained, frozen))
        return next_token_loss(forward(model, features, batch), batch.tokens, batch.loss_weights)

    gradient = jax.value_and_grad(loss_sums, has_aux=True)

    def encode(trained: Params, frozen: Params, images: jax.Array) -> Features:
        # Outside of the differentiated function: no residual of a frozen encoder is ever kept.
        return merge_module(graphdef, merge(trained, frozen)).encode(images.reshape(-1, *images.shape[2:]))

    def step(state: State, frozen: Params, batch: DeviceBatch) -> tuple[State, dict[str, jax.Array]]:
        def accumulate(sums, part: DeviceBatch):
            features = encode(state.trained, frozen, part.images)
            (loss, weight), gradients = gradient(state.trained, frozen, features, part)
            return jax.tree.map(jnp.add, sums, (loss, weight, gradients)), None

        parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trained))
        (loss, weight, gradients), _ = jax.lax.scan(accumulate, zero, parts)

        # Divided once, by the weight of the whole batch: every supervised token counts alike.
        weight = jnp.maximum(weight, 1e-9)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        metrics = {
            "loss": loss / weight,
            "grad_norm": optax.tree.norm(gradients),
            "supervised_tokens": weight,
            "tokens": jnp.sum(batch.segments > 0),
        }
        return State(state.step + 1, trained, optimizer_state), metrics

    return step
