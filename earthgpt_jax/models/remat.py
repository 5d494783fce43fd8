"""Rematerialization: scans over layers that keep for the backward pass what a policy of `config.remat` names.

Per token and layer of the 13B model in bfloat16, a block keeps its input (10 KB) and: `attention` 61 KB, `minimal`
127 KB, `none` about 320 KB. The gradient of a frozen linear layer does not need its input; that of a scale needs the
output of its layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import checkpoint_policies

from earthgpt_jax.config import Kept, Remat, Run, kept

Body = Callable[[Any, Any], tuple[Any, Any]]


def is_uniform(remat: str) -> bool:
    """Return whether all layers keep the same."""
    return remat == Remat.NONE or not any(kept(remat).layers.values())


def apply_remat(body: Body, remat: str, *, unrolled: bool = False) -> Body:
    """Apply a uniform policy to the body of a scan over layers.

    Args:
        body: the body.
        remat: the policy.
        unrolled: the scan will be unrolled. The compiler could then merge the recomputation with the forward pass,
            which must be prevented; between the two loops of a scan it cannot.
    """
    if remat == Remat.NONE:
        return body
    (run,) = kept(remat).runs(1)
    return jax.checkpoint(body, policy=_policy(run), prevent_cse=unrolled)


def scan_runs(body: Body, carry: Any, xs: Any, *, policy: Kept, depth: int) -> tuple[Any, Any]:
    """Run `lax.scan` of `body` over `depth` layers, in one loop per run of layers that keep the same.

    Slices of `xs` are copied: the body should read large arrays that need no gradient by the number of its layer.
    """
    outputs = []
    start = 0
    for run in policy.runs(depth):
        part = jax.tree.map(lambda x, start=start, run=run: x[start : start + run.layers], xs)
        carry, out = jax.lax.scan(jax.checkpoint(body, policy=_policy(run), prevent_cse=False), carry, part)
        outputs.append(out)
        start += run.layers
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


def _policy(run: Run) -> Callable[..., Any]:
    if not run.offloaded:
        return checkpoint_policies.save_only_these_names(*run.names)
    return checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(run.names),
        names_which_can_be_offloaded=list(run.offloaded),
        offload_src="device",
        offload_dst="pinned_host",
    )
