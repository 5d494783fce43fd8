"""`earthgpt plan`: slices, the reading of HLO, hand counts; what needs no TPU compiler."""

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
def test_slices_by_name(name, chips, count):
    wanted = slices.parse(name)
    assert (wanted.chips, wanted.count, wanted.devices) == (chips, count, chips * count)


@pytest.mark.parametrize("name", ["v5e-7", "v5p-3", "0xv5e-8", "h100-8", "", "v9e-8"])
def test_other_slices_are_refused_with_a_list(name):
    with pytest.raises(EarthGPTError, match=r"v5e-8.*v5p-128"):
        slices.parse(name)


def test_collectives_in_loops_count_as_often_as_the_loop_turns():
    """A program whose collectives are known, compiled by XLA for eight CPU devices."""
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


# What the TPU compiler writes: one gather overlapped with two other operations, in a loop of three turns.
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


def test_an_overlapped_collective_is_one():
    gather, permute = collectives.collectives(hlo.parse(OVERLAPPED))
    assert (gather.kind, gather.bytes, gather.times) == ("all-gather", 32 * 4 * 2, 3)
    assert (permute.kind, permute.bytes, permute.times) == ("collective-permute", 8 * 4 * 2, 1)


@pytest.mark.parametrize(("first", "by", "turns"), [(0, 1, 3), (1, 1, 2), (0, 2, 2), (1, 2, 1), (3, 1, 0)])
def test_a_loop_may_begin_late_and_take_several_turns_at_once(first, by, turns):
    text = OVERLAPPED.replace("%first = s32[] constant(0)", f"%first = s32[] constant({first})")
    text = text.replace("%by = s32[] constant(1)", f"%by = s32[] constant({by})")
    gathers = [each for each in collectives.collectives(hlo.parse(text)) if each.kind == "all-gather"]
    assert [each.times for each in gathers] == [turns]


def test_products_of_a_program_are_those_that_the_compiler_counts():
    """Strides, paddings, gaps in input and kernel, groups, contractions: XLA's total is right where nothing loops."""

    def function(x, image, kernel, thin):
        names = ("NHWC", "HWIO", "NHWC")
        strided = jax.lax.conv_general_dilated(image, kernel, (2, 1), ((1, 2), (0, 0)), dimension_numbers=names)
        gaps = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), ((0, 1), (0, 0)), lhs_dilation=(3, 1), rhs_dilation=(2, 3), dimension_numbers=names
        )
        grouped = jax.lax.conv_general_dilated(
            image, thin, (1, 1), "SAME", dimension_numbers=names, feature_group_count=4
        )
        return jnp.einsum("abc,adc->bd", x, x), strided, gaps, grouped

    arrays = jnp.ones((3, 5, 7)), jnp.ones((2, 9, 8, 4)), jnp.ones((3, 2, 4, 6)), jnp.ones((3, 3, 1, 8))
    lowered = jax.jit(function).lower(*arrays)
    assert costs.costs(hlo.parse(lowered.compile().as_text())).flops == lowered.cost_analysis()["flops"]


def test_a_loops_body_counts_as_often_as_it_turns_and_data_may_decide():
    def function(x, kernel, turns):
        x, _ = jax.lax.scan(lambda x, _: (jnp.sin(x @ kernel), None), x, length=5)
        with jax.named_scope("some_chunks"):
            return jax.lax.fori_loop(0, turns, lambda _, x: jnp.cos(x @ kernel), x)

    text = jax.jit(function).lower(jnp.ones((8, 8)), jnp.ones((8, 8)), 3).compile().as_text()
    one = 2 * 8**3
    assert costs.costs(hlo.parse(text)).flops == (5 + 1) * one
    assert costs.costs(hlo.parse(text), trip_counts={"some_chunks": 4}).flops == (5 + 4) * one


# What the TPU compiler writes: a layer's weight sliced out of the stack into the chip's own memory (S(1)), a product
# with it there, and the result written into its place of a stack in the host's memory (S(5)).
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


