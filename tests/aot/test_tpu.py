"""The train step through XLA's TPU compiler, without a TPU: memory budgets, collectives, FLOPs, kernels.

The model is the 13B one with less of everything. A budget is what the compiler said when it was set, and 3 %:
a step that needs more has lost something (a donation, a remat name, a sharding). One that needs clearly less
deserves a new budget.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax.aot import collectives, costs, flops, hlo, program, slices, step_plan
from earthgpt_jax.cli.main import main
from earthgpt_jax.config import Config

pytestmark = [pytest.mark.tpu_compile]

SMALL = (
    "model.llm.dim=512", "model.llm.depth=3", "model.llm.heads=4", "model.llm.kv_heads=4", "model.llm.ffn_dim=1408",
    "model.llm.vocab_size=4096", "model.vit.dim=256", "model.vit.depth=2", "model.vit.heads=4", "model.vit.ffn_dim=512",
    "model.perception.vit_layers=(0,1)", "model.convnext.depths=(1,1,1,1)", "model.convnext.dims=(32,64,128,256)",
    "model.image_size=256", "model.convnext.image_size=256", "model.perception.cnn_stages=(2,3)",
    "data.seq_len=512", "data.max_images=1",
)  # fmt: skip
MIB = 2**20

# (stage, slice, mesh, remat) -> MiB a chip, arguments and temporaries, at two rows of 512 tokens a chip.
BUDGETS = {
    ("align", "v5e-8", "fsdp=-1", "full"): 28.8,
    ("align", "v5p-8", "fsdp=-1", "minimal"): 98.7,
    ("instruct", "v5e-8", "fsdp=4", "attention"): 20.8,
    ("instruct", "v5p-8", "fsdp=1", "minimal"): 108.7,
    ("instruct", "v5p-8", "fsdp=1", "offload"): 97.1,
}
QUICK = [("align", "v5e-8", "fsdp=-1", "full"), ("instruct", "v5p-8", "fsdp=1", "minimal")]
CASES = [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow, id="-".join(case)) for case in BUDGETS]


def _config(stage: str, mesh: str, remat: str, *, rows: int) -> Config:
    free = "mesh.data=1" if mesh.endswith("-1") else "mesh.data=-1"
    overrides = (*SMALL, free, f"mesh.{mesh}", f"remat={remat}", f"data.batch_size={rows}")
    return config_lib.load(f"earthgpt_13b:{stage}", [f"--config.{override}" for override in overrides])


@functools.cache
def _program(stage: str, topology: str, mesh: str, remat: str) -> jax.stages.Compiled:
    devices = slices.devices(slices.parse(topology))
    return program.compile_step(_config(stage, mesh, remat, rows=2 * len(devices)), devices)


def _parsed(*case: str) -> hlo.Program:
    return hlo.parse(_program(*case).as_text() or "")


@pytest.mark.parametrize("case", CASES)
def test_memory_stays_within_its_budget(case):
    needed = program.memory(_program(*case)).total / MIB
    assert needed < BUDGETS[case] * 1.03, f"{needed:.1f} MiB"
    assert needed > BUDGETS[case] * 0.9, f"{needed:.1f} MiB: lower the budget"


@pytest.mark.parametrize("case", CASES)
def test_the_state_is_updated_in_place(case):
    memory = program.memory(_program(*case))
    assert memory.output - memory.aliased < 8192  # only the metrics are new


def test_replicated_frozen_weights_are_never_gathered_and_only_adapters_are_reduced():
    found = collectives.by_kind(collectives.collectives(_parsed("instruct", "v5p-8", "fsdp=1", "minimal")))
    adapters = 3 * 4 * 2 * (5 * 512 + 2 * 1408)  # layers x bytes x (scale and bias) x widths
    assert found["all-gather"] == found["reduce-scatter"] == found["all-to-all"] == found["collective-permute"] == 0
    assert 0 < found["all-reduce"] < 1.05 * adapters


def test_the_kernel_is_splash_and_knows_no_plain_scores():
    text = _program("instruct", "v5p-8", "fsdp=1", "minimal").as_text() or ""
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text
    assert "f32[2,4,512,512]" not in text and "f32[2,4,1,512,512]" not in text


@pytest.mark.slow
@pytest.mark.parametrize("case", list(BUDGETS), ids="-".join)
def test_flops_of_the_real_program_are_those_of_the_unrolled_one(case):
    """Loops counted by us against layers that the compiler counts; encoders and loss chunks stand in both."""
    stage, topology, mesh, remat = case
    config = _config(stage, mesh, remat, rows=2 * slices.parse(topology).devices)
    counted = costs.costs(_parsed(*case), trip_counts=step_plan.trip_counts(config, batch_size=2)).flops
    assert counted == pytest.approx(flops.executed(config, batch_size=2), rel=0.04)


def test_memory_traffic_is_what_the_compiler_counts_where_nothing_loops():
    """An optimizer's update alone, which neither loops nor multiplies: every array read and written once."""
    device = slices.devices(slices.parse("v5e-4"))[0]
    placed = jax.sharding.SingleDeviceSharding(device)
    array = jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=placed)

    def update(weights, gradients, moment):
        moment = 0.9 * moment + gradients
        return weights - 0.1 * moment / (1 + jnp.abs(moment)), moment

    compiled = jax.jit(update, donate_argnums=(0, 2)).lower(array, array, array).compile()
    analysis: Any = compiled.cost_analysis()
    work = costs.costs(hlo.parse(compiled.as_text() or ""))
    assert work.hbm_bytes == 5 * 4 * 4096**2 == analysis["bytes accessed"]
    assert work.flops == work.host_bytes == 0


