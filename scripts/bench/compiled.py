"""What the TPU compiler makes of the 13B steps: FLOPs beside the fewest possible, the loss, policies of recomputing.

    python scripts/bench/compiled.py flops      # executed, of the minimum, of full fine-tuning's; eight small programs
    python scripts/bench/compiled.py loss       # temporaries with chunks of logits, all of them, and kept ones
    python scripts/bench/compiled.py policies --config earthgpt_13b:align --topology v5e-16 --per-chip-batch 2

Nothing runs on a TPU and none is needed, only the libtpu package. `policies` compiles the whole step seven times.
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

_ROWS = ["--config.data.seq_len=1024", "--config.data.max_images=1"]


def _whole(config: Config) -> dict[str, Trainable]:
    """Full fine-tuning: the LLM and the projector."""
    paths = program.abstract_model(config.model)[1]
    return {p: Trainable(group="all", decay=False) for p in paths if p.startswith(("llm/", "projector/"))}


def flops_table() -> None:
    align, instruct = (load(f"earthgpt_13b:{stage}", _ROWS) for stage in ("align", "instruct"))
    rows: list[tuple[str, Config, Remat, Mapping[str, Trainable] | None]] = [
        ("the whole LLM and the projector", align, Remat.MINIMAL, _whole(align)),
        ("align", align, Remat.MINIMAL, None),
        ("instruct", instruct, Remat.MINIMAL, None),
        ("instruct", instruct, Remat.NONE, None),
    ]
    full = 0.0
    print("one row of 1024 tokens with an image, TFLOP: minimum, executed, executed / minimum, of full fine-tuning's")
    for name, config, remat, trainable in rows:
        least = flops.minimum(config, batch_size=1, trainable=trainable)
        done = flops.executed(dataclasses.replace(config, remat=remat), batch_size=1, trainable=trainable)
        full = full or done
        print(
            f"{name:<32} {remat:<8} {least / 1e12:7.2f} {done / 1e12:7.2f} {done / least:7.3f} {done / full:7.3f}",
            flush=True,
        )


def _plain(x, unembedding, tokens, loss_weights, *, chunk):
    """All logits, kept for the backward pass."""
    del chunk
    logits = jnp.einsum("BTD,DV->BTV", x, unembedding.astype(x.dtype), preferred_element_type=jnp.float32)
    return next_token_loss(logits, tokens, loss_weights)


def loss_table() -> None:
    devices = slices.devices(slices.parse("v5p-8"))
    config = flops.reduced(load("earthgpt_13b:instruct", _ROWS), batch_size=4 * len(devices), depth=1)
    config = dataclasses.replace(config, remat=Remat.FULL)
    print("instruct, one layer, tiny encoders, 4 rows of 1024 tokens on a v5p chip: temporaries in GiB, TFLOP")
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
    wanted = slices.parse(args.topology)
    config = load(args.config, overrides)
    length = config.data.seq_len
    print(f"{args.config} on {args.topology}, {args.per_chip_batch} x {length} tokens a chip")
    print(
        "remat, attention: HBM GiB, host GiB, fits, executed / minimum; "
        "ms at least: products, HBM, links, host; tokens/s"
    )
    for remat, attention in [
        *((remat, AttentionImpl.AUTO) for remat in Remat),
        (Remat.FULL, AttentionImpl.XLA),
        (Remat.MINIMAL, AttentionImpl.XLA),
    ]:
        chosen = dataclasses.replace(config, remat=remat, attention_impl=attention)
        found = step_plan.plan_step(chosen, wanted, per_chip_batch=args.per_chip_batch)
        line = f"{remat:<10} {attention:<7} {found.hbm_gib_per_chip or 0:6.2f} {found.host_gib:6.2f} {found.fits!s:<5} "
        if found.roofline and found.flops_ratio:
            bound = found.roofline
            line += f"{found.flops_ratio:6.3f} " + " ".join(
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
    args, overrides = parser.parse_known_args()
    jax.config.update("jax_platforms", "cpu")
    if args.table == "policies":
        policies_table(args, overrides)
    else:
        {"flops": flops_table, "loss": loss_table}[args.table]()


if __name__ == "__main__":
    main()
