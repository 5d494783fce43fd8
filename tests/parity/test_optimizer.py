"""The optimizer matches torch's AdamW with parameter groups, clipping and an explicit schedule, in fp32."""

from __future__ import annotations

import math

import numpy as np
import optax
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import OptimConfig
from earthgpt_jax.training.optim import lr_schedule, make_optimizer
from earthgpt_jax.training.stages import Trainable

RULES = {
    "kernel": Trainable(group="attention", decay=True),
    "norm": Trainable(group="norm", decay=False),
    "projector": Trainable(group="projector", decay=True),
}
CONFIG = OptimConfig(
    steps=12, warmup_steps=4, peak_lr=3e-2, min_lr=1e-3, weight_decay=0.1, clip_norm=2.0, lr_scale={"attention": 0.25}
)


def _rate(step: int) -> float:
    """Return the rate of LLaMA2-Accessory's lr_sched.py in steps: the first update counts as one step of warm-up."""
    if step < CONFIG.warmup_steps:
        return CONFIG.peak_lr * (step + 1) / CONFIG.warmup_steps
    done = (step - CONFIG.warmup_steps) / (CONFIG.steps - CONFIG.warmup_steps)
    return CONFIG.min_lr + (CONFIG.peak_lr - CONFIG.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.torch
def test_twelve_updates_match():
    import torch

    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal((5, 3)).astype(np.float32) for name in RULES}
    # Some clipped, some not.
    gradients = [
        {name: rng.standard_normal((5, 3)).astype(np.float32) * (0.1 + step % 3) for name in RULES}
        for step in range(12)
    ]
    norms = [math.sqrt(sum((g**2).sum() for g in each.values())) for each in gradients]
    assert min(norms) < CONFIG.clip_norm < max(norms)

    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    adam = torch.optim.AdamW(
        [
            {
                "params": [theirs[name]],
                "weight_decay": 0.1 * rule.decay,
                "scale": {"attention": 0.25}.get(rule.group, 1.0),
            }
            for name, rule in RULES.items()
        ],
        betas=(0.9, 0.95),
    )
    ours, transformation = start, make_optimizer(CONFIG, RULES)
    state = transformation.init(ours)
    for step, each in enumerate(gradients):
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(each[name].copy())
        torch.nn.utils.clip_grad_norm_(theirs.values(), CONFIG.clip_norm)
        for group in adam.param_groups:
            group["lr"] = _rate(step) * group["scale"]
        adam.step()
        updates, state = transformation.update(each, state, ours, loss=1.0, norm=norms[step])
        ours = optax.apply_updates(ours, updates)
        assert float(lr_schedule(CONFIG)(step)) == pytest.approx(_rate(step), rel=1e-6)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value.detach(), atol=2e-6, rtol=0, err_msg=name)


def test_a_learning_rate_for_a_frozen_group_is_refused():
    with pytest.raises(EarthGPTError, match=r"unknown group\(s\) \['adapter'\]; this stage trains"):
        make_optimizer(OptimConfig(steps=1, lr_scale={"adapter": 2.0}), RULES)
