"""`earthgpt plan` without the TPU compiler: slices, HLO parsing, FLOPs counted by hand, plans from shapes."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from earthgpt_jax import config as config_lib
from earthgpt_jax.aot import collectives, costs, flops, hlo, program, report, roofline, search, slices, step_plan
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import MeshConfig
from earthgpt_jax.models import earthgpt
from earthgpt_jax.sharding.mesh import build_mesh
from earthgpt_jax.training.stages import Trainable
from tests.support import nano


@pytest.mark.parametrize(
    ("name", "chips", "count"), [("v5e-8", 8, 1), ("v5p-128", 64, 1), ("v6e-256", 256, 1), ("2xv5e-256", 256, 2)]
)
def test_slices_are_parsed_by_name(name, chips, count):
    slice_ = slices.parse(name)
    assert (slice_.chips, slice_.count, slice_.devices) == (chips, count, chips * count)


@pytest.mark.parametrize("name", ["v5e-7", "v5p-3", "0xv5e-8", "h100-8", "", "v9e-8"])
def test_an_unknown_slice_is_refused_with_a_list_of_slices(name):
    with pytest.raises(EarthGPTError, match=r"v5e-8.*v5p-128"):
        slices.parse(name)


def test_a_collective_in_a_loop_counts_once_per_iteration():
    """A program with known collectives, compiled by XLA for eight CPU devices."""
    mesh = build_mesh(MeshConfig(data=2, fsdp=4), rows=8)

    def local(x):
        def body(x, _):
            return jnp.sin(jax.lax.psum(x, ("data", "fsdp"))), None

        x, _ = jax.lax.scan(body, x, length=5)
        gathered = jax.lax.all_gather(x, "fsdp")
        return jax.lax.psum_scatter(gathered, "fsdp", scatter_dimension=0) + jax.lax.ppermute(
            x, "data", [(0, 1), (1, 0)]
        )

    step = jax.shard_map(local, mesh=mesh, in_specs=P(None), out_specs=P("fsdp"), check_vma=False)
    text = jax.jit(step).lower(jnp.ones((1, 100))).compile().as_text()
    found = collectives.by_kind(collectives.collectives(hlo.parse(text)))
    assert found == {
        "all-reduce": 5 * 100 * 4,
        "all-gather": 4 * 100 * 4,
        "reduce-scatter": 4 * 100 * 4,
        "collective-permute": 100 * 4,
        "all-to-all": 0,
    }


# As emitted by the TPU compiler: one all-gather overlapped with two other operations, in a loop with trip count 3.
OVERLAPPED = """
HloModule m