def test_only_what_leaves_the_chip_is_moved_and_of_a_stack_only_the_slice():
    work = costs.costs(hlo.parse(MOVED))
    assert work.flops == 2 * 256 * 128 * 512
    weight, inputs, output = 2 * 128 * 512, 2 * 256 * 128, 2 * 256 * 512
    assert work.hbm_bytes == weight + (inputs + output) + output  # sliced; product; read again to be kept
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
def test_who_takes_part_in_a_collective(groups, members):
    text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  ROOT %a = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}\n}}"
    (found,) = collectives.collectives(hlo.parse(text))
    assert (found.group_size, found.crosses_slices) == (members, False)
    assert found.sent == 2 * 32 * (members - 1) / members


# What the TPU compiler writes for an all-reduce over two slices: each chip's share goes to its host's runtime.
BETWEEN = """
ENTRY %main (x: bf16[1024,8,128]) -> bf16[1024,8,128] {
  %send.3 = (bf16[1024,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %after-all.3), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.5_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.3 = (bf16[1024,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after-all.3), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.3 = token[] send-done(%send.3), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %recv-done.3 = (bf16[1024,8,128]{2,1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.3), channel_id=1, is_host_transfer=true
}
"""  # noqa: E501


def test_what_crosses_slices_goes_through_the_hosts():
    (found,) = collectives.collectives(hlo.parse(BETWEEN), slices=2)
    assert (found.kind, found.bytes, found.crosses_slices) == ("all-reduce", 2 * 2**20, True)
    assert found.sent == 2 * 2**20


def test_the_bound_is_the_slowest_part():
    wanted = slices.parse("2xv5e-8")
    assert wanted.ici_gb_per_second == 2 * 50  # 2x4: two open axes
    assert slices.parse("v5e-256").ici_gb_per_second == 4 * 50
    assert slices.parse("v5p-128").ici_gb_per_second == 6 * 100
    one = {"kind": "all-gather", "times": 1, "operation": "", "group_size": 2}
    sent = [
        collectives.Collective(bytes=2 * 10**9, crosses_slices=False, **one),
        collectives.Collective(bytes=2 * 10**8, crosses_slices=True, **one),
    ]
    work = costs.Costs(flops=1.97e12, hbm_bytes=8.19e9, host_bytes=0.0)
    bound = roofline.roofline(work, sent, wanted, tokens=640, minimum_flops=1.97e12)
    assert (bound.compute, bound.hbm, bound.ici, bound.dcn, bound.host) == pytest.approx((0.01, 0.01, 0.01, 0.032, 0))
    assert bound.bound_by == "dcn" and bound.tokens_per_second == pytest.approx(20_000)
    assert bound.mfu == pytest.approx(0.01 / 0.032)


def test_products_are_counted_through_loops():
    def function(x, kernel):
        x, _ = jax.lax.scan(lambda x, _: (jax.jit(lambda x: x @ kernel)(x), None), x, length=3)
        image = x.reshape(1, 4, 4, 2)
        return jax.lax.conv_general_dilated(
            image, jnp.ones((3, 3, 1, 6)), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )  # fmt: skip

    x, kernel = jnp.ones((4, 8)), jnp.ones((8, 8))
    assert flops.products(function, x, kernel) == 3 * 2 * 4 * 8 * 8 + 2 * 16 * 6 * 9


def test_the_minimum_of_the_13b_stages_beside_full_fine_tuning():
    """By hand, per token: 12.688e9 weights in the blocks, a third of them in attention; 163.84e6 in the head."""
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
    first = 3 * 5120**2  # nothing before layer 0 is trained: no gradient of its q, k, v's input
    assert flops.minimum(configs["instruct"], batch_size=1) == pytest.approx(
        2 * tokens * (2 * blocks + 2 * head - first) + outside["instruct"], rel=1e-4
    )
    assert flops.minimum(configs["align"], batch_size=1, trainable=full) == pytest.approx(
        2 * tokens * (3 * blocks + 3 * head) + outside["align"], rel=1e-4
    )


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(slices, "compiler_is_available", lambda: False)


def test_without_a_compiler_the_shapes_are_added_up(no_compiler):
    config = config_lib.load("earthgpt_13b:instruct", ["--config.mesh.fsdp=4"])
    result = step_plan.plan_step(config, slices.parse("v5e-4"), per_chip_batch=1)
    assert result.fits is None and result.hbm_gib_per_chip is None
    assert result.mesh == {"data": 1, "fsdp": 4, "tensor": 1} and result.per_chip_batch == 1
    # 13.016e9 parameters of the LLM and 0.5e9 of the encoders in bfloat16 over four chips; fp32 adapters with moments.
    assert result.frozen_gib == pytest.approx(2 * (13.016e9 + 0.5006e9 + 35.7e6) / 4 / 2**30, rel=2e-3)
    assert result.state_gib == pytest.approx(3 * 4 * 4_259_840 / 2**30, rel=1e-3)
    assert list(result.replicated) == ["vit/position"] or not result.replicated
    assert "libtpu" in report.format_step_plan(result) and "?" in report.format_step_plan(result)


