"""What a block keeps for its backward pass: one row a policy, by the names that `Linear` and attention give.

Bytes a token and layer at 13B in bfloat16, beside the block's input (10 KB): `attention` 61 KB, `minimal`
127 KB, `none` about 320 KB. A frozen linear needs no input for its gradient; a scaled one reads its output.
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
    """A scan's body under the policy.

    Args:
        unrolled: layers will stand one after the other, where a compiler could merge what is computed again with
            what was computed before; between two loops it cannot.
    """
    if remat is Remat.NONE:
        return body
    return jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=unrolled)
