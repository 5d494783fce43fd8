"""Choose the attention implementation that fits the devices, the dtype and the shapes."""

from __future__ import annotations

import functools
import logging

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AttentionImpl, DType
from earthgpt_jax.ops.attention import LANES, Attention, Cudnn, Xla

_log = logging.getLogger(__name__)


def choose(kernel: AttentionImpl, *, platform: str, dtype: DType, length: int, head_dim: int) -> Attention:
    """The attention that `kernel` names, or for `auto` the best one that fits; says once which and why.

    Args:
        platform: of the devices it will run on: cpu, gpu, tpu.
        length: T.

    Raises:
        EarthGPTError: a named kernel does not fit; `auto` always fits.
    """
    from earthgpt_jax.ops.splash import Splash  # Pallas takes a second to import

    obstacles = {
        AttentionImpl.SPLASH: [
            *([] if platform == "tpu" else [f"devices are {platform}, not tpu"]),
            *([] if length % LANES == 0 else [f"rows of {length} tokens are no multiple of {LANES}"]),
        ],
        AttentionImpl.CUDNN: [
            *([] if platform == "gpu" else [f"devices are {platform}, not gpu"]),
            *([] if dtype is DType.BFLOAT16 else [f"the model computes in {dtype}, not bfloat16"]),
            *([] if head_dim <= 128 and head_dim % 8 == 0 else [f"head size {head_dim} is no multiple of 8 up to 128"]),
        ],
        AttentionImpl.XLA: [],
    }
    if kernel is AttentionImpl.AUTO:
        kernel = next(each for each, against in obstacles.items() if not against)
        against = "; ".join(f"not {each}: {', '.join(why)}" for each, why in obstacles.items() if why)
        _say_once(f"attention auto: {kernel} ({against})")
    elif obstacles[kernel]:
        raise EarthGPTError(f"attention: {kernel} does not fit: {'; '.join(obstacles[kernel])}. Take auto or xla.")
    made: dict[AttentionImpl, Attention] = {
        AttentionImpl.SPLASH: Splash(),
        AttentionImpl.CUDNN: Cudnn(),
        AttentionImpl.XLA: Xla(),
    }
    return made[kernel]


@functools.cache
def _say_once(message: str) -> None:
    _log.info(message)
