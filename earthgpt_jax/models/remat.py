"""Rematerialization policies: what each block keeps for its backward pass, by the names of `Linear` and attention.

Per token and layer of the 13B model in bfloat16, a block keeps its input (10 KB) and: `attention` 61 KB, `minimal`
127 KB, `none` about 320 KB. The gradient of a frozen linear layer does not need its input; that of a scale needs the
output of its layer.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import checkpoint_policies as policies

from earthgpt_jax.config import LINEARS, Remat
from earthgpt_jax.ops.attention import CONTEXT

_ATTENTION = ("q", "k", "v", CONTEXT, "o", "down")
_POLICIES = {
    Remat.MINIMAL: policies.save_only_these_names(*LINEARS, CONTEXT),
    Remat.ATTENTION: policies.save_only_these_names(*_ATTENTION),
    Remat.FULL: policies.nothing_saveable,
    Remat.OFFLOAD: policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_ATTENTION),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def apply_remat(body: Callable, remat: Remat, *, unrolled: bool = False) -> Callable:
    """Apply a policy to the body of a scan over layers.

    Args:
        body: the body.
        remat: the policy.
        unrolled: the scan will be unrolled. The compiler could then merge the recomputation with the forward pass,
            which must be prevented; between the two loops of a scan it cannot.
    """
    if remat is Remat.NONE:
        return body
    return jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=unrolled)
