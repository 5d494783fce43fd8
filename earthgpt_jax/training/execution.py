"""How the train step computes: rematerialization, attention implementation, chunk of the loss, dtype of gradients."""

from __future__ import annotations

import dataclasses

from earthgpt_jax.config import Config, DType, Remat
from earthgpt_jax.ops.attention import SelfAttention, XlaAttention
from earthgpt_jax.ops.attention_impl import select_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """How the LLM runs in training; nothing here changes a result beyond rounding.

    Attributes:
        remat: what each block keeps for its backward pass.
        attention: implementation of self-attention.
        loss_chunk: supervised positions per sequence whose logits are held at a time.
        kernel_dtype: dtype that trainable kernels of blocks are cast to outside of the differentiated function. It is
            the dtype that they multiply in, and therefore the dtype of their gradients.
    """

    remat: str = Remat.NONE
    attention: SelfAttention = dataclasses.field(default_factory=XlaAttention)
    loss_chunk: int = 256
    kernel_dtype: DType = DType.FLOAT32


DEFAULT_EXECUTION = ExecutionOptions()


def execution_options(config: Config, *, platform: str) -> ExecutionOptions:
    """Return the options of a run of `config` on devices of `platform` (cpu, gpu or tpu).

    Raises:
        EarthGPTError: the configured attention implementation does not fit.
    """
    attention = select_attention(
        config.attention_impl,
        platform=platform,
        dtype=config.model.compute_dtype,
        length=config.data.seq_len,
        head_dim=config.model.llm.head_dim,
    )
    remat = Remat.FULL if config.remat == Remat.AUTO else config.remat  # see `remat_choice`
    return ExecutionOptions(remat=remat, attention=attention, kernel_dtype=config.model.compute_dtype)
