"""AdamW with the learning-rate schedule of the paper, for the trainable parameters only."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import optax

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import OptimConfig
from earthgpt_jax.training.guard import guard_updates
from earthgpt_jax.training.stages import Trainable


def lr_schedule(config: OptimConfig) -> optax.Schedule:
    """Return linear warm-up to `peak_lr`, followed by cosine decay to `min_lr` at the last step."""

    def rate(step: jnp.ndarray) -> jnp.ndarray:
        warm = config.peak_lr * (step + 1) / max(config.warmup_steps, 1)
        done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        cosine = config.min_lr + 0.5 * (config.peak_lr - config.min_lr) * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return jnp.where(step < config.warmup_steps, warm, cosine)

    return rate


def make_optimizer(config: OptimConfig, trainable: Mapping[str, Trainable]) -> optax.GradientTransformationExtraArgs:
    """Return AdamW with global-norm clipping, a weight-decay mask and per-group learning rates, wrapped in the guard.

    Args:
        trainable: result of `stages.trainable_paths`; the transformation expects a flat dict with exactly these paths.

    Raises:
        EarthGPTError: `lr_scale` names a group that the stage does not have.
    """
    groups = {path: rule.group for path, rule in trainable.items()}
    unknown = sorted(config.lr_scale.keys() - set(groups.values()))
    if unknown:
        raise EarthGPTError(
            f"optim.lr_scale: unknown group(s) {unknown}; this stage trains {sorted(set(groups.values()))}"
        )
    # Sorted: the order of a set differs between processes, and would change the program that they compile.
    scales = {group: optax.scale(config.lr_scale.get(group, 1.0)) for group in sorted(set(groups.values()))}
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask={path: rule.decay for path, rule in trainable.items()}),
        optax.partition(scales, groups),
        optax.scale_by_learning_rate(lr_schedule(config)),
    )
    return guard_updates(adamw, config)
