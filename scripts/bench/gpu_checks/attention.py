"""Compare cuDNN's attention with the one in XLA: outputs, gradients and time, on packed sequences in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from earthgpt_jax.aot import gpus
from earthgpt_jax.ops.attention import CudnnAttention, SelfAttention, XlaAttention, attend, make_attention_mask
from gpu_checks import batches
from gpu_checks.cases import AttentionCase, attention_cases
from gpu_checks.results import Recorder, first_line
from gpu_checks.timing import seconds_per_call

# Largest difference from fp32 that is accepted: this multiple of XLA's own in bfloat16, and at least this share of the
# largest value.
_MULTIPLE, _SHARE = 4.0, 0.02
Function = Callable[..., jax.Array]  # of q, k, v, the mask, and where tokens are no padding
_SAMPLES = 3  # per packed sequence
_PRODUCT, _COPY = 8192, 1 << 30  # side of the matrices, elements of the copied array


class PortableAttention(CudnnAttention):
    """The same call of `jax.nn.dot_product_attention` in XLA, for devices without cuDNN."""

    implementation = "xla"


def run(recorder: Recorder, *, tiny: bool) -> None:
    """Record the rates of the device, then the differences of all cases.

    Raises:
        RuntimeError: a difference is larger than accepted, or a case failed; all other cases are measured first.
    """
    _rates(recorder, tiny=tiny)
    problems: list[str] = []
    for case in attention_cases(tiny=tiny):
        try:
            problems += compare(case, _tested(), recorder)
        except Exception as error:  # for example no cuDNN kernel for these shapes
            problems.append(f"{case.name}: {first_line(error)}")
    if problems:
        raise RuntimeError("; ".join(problems))


def run_time(recorder: Recorder, *, tiny: bool) -> None:
    """Record the times of all cases. Compiling XLA's attention, with a product per 128 queries, takes most of it."""
    for backward in (True, False):
        for case in attention_cases(tiny=tiny):
            if case.timed:
                compare_time(case, _tested(), recorder, backward=backward)


def _tested() -> CudnnAttention:
    return CudnnAttention() if jax.devices()[0].platform == "gpu" else PortableAttention()


def compare(case: AttentionCase, tested: CudnnAttention, recorder: Recorder) -> list[str]:
    """Record the differences of one case, and return what is larger than accepted.

    Here XLA computes all scores at once: the values are those of `XlaAttention`, and it compiles in seconds.
    """
    arguments = _inputs(case)

    def xla(dtype: jnp.dtype) -> Function:
        return lambda q, k, v, mask, used: attend(*(x.astype(dtype) for x in (q, k, v)), mask=mask) * used

    def outputs_and_gradients(function: Function) -> list[np.ndarray]:
        def both(*arguments: jax.Array) -> tuple[jax.Array, ...]:
            return function(*arguments[:-1]), *_gradients(function)(*arguments)

        return [np.asarray(x, np.float32) for x in jax.jit(both)(*arguments)]

    with jax.default_matmul_precision("highest"):  # GPUs multiply fp32 in TF32 by default
        exact = outputs_and_gradients(xla(jnp.dtype(jnp.float32)))
    who = _name(tested)
    values, theirs = outputs_and_gradients(_with_mask(tested)), outputs_and_gradients(xla(jnp.dtype(jnp.bfloat16)))
    problems = []
    for index, name in enumerate(("output", "gradient of q", "gradient of k", "gradient of v")):
        error, error_xla = _largest(values[index] - exact[index]), _largest(theirs[index] - exact[index])
        between = _largest(values[index] - theirs[index])
        recorder.add(case.name, f"{name}: largest difference, {who} and XLA", between)
        recorder.add(
            case.name, f"{name}: largest difference, {who} and fp32", error, compared_with="XLA and fp32",
            reference=error_xla,
        )  # fmt: skip
        accepted = max(_MULTIPLE * error_xla, _SHARE * _largest(exact[index]))
        if not error <= accepted:  # also if it is not a number
            problems.append(f"{case.name}: {name} differs from fp32 by {error:.3g}, accepted {accepted:.3g}")
    return problems


def compare_time(case: AttentionCase, tested: CudnnAttention, recorder: Recorder, *, backward: bool) -> None:
    """Record the time of the forward pass, or of forward and backward pass, next to that of `XlaAttention`."""
    arguments = _inputs(case)
    times = []
    for attention in (tested, XlaAttention()):
        function = _with_mask(attention)
        if backward:
            times.append(seconds_per_call(jax.jit(_gradients(function)), *arguments))
        else:
            times.append(seconds_per_call(jax.jit(function), *arguments[:-1]))
    name = "forward and backward" if backward else "forward"
    recorder.add(
        case.name,
        f"time of {_name(tested)}, {name}",
        1e3 * times[0],
        "ms",
        compared_with="XLA",
        reference=1e3 * times[1],
    )


def _name(tested: CudnnAttention) -> str:
    return "cuDNN" if tested.implementation == "cudnn" else "jax.nn"


def _largest(difference: np.ndarray) -> float:
    return float(np.max(np.abs(difference)))


def _inputs(case: AttentionCase) -> tuple[jax.Array, ...]:
    """Return q, k, v, the mask, where tokens are no padding, and a cotangent of the output."""
    rng = np.random.default_rng(0)

    def normal(heads: int) -> jax.Array:
        values = rng.standard_normal((case.batch, case.length, heads, case.head_dim), np.float32)
        return jnp.asarray(values.astype(jnp.bfloat16))

    packed = batches.packing(
        batch=case.batch, length=case.length, samples=_SAMPLES, shared=case.length // (2 * _SAMPLES)
    )
    segments, question_index = map(jnp.asarray, packed)
    mask = make_attention_mask(segments, question_index)
    used = (segments > 0)[:, :, None, None]  # outputs of padding are arbitrary
    return normal(case.heads), normal(case.kv_heads), normal(case.kv_heads), mask, used, normal(case.heads)


def _with_mask(attention: SelfAttention) -> Function:
    return lambda q, k, v, mask, used: attention(q, k, v, mask=attention.prepare(mask)) * used


def _gradients(function: Function) -> Callable[..., tuple[jax.Array, ...]]:
    """Return the gradients with respect to q, k and v, as a function of the result of `_inputs`."""

    def loss(*arguments: jax.Array) -> jax.Array:
        *inputs, cotangent = arguments
        return jnp.sum(function(*inputs).astype(jnp.float32) * cotangent.astype(jnp.float32))

    return jax.grad(loss, argnums=(0, 1, 2))


def _rates(recorder: Recorder, *, tiny: bool) -> None:
    """Record the rates of a large matrix product and of a copy, next to those of the data sheet."""
    gpu = gpus.find(jax.devices()[0].device_kind)
    side, size = (256, 1 << 16) if tiny else (_PRODUCT, _COPY)
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    seconds = seconds_per_call(jax.jit(jnp.matmul), matrix, matrix)
    recorder.add(
        f"bf16 product of side {side}", "rate", 2 * side**3 / seconds / 1e12, "TFLOP/s", compared_with="data sheet",
        reference=gpu.bf16_tflops if gpu else None,
    )  # fmt: skip
    array = jnp.zeros(size, jnp.bfloat16)
    seconds = seconds_per_call(jax.jit(lambda x: x + 1), array)
    recorder.add(
        f"copy of {2 * size / 1e9:.2g} GB", "memory bandwidth, read and written", 4 * size / seconds / 1e9, "GB/s",
        compared_with="data sheet", reference=gpu.hbm_gb_per_second if gpu else None,
    )  # fmt: skip