def test_the_command_prints_json_and_refuses_what_cannot_be(no_compiler, capsys):
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


def test_the_smallest_slice_that_holds_the_shapes(no_compiler, capsys):
    """`align`: 50.5 GB of state, 16.8 of gradients, 18.6 frozen; a chip of v5e holds 16.9 GB, one of v6e 33.6."""
    align, instruct = (config_lib.load(f"earthgpt_13b:{stage}") for stage in ("align", "instruct"))
    found = search.smallest_slice(align, slices.parse("v5e-256"), per_chip_batch=1)
    assert found.topology == "v5e-8" and found.fits is None
    assert search.smallest_slice(align, slices.parse("v6e-8"), per_chip_batch=1).topology == "v6e-4"
    assert search.smallest_slice(instruct, slices.parse("v5e-8"), per_chip_batch=1).topology == "v5e-4"
    none = ["plan", "--config", "earthgpt_13b:instruct", "--topology", "v5e-4", "--smallest", "--config.mesh.fsdp=1"]
    assert main([*none, "--per-chip-batch", "1"]) == 2
    assert "no v5e slice fits" in capsys.readouterr().err


def test_several_slices_are_a_table(no_compiler, capsys):
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
    assert [each["chips"] for each in values] == [4, 16]


def test_microbatches_are_kept_and_hold_their_rows(no_compiler):
    config = config_lib.load("earthgpt_13b:align", ["--config.optim.microbatches=4"])
    result = step_plan.plan_step(config, slices.parse("v5e-8"), per_chip_batch=2)
    once = step_plan.plan_step(config_lib.load("earthgpt_13b:align"), slices.parse("v5e-8"), per_chip_batch=2)
    assert (result.microbatches, result.per_chip_batch) == (4, 2)
    assert result.batch_gib == pytest.approx(4 * once.batch_gib)
    assert result.minimum_flops_per_chip == pytest.approx(4 * once.minimum_flops_per_chip)
    assert "4 microbatches" in report.format_step_plan(result)
    assert step_plan.plan_step(config, slices.parse("v5e-8")).per_chip_batch == 1  # the recipe's 32 rows, 8 at a time


def test_loops_that_data_decides_turn_in_full():
    """1024 positions in chunks of 256; three images a row, so six: in threes of two, what divides them up to eight."""
    config = config_lib.load("earthgpt_13b:align", ["--config.data.seq_len=1024"])
    assert step_plan.trip_counts(config, batch_size=2) == {"loss_chunks": 4, "image_chunks": 3}
    assert step_plan.trip_counts(config, batch_size=8, loss_chunk=1024) == {"loss_chunks": 1, "image_chunks": 3}


def test_the_search_finds_the_largest_batch_without_trying_all(monkeypatch):
    limit, tried = 13, []

    def fake(config, wanted, *, per_chip_batch):
        tried.append(per_chip_batch)
        return result(per_chip_batch)

    def result(rows: int) -> step_plan.StepPlan:
        return step_plan.StepPlan(
            recipe="", stage="", topology="", chips=1, mesh={}, remat="", per_chip_batch=rows, microbatches=1,
            seq_len=1, estimate="", state_gib=1.0, gradients_gib=0.0, frozen_gib=1.0, batch_gib=0.0,
            hbm_limit_gib=15.0, hbm_gib_per_chip=2.5 + rows, fits=rows <= limit,
        )  # fmt: skip

    monkeypatch.setattr(step_plan, "plan_step", fake)
    config = nano.config("align")
    for start in (1, 4, 13, 14, 40):
        tried.clear()
        assert search.largest_batch(config, slices.parse("v5e-8"), start=result(start)) == limit
        assert len(tried) <= 27
    limit = 0
    assert search.largest_batch(config, slices.parse("v5e-8"), start=result(2)) == 0
    assert np.all(np.asarray(tried) > 0)
