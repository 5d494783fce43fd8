"""Splash attention (JAX's Pallas kernel for TPUs) over packed sequences.

The kernel takes the mask as data and skips every block that is masked as a whole: between segments and between
questions as well as above the diagonal. One mask serves all heads.
"""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from earthgpt_jax.config import CONTEXT
from earthgpt_jax.ops.attention import LANES
from earthgpt_jax.sharding.mesh import AXES, BATCH_AXES

_LARGEST_BLOCK = 512


class SplashAttention:
    """Splash attention; T must be a multiple of 128.

    The batch is sharded over `data` and `fsdp`, the heads over `tensor`.
    """

    def prepare(self, mask: Bool[Array, "B T T"]) -> splash.SplashAttentionKernel:
        """Build one kernel per sequence; every leaf has a leading B axis."""
        block = next(size for size in range(_LARGEST_BLOCK, 0, -LANES) if mask.shape[-1] % size == 0)
        sizes = splash.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        )

        def make_kernel(mask: Bool[Array, "T T"]) -> splash.SplashAttentionKernel:
            kernel = splash.make_splash_mha(
                mask[None], block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=CONTEXT
            )
            # The flag `is_dynamic_mask` only selects a name scope; as an array it would prevent vmap.
            infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
            return splash.SplashAttentionKernel(*(i._replace(is_dynamic_mask=None) for i in infos), **kernel.kwargs)

        return jax.vmap(make_kernel)(mask)

    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        *,
        mask: splash.SplashAttentionKernel,
    ) -> Float[Array, "B T N H"]:
        def attend(kernel: splash.SplashAttentionKernel, *heads_first: jax.Array) -> jax.Array:
            return jax.vmap(lambda kernel, q, k, v: kernel(q, k, v))(kernel, *heads_first)

        mesh = jax.sharding.get_abstract_mesh()
        if set(AXES) <= set(mesh.axis_names):  # the compiler cannot partition a Pallas kernel by itself
            sharded = P(BATCH_AXES, "tensor")
            # check_vma=False: a kernel does not declare over which mesh axes its outputs vary.
            attend = jax.shard_map(
                attend,
                mesh=mesh,
                in_specs=(P(BATCH_AXES), sharded, sharded, sharded),
                out_specs=sharded,
                check_vma=False,
            )
        q = (q * q.shape[-1] ** -0.5).astype(q.dtype)
        return attend(mask, *(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)