%start (p: bf16[8,4]) -> bf16[32,4] {
  ROOT %all-gather.1 = bf16[32,4]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%done (p: bf16[8,4]) -> bf16[32,4] {
  ROOT %all-gather.2 = bf16[32,4]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %t = (s32[], bf16[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %by = s32[] constant(1)
  %next = s32[] add(%i, %by)
  %one = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%start
  %two = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%done
  ROOT %carried = (s32[], bf16[8,4]) tuple(%next, %x)
}

%condition (t: (s32[], bf16[8,4])) -> pred[] {
  %t = (s32[], bf16[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %first = s32[] constant(0)
  %t = (s32[], bf16[8,4]) tuple(%first, %x)
  %loop = (s32[], bf16[8,4]) while(%t), condition=%condition, body=%body
  %pair = (bf16[8,4], bf16[8,4], u32[], u32[]) collective-permute-start(%x), channel_id=9
}
"""


def test_an_overlapped_collective_counts_once():
    gather, permute = collectives.collectives(hlo.parse(OVERLAPPED))
    assert (gather.kind, gather.bytes, gather.times) == ("all-gather", 32 * 4 * 2, 3)
    assert (permute.kind, permute.bytes, permute.times) == ("collective-permute", 8 * 4 * 2, 1)


@pytest.mark.parametrize(("first", "by", "trip_count"), [(0, 1, 3), (1, 1, 2), (0, 2, 2), (1, 2, 1), (3, 1, 0)])
def test_peeled_and_unrolled_loops_have_fewer_iterations(first, by, trip_count):
    text = OVERLAPPED.replace("%first = s32[] constant(0)", f"%first = s32[] constant({first})")
    text = text.replace("%by = s32[] constant(1)", f"%by = s32[] constant({by})")
    gathers = [entry for entry in collectives.collectives(hlo.parse(text)) if entry.kind == "all-gather"]
    assert [entry.times for entry in gathers] == [trip_count]


def test_flops_of_a_program_equal_the_compilers_count():
    """Strides, padding, dilation of input and kernel, groups, contractions; XLA's total is exact without loops."""

    def function(x, image, kernel, thin):
        names = ("NHWC", "HWIO", "NHWC")
        strided = jax.lax.conv_general_dilated(image, kernel, (2, 1), ((1, 2), (0, 0)), dimension_numbers=names)
        dilated = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), ((0, 1), (0, 0)), lhs_dilation=(3, 1), rhs_dilation=(2, 3), dimension_numbers=names
        )
        grouped = jax.lax.conv_general_dilated(
            image, thin, (1, 1), "SAME", dimension_numbers=names, feature_group_count=4
        )
        return jnp.einsum("abc,adc->bd", x, x), strided, dilated, grouped

    arrays = jnp.ones((3, 5, 7)), jnp.ones((2, 9, 8, 4)), jnp.ones((3, 2, 4, 6)), jnp.ones((3, 3, 1, 8))
    lowered = jax.jit(function).lower(*arrays)
    assert costs.costs(hlo.parse(lowered.compile().as_text())).flops == lowered.cost_analysis()["flops"]


def test_a_loop_body_counts_once_per_iteration_even_if_data_determines_the_trip_count():
    def function(x, kernel, trip_count):
        x, _ = jax.lax.scan(lambda x, _: (jnp.sin(x @ kernel), None), x, length=5)
        with jax.named_scope("some_chunks"):
            return jax.lax.fori_loop(0, trip_count, lambda _, x: jnp.cos(x @ kernel), x)

    text = jax.jit(function).lower(jnp.ones((8, 8)), jnp.ones((8, 8)), 3).compile().as_text()
    one = 2 * 8**3
    assert costs.costs(hlo.parse(text)).flops == (5 + 1) * one
    assert costs.costs(hlo.parse(text), trip_counts={"some_chunks": 4}).flops == (5 + 4) * one


# As emitted by the TPU compiler: the weight of a layer is sliced out of the stacked weights into on-chip memory (S(1)),
# multiplied there, and the result is written to its slice of a stacked array in host memory (S(5)).
MOVED = """
HloModule m

%slice (p: bf16[6,128,512], i: s32[]) -> bf16[1,128,512] {
  %p = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  ROOT %dynamic-slice.3 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,128,512}
}

%product (x: bf16[256,128], w: bf16[1,128,512]) -> bf16[256,512] {
  %x = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %flat = bf16[128,512]{1,0:T(8,128)(2,1)} bitcast(%w)
  ROOT %convolution.7 = bf16[256,512]{1,0:T(8,128)(2,1)} convolution(%x, %flat), dim_labels=bf_io->bf
}

%keep (stack: bf16[6,256,512], y: bf16[1,256,512], i: s32[]) -> bf16[6,256,512] {
  %stack = bf16[6,256,512]{2,1,0:T(8,128)(2,1)S(5)} parameter(0)
  %y = bf16[1,256,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  ROOT %update = bf16[6,256,512]{2,1,0:T(8,128)(2,1)S(5)} dynamic-update-slice(%stack, %y, %i, %i, %i)
}

ENTRY %main (w: bf16[6,128,512], x: bf16[256,128], stack: bf16[6,256,512], i: s32[]) -> bf16[6,256,512] {
  %w = bf16[6,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[256,128]{1,0:T(8,128)(2,1)} parameter(1)
  %stack = bf16[6,256,512]{2,1,0:T(8,128)(2,1)S(5)} parameter(2)
  %i = s32[]{:T(128)S(6)} parameter(3)
  %layer = bf16[1,128,512]{2,1,0:T(8,128)(2,1)S(1)} fusion(%w, %i), kind=kLoop, calls=%slice
  %y = bf16[256,512]{1,0:T(8,128)(2,1)} fusion(%x, %layer), kind=kOutput, calls=%product
  %again = bf16[1,256,512]{2,1,0:T(8,128)(2,1)} bitcast(%y)
  ROOT %kept = bf16[6,256,512]{2,1,0:T(8,128)(2,1)S(5)} fusion(%stack, %again, %i), kind=kLoop, calls=%keep
}
"""  # noqa: E501


def test_on_chip_arrays_cause_no_traffic_and_a_slice_counts_as_the_slice():
    work = costs.costs(hlo.parse(MOVED))
    assert work.flops == 2 * 256 * 128 * 512
    weight, inputs, output = 2 * 128 * 512, 2 * 256 * 128, 2 * 256 * 512
    assert (
        work.hbm_bytes == weight + (inputs + output) + output
    )  # the slice; the product; its result, read again to be offloaded
    assert work.host_bytes == output


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", 4),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}", 8),
    ],
)
def test_group_sizes_of_a_collective(groups, members):
    text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  ROOT %a = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}\n}}"
    (found,) = collectives.collectives(hlo.parse(text))
    assert (found.group_size, found.crosses_slices) == (members, False)
    assert found.sent == 2 * 32 * (members - 1) / members


