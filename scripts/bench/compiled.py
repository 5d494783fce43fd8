"""Compile the 13B steps with the TPU compiler: FLOPs, memory of the loss, and remat policies.

    python scripts/bench/compiled.py flops      # FLOPs compared with the minimum and full fine-tuning; 8 small programs
    python scripts/bench/compiled.py loss       # temporaries with chunked logits, one chunk, and plain logits
    python scripts/bench/compiled.py policies --config earthgpt_13b:align --topology v5e-16 --per-chip-batch 2

Nothing runs on a TPU and none is needed, only the libtpu package. `policies` compiles the full step seven times.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from unittest import mock

import jax
import jax.numpy as jnp

from earthgpt_jax.aot import costs, flops, hlo, program, slices, step_plan
from earthgpt_jax.aot.program import GIB
from earthgpt_jax.config import AttentionImpl, Config, Remat, load
from earthgpt_jax.ops.losses import next_token_loss
from earthgpt_jax.training import step
from earthgpt_jax.training.stages import Trainable

_SEQUENCE = ["--config.data.seq_len=1024", "--config.data.max_images=1"]


def _full_finetuning(config: Config) -> dict[str, Trainable]:
    """Return rules that train the LLM and the projector."""
    paths = program.abstract_model(config.model)[1]
    return {p: Trainable(group="all", decay=False) for p in paths if p.startswith(("llm/", "projector/"))}


def flops_table() -> None:
    """Print executed and minimum FLOPs of the stages and of full fine-tuning."""
    align, instruct = (load(f"earthgpt_13b:{stage}", _SEQUENCE) for stage in ("align", "instruct"))
    rows: list[tuple[str, Config, Remat, Mapping[str, Trainable] | None]] = [
        ("the full LLM and the projector", align, Remat.MINIMAL, _full_finetuning(align)),
        ("align", align, Remat.MINIMAL, None),
        ("instruct", instruct, Remat.MINIMAL, None),
        ("instruct", instruct, Remat.NONE, None),
    ]
    full = 0.0
    print("one sequence of 1024 tokens with an image, TFLOP: minimum, executed, executed / minimum, / full fine-tuning")
    for name, config, remat, trainable in rows:
        minimum = flops.minimum(config, batch_size=1, trainable=trainable)
        executed = flops.executed(dataclasses.replace(config, remat=remat), batch_size=1, trainable=trainable)
        full = full or executed
        print(
            f"{name:<32} {remat:<8} {minimum / 1e12:7.2f} {executed / 1e12:7.2f} "
            f"{executed / minimum:7.3f} {executed / full:7.3f}",
            flush=True,
        )


def _plain(
    x: jax.Array, unembedding: jax.Array, tokens: jax.Array, loss_weights: jax.Array, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Compute the loss from all logits at once, kept for the backward pass."""
    del chunk
    logits = jnp.einsum("BTD,DV->BTV", x, unembedding.astype(x.dtype), preferred_element_type=jnp.float32)
    return next_token_loss(logits, tokens, loss_weights)


def loss_table() -> None:
    """Print the memory and FLOPs of three implementations of the loss."""
    devices = slices.devices(slices.parse("v5p-8"))
    config = flops.reduced(load("earthgpt_13b:instruct", _SEQUENCE), batch_size=4 * len(devices), depth=1)
    config = dataclasses.replace(config, remat=Remat.FULL)
    print("instruct, one layer, tiny encoders, 4 sequences of 1024 tokens on a v5p chip: temporaries in GiB, TFLOP")
    for name, chunk, loss in (
        ("chunks of 256", 256, step.supervised_loss),
        ("one chunk", 1024, step.supervised_loss),
        ("plain", 1024, _plain),
    ):
        with mock.patch.object(step, "supervised_loss", loss):
            compiled = program.compile_step(config, devices, loss_chunk=chunk)
        work = costs.costs(
            hlo.parse(compiled.as_text() or ""),
            trip_counts=step_plan.trip_counts(config, batch_size=4, loss_chunk=chunk),
        )
        print(f"{name:<16} {program.memory(compiled).temporaries / GIB:6.2f} {work.flops / 1e12:7.2f}", flush=True)


def policies_table(args: argparse.Namespace, overrides: list[str]) -> None:
    """Print memory, FLOPs and time bounds of every remat policy."""
    slice_ = slices.parse(args.topology)
    config = load(args.config, overrides)
    length = config.data.seq_len
    print(f"{args.config} on {args.topology}, {args.per_chip_batch} x {length} tokens per chip")
    print(
        "remat, attention: HBM GiB, host GiB, fits, executed / minimum; "
        "minimum ms: matrix products, HBM, links, host; tokens/s"
    )
    for remat, attention in [
        *((remat, AttentionImpl.AUTO) for remat in args.remat),
        *((remat, AttentionImpl.XLA) for remat in (Remat.FULL, Remat.MINIMAL) if args.remat == list(Remat)),
    ]:
        chosen = dataclasses.replace(config, remat=remat, attention_impl=attention)
        plan = step_plan.plan_step(chosen, slice_, per_chip_batch=args.per_chip_batch)
        line = (
            f"{plan.remat:<10} {attention:<7} {plan.hbm_gib_per_chip or 0:6.2f} {plan.host_gib:6.2f} {plan.fits!s:<5} "
        )
        if plan.roofline and plan.flops_ratio:
            bound = plan.roofline
            line += f"{plan.flops_ratio:6.3f} " + " ".join(
                f"{seconds * 1e3:7.1f}" for seconds in (bound.compute, bound.hbm, bound.ici, bound.host)
            )
            line += f" {bound.tokens_per_second:9,.0f} {bound.bound_by}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("flops", "loss", "policies"))
    parser.add_argument("--config", default="earthgpt_13b:align")
    parser.add_argument("--topology", default="v5e-16")
    parser.add_argument("--per-chip-batch", type=int, default=2)
    parser.add_argument("--remat", nargs="+", default=list(Remat), help="policies of the table (default: all names)")
    args, overrides = parser.parse_known_args()
    jax.config.update("jax_platforms", "cpu")
    if args.table == "policies":
        policies_table(args, overrides)
    else:
        {"flops": flops_table, "loss": loss_table}[args.table]()


if __name__ == "__main__":
    main()
