"""Splash attention (JAX's Pallas kernel for TPUs) on packed rows with branches.

The kernel takes the mask as data: blocks that no query sees into are skipped, between segments and between
branches as well as above the diagonal; one mask serves all heads.
"""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.sharding import PartitionSpec as P

from earthgpt_jax.ops.attention import CONTEXT, LANES
from earthgpt_jax.sharding.mesh import AXES, ROWS

_LARGEST_BLOCK = 512


class Splash:
    """T must be a multiple of 128; rows lie over `data` and `fsdp`, heads over `tensor`."""

    def prepare(self, mask: jax.Array) -> splash.SplashAttentionKernel:
        """A kernel whose every leaf has a leading B."""
        block = next(size for size in range(_LARGEST_BLOCK, 0, -LANES) if mask.shape[-1] % size == 0)
        sizes = splash.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        )

        def kernel(row: jax.Array) -> splash.SplashAttentionKernel:
            made = splash.make_splash_mha(
                row[None], block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=CONTEXT
            )
            # The flag `is_dynamic_mask` only names a scope; as an array it would keep vmap out.
            infos = (made.fwd_mask_info, made.dq_mask_info, made.dkv_mask_info)
            return splash.SplashAttentionKernel(*(i._replace(is_dynamic_mask=None) for i in infos), **made.kwargs)

        return jax.vmap(kernel)(mask)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, *, mask: splash.SplashAttentionKernel) -> jax.Array:
        def rows(kernel: splash.SplashAttentionKernel, *heads_first: jax.Array) -> jax.Array:
            return jax.vmap(lambda kernel, q, k, v: kernel(q, k, v))(kernel, *heads_first)

        mesh = jax.sharding.get_abstract_mesh()
        if set(AXES) <= set(mesh.axis_names):  # the compiler cannot split a kernel by itself
            spread = P(ROWS, "tensor")
            # check_vma: a kernel does not say which axes its outputs vary over.
            rows = jax.shard_map(
                rows, mesh=mesh, in_specs=(P(ROWS), spread, spread, spread), out_specs=spread, check_vma=False
            )
        q = (q * q.shape[-1] ** -0.5).astype(q.dtype)
        return rows(mask, *(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)