@pytest.mark.slow
def test_what_is_offloaded_goes_to_the_host_and_back():
    case = ("instruct", "v5p-8", "fsdp=1", "offload")
    kept = 3 * 2 * 512 * (6 * 512) * 2  # layers x rows x tokens x (q, k, v, context, o, down) x bytes
    work = costs.costs(_parsed(*case), trip_counts={})
    assert work.host_bytes == pytest.approx(2 * kept, rel=0.1)
    assert program.memory(_program(*case)).host == pytest.approx(kept, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_without_remat_nothing_is_multiplied_twice(stage):
    config = _config(stage, "fsdp=1", "minimal", rows=8)
    ratio = flops.executed(config, batch_size=2) / flops.minimum(config, batch_size=2)
    assert 0.99 < ratio < 1.05  # narrow layers: what is no matrix product weighs more than at 13B
    full = flops.executed(_config(stage, "fsdp=1", "full", rows=8), batch_size=2) / flops.minimum(config, batch_size=2)
    assert full > ratio + 0.2


@pytest.mark.slow
def test_the_command_says_what_a_step_needs_and_what_does_not_fit(capsys):
    options = [f"--config.{override}" for override in (*SMALL, "mesh.data=1", "mesh.fsdp=-1")]
    base = ["plan", "--config", "earthgpt_13b:align", "--topology", "v5e-4", "--json", *options]
    assert main([*base, "--per-chip-batch", "1"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] is True and 0 < values["hbm_gib_per_chip"] < values["hbm_limit_gib"] == 15.75
    assert values["estimate"] == "compiler estimate"
    assert values["collectives"]["all-gather"] + values["collectives"]["collective-permute"] > 0
    assert main([*base, "--per-chip-batch", "4096"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] is False and "Ran out of memory" in values["compiler_message"]
    assert values["hbm_gib_per_chip"] > values["hbm_limit_gib"]


@pytest.mark.slow
def test_the_engines_programs_say_what_they_need_and_do(capsys):
    mesh = ("mesh.data=2", "mesh.fsdp=1", "mesh.tensor=4")
    options = [f"--config.{override}" for override in (*SMALL, *mesh)]
    base = ["plan", "--config", "earthgpt_13b:instruct", "--topology", "v5e-8", "--inference", "--json", *options]
    assert main([*base, "--per-chip-batch", "32", "--questions-per-image", "16"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["fits"] is True and values["mesh"] == {"data": 2, "fsdp": 1, "tensor": 4}
    assert [program["name"] for program in values["programs"]] == ["encode", "prefill", "insert", "generate"]
    layout, prefix = values["state_shape"], values["prefix_tokens"]
    rows, slots = layout["images"] * layout["slots_per_image"], layout["question_tokens"] + layout["answer_tokens"]
    assert rows == 32
    # Keys and values of three layers of 512 in bfloat16, heads over four chips.
    assert values["prefixes_gib"] * 2**30 == 2 * 3 * layout["images"] * prefix * 512 * 2 / 4
    assert values["caches_gib"] * 2**30 == pytest.approx(2 * 3 * rows * slots * 512 * 2 / 4, rel=0.02)
    decode = values["programs"][-1]
    assert decode["units"] == 2 * rows
    linears = 2 * (3 * (4 * 512**2 + 3 * 512 * 1408) + 512 * 4096)
    attention = 4 * 3 * 512 * (prefix + slots + 1)
    assert decode["flops_per_chip"] == pytest.approx(rows * (linears + attention) / 4, rel=0.05)
    # No cache is ever sent, and no weight: only a token's activations, twice a layer, and its logits.
    assert decode["collectives"]["all-reduce"] + decode["collectives"]["all-gather"] < rows * 4 * (7 * 512 + 4096 + 64)