# As emitted by the TPU compiler for an all-reduce over two slices: each chip sends its share to its host's runtime.
BETWEEN = """
ENTRY %main (x: bf16[1024,8,128]) -> bf16[1024,8,128] {
  %send.3 = (bf16[1024,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %after-all.3), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.5_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.3 = (bf16[1024,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after-all.3), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.3 = token[] send-done(%send.3), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %recv-done.3 = (bf16[1024,8,128]{2,1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.3), channel_id=1, is_host_transfer=true
}
"""  # noqa: E501


def test_traffic_between_slices_is_found_in_the_transfers_to_hosts():
    (found,) = collectives.collectives(hlo.parse(BETWEEN), slices=2)
    assert (found.kind, found.bytes, found.crosses_slices) == ("all-reduce", 2 * 2**20, True)
    assert found.sent == 2 * 2**20


def test_the_roofline_is_the_slowest_resource():
    slice_ = slices.parse("2xv5e-8")
    assert slice_.ici_gb_per_second == 2 * 50  # 2x4: two axes that are no rings
    assert slices.parse("v5e-256").ici_gb_per_second == 4 * 50
    assert slices.parse("v5p-128").ici_gb_per_second == 6 * 100
    one = {"kind": "all-gather", "times": 1, "operation": "", "group_size": 2}
    communication = [
        collectives.Collective(bytes=2 * 10**9, crosses_slices=False, **one),
        collectives.Collective(bytes=2 * 10**8, crosses_slices=True, **one),
    ]
    work = costs.Costs(flops=1.97e12, hbm_bytes=8.19e9, host_bytes=0.0)
    bound = roofline.roofline(work, communication, slice_, tokens=640, minimum_flops=1.97e12)
    assert (bound.compute, bound.hbm, bound.ici, bound.dcn, bound.host) == pytest.approx((0.01, 0.01, 0.01, 0.032, 0))
    assert bound.bound_by == "dcn" and bound.tokens_per_second == pytest.approx(20_000)
    assert bound.mfu == pytest.approx(0.01 / 0.032)


