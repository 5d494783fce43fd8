"""Select the attention implementation that fits the devices, the dtype and the shapes."""

from __future__ import annotations

import functools
import logging

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AttentionImpl, DType
from earthgpt_jax.ops.attention import LANES, CudnnAttention, SelfAttention, XlaAttention

_log = logging.getLogger(__name__)


def select_attention(impl: AttentionImpl, *, platform: str, dtype: DType, length: int, head_dim: int) -> SelfAttention:
    """Return the implementation that `impl` names; `auto` selects the best one that fits and logs the reason once.

    Args:
        impl: `config.attention_impl`.
        platform: platform of the devices it will run on: cpu, gpu or tpu.
        dtype: dtype that the model computes in.
        length: tokens per packed sequence, T.
        head_dim: channels per head, H.

    Raises:
        EarthGPTError: the named implementation does not fit. `auto` always finds one.
    """
    from earthgpt_jax.ops.splash import SplashAttention  # importing Pallas takes a second

    obstacles = {
        AttentionImpl.SPLASH: [
            *([] if platform == "tpu" else [f"the devices are {platform}, not tpu"]),
            *([] if length % LANES == 0 else [f"sequences of {length} tokens are not a multiple of {LANES}"]),
        ],
        AttentionImpl.CUDNN: [
            *([] if platform == "gpu" else [f"the devices are {platform}, not gpu"]),
            *([] if dtype is DType.BFLOAT16 else [f"the model computes in {dtype}, not bfloat16"]),
            *([] if head_dim <= 128 and head_dim % 8 == 0 else [f"head size {head_dim} is not a multiple of 8 <= 128"]),
        ],
        AttentionImpl.XLA: [],
    }
    if impl is AttentionImpl.AUTO:
        impl = next(candidate for candidate, reasons in obstacles.items() if not reasons)
        rejected = "; ".join(f"not {candidate}: {', '.join(why)}" for candidate, why in obstacles.items() if why)
        _log_once(f"attention auto: {impl} ({rejected})")
    elif obstacles[impl]:
        raise EarthGPTError(
            f"attention_impl: {impl} does not fit: {'; '.join(obstacles[impl])}. Set attention_impl to auto or xla."
        )
    implementations: dict[AttentionImpl, SelfAttention] = {
        AttentionImpl.SPLASH: SplashAttention(),
        AttentionImpl.CUDNN: CudnnAttention(),
        AttentionImpl.XLA: XlaAttention(),
    }
    return implementations[impl]


@functools.cache
def _log_once(message: str) -> None:
    _log.info(message)