def test_flops_of_a_function_include_its_loops():
    def function(x, kernel):
        x, _ = jax.lax.scan(lambda x, _: (jax.jit(lambda x: x @ kernel)(x), None), x, length=3)
        image = x.reshape(1, 4, 4, 2)
        return jax.lax.conv_general_dilated(
            image, jnp.ones((3, 3, 1, 6)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )  # fmt: skip

    x, kernel = jnp.ones((4, 8)), jnp.ones((8, 8))
    assert flops.products(function, x, kernel) == 3 * 2 * 4 * 8 * 8 + 2 * 16 * 6 * 9


def test_the_minimum_flops_of_the_13b_stages_and_of_full_fine_tuning():
    """By hand: 12.688e9 weights in the blocks, a third of them in attention, and 163.84e6 in the head."""
    tokens, blocks, attention, head = 1024, 12.6877e9, 4.1943e9, 163.84e6
    configs = {
        stage: config_lib.load(f"earthgpt_13b:{stage}", ["--config.data.seq_len=1024"])
        for stage in ("align", "instruct")
    }
    outside = {stage: flops._before_llm(configs[stage], batch_size=1, trainable={}) for stage in configs}
    full = {p: Trainable(group="all", decay=False) for p in earthgpt.abstract(configs["align"].model)[1] if "llm" in p}
    projector = 2 * 6976 * 5120 * 257 * program.batch_shapes(configs["align"]).images.shape[1]
    assert flops.minimum(configs["align"], batch_size=1) == pytest.approx(
        2 * tokens * (2 * blocks + attention + 2 * head) + outside["align"] + projector, rel=1e-4
    )
    first = 3 * 5120**2  # nothing before layer 0 is trainable, so its q, k and v need no input gradient
    assert flops.minimum(configs["instruct"], batch_size=1) == pytest.approx(
        2 * tokens * (2 * blocks + 2 * head - first) + outside["instruct"], rel=1e-4
    )
    assert flops.minimum(configs["align"], batch_size=1, trainable=full) == pytest.approx(
        2 * tokens * (3 * blocks + 3 * head) + outside["align"], rel=1e-4
    )


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(slices, "compiler_is_available", lambda: False)


def test_without_a_compiler_the_sizes_follow_from_shapes(no_compiler):
    config = config_lib.load("earthgpt_13b:instruct", ["--config.mesh.fsdp=4"])
    plan = step_plan.plan_step(config, slices.parse("v5e-4"), per_chip_batch=1)
    assert plan.fits is None and plan.hbm_gib_per_chip is None
    assert plan.mesh == {"data": 1, "fsdp": 4, "tensor": 1} and plan.per_chip_batch == 1
    # 13.016e9 parameters of the LLM and 0.5e9 of the encoders in bfloat16 over four chips; fp32 adapters with moments.
    assert plan.frozen_gib == pytest.approx(2 * (13.016e9 + 0.5006e9 + 35.7e6) / 4 / 2**30, rel=2e-3)
    assert plan.state_gib == pytest.approx(3 * 4 * 4_259_840 / 2**30, rel=1e-3)
    assert list(plan.replicated) == ["vit/position"] or not plan.replicated
    assert "libtpu" in report.format_step_plan(plan) and "?" in report.format_step_plan(plan)


def test_the_command_prints_json_and_refuses_invalid_options(no_compiler, capsys):
    base = ["plan", "--config", "earthgpt_13b:align", "--topology", "v5e-8"]
    assert main([*base, "--json", "--per-chip-batch", "2"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {"hbm_gib_per_chip", "fits", "flops_per_chip", "collectives"} <= values.keys()
    assert values["stage"] == "align" and values["chips"] == 8 and values["per_chip_batch"] == 2
    for wrong, message in (
        (["--config.mesh.fsdp=3"], "multiply to 8 devices"),
        (["--per-chip-batch", "0"], "expected a positive number"),
        (["--config.mesh.tensor=3"], "expected a divisor of model.llm.heads=40"),
    ):
        assert main([*base, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_the_smallest_slice_holds_the_arguments_and_gradients(no_compiler, capsys):
    """`align` has 50.5 GB of state, 16.8 GB of gradients and 18.6 GB frozen; v5e chips hold 16.9 GB, v6e 33.6 GB."""
    align, instruct = (config_lib.load(f"earthgpt_13b:{stage}") for stage in ("align", "instruct"))
    found = search.smallest_slice(align, slices.parse("v5e-256"), per_chip_batch=1)
    assert found.topology == "v5e-8" and found.fits is None
    assert search.smallest_slice(align, slices.parse("v6e-8"), per_chip_batch=1).topology == "v6e-4"
    assert search.smallest_slice(instruct, slices.parse("v5e-8"), per_chip_batch=1).topology == "v5e-4"
    none = ["plan", "--config", "earthgpt_13b:instruct", "--topology", "v5e-4", "--smallest", "--config.mesh.fsdp=1"]
    assert main([*none, "--per-chip-batch", "1"]) == 2
    assert "no v5e slice fits" in capsys.readouterr().err


def test_several_slices_print_a_table(no_compiler, capsys):
    base = ["plan", "--config", "earthgpt_13b:align", "--per-chip-batch", "1", "--topology"]
    assert main([*base, "v5e-4", "v5e-16", "2xv5e-256"]) == 0  # one of them fits
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["slice", "v5e-4", "v5e-16"]
    assert lines[3].split()[6] == "no" and lines[4].split()[6] == "?"
    assert "2xv5e-256: mesh: expected data to be a multiple of the 2 slices" in text
    assert main([*base, "v5e-4"]) == 1
    capsys.readouterr()
    assert main([*base, "v5e-4", "v5e-16", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [plan["chips"] for plan in values] == [4, 16]


def test_a_plan_keeps_the_microbatches_of_the_recipe(no_compiler):
    config = config_lib.load("earthgpt_13b:align", ["--config.optim.microbatches=4"])
    plan = step_plan.plan_step(config, slices.parse("v5e-8"), per_chip_batch=2)
    single = step_plan.plan_step(config_lib.load("earthgpt_13b:align"), slices.parse("v5e-8"), per_chip_batch=2)
    assert (plan.microbatches, plan.per_chip_batch) == (4, 2)
    assert plan.batch_gib == pytest.approx(4 * single.batch_gib)
    assert plan.minimum_flops_per_chip == pytest.approx(4 * single.minimum_flops_per_chip)
    assert "4 microbatches" in report.format_step_plan(plan)
    assert step_plan.plan_step(config, slices.parse("v5e-8")).per_chip_batch == 1  # batch 32 in 4 microbatches of 8


def test_loops_whose_trip_count_depends_on_data_count_in_full():
    """1024 positions in chunks of 256; 2 x 3 images in chunks of gcd(6, 8) = 2, and 8 x 3 images in chunks of 8."""
    config = config_lib.load("earthgpt_13b:align", ["--config.data.seq_len=1024"])
    assert step_plan.trip_counts(config, batch_size=2) == {"loss_chunks": 4, "image_chunks": 3}
    assert step_plan.trip_counts(config, batch_size=8, loss_chunk=1024) == {"loss_chunks": 1, "image_chunks": 3}


def test_the_search_finds_the_largest_batch_with_few_plans(monkeypatch):
    limit, tried = 13, []

    def fake_plan_step(config, slice_, *, per_chip_batch):
        tried.append(per_chip_batch)
        return plan(per_chip_batch)

    def plan(batch: int) -> step_plan.StepPlan:
        return step_plan.StepPlan(
            recipe="", stage="", topology="", chips=1, mesh={}, remat="", per_chip_batch=batch, microbatches=1,
            seq_len=1, estimate="", state_gib=1.0, gradients_gib=0.0, frozen_gib=1.0, batch_gib=0.0,
            hbm_limit_gib=15.0, hbm_gib_per_chip=2.5 + batch, fits=batch <= limit,
        )  # fmt: skip

    monkeypatch.setattr(step_plan, "plan_step", fake_plan_step)
    config = nano.config("align")
    for start in (1, 4, 13, 14, 40):
        tried.clear()
        assert search.largest_batch(config, slices.parse("v5e-8"), start=plan(start)) == limit
        assert len(tried) <= 27
    limit = 0
    assert search.largest_batch(config, slices.parse("v5e-8"), start=plan(2)) == 0
    assert np.all(np.asarray(tried) > 0)
