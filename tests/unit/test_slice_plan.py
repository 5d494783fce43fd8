"""`earthgpt plan`: slices, the reading of HLO, hand counts; what needs no TPU compiler."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from earthgpt_jax import config as config_lib
from earthgpt_jax.cli.main import main
from earthgpt_jax.config import MeshConfig
from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.models import earthgpt
from earthgpt_jax.plan import flops, hlo, program, report, slices
from earthgpt_jax.sharding.mesh import build_mesh
from earthgpt_jax.training.stages import Trained
from tests import nano


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
    found = hlo.by_kind(hlo.collectives(text))
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
  %one = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%start
  ROOT %two = bf16[32,4]{1,0} fusion(%x), kind=kCustom, calls=%done
}

%condition (t: (s32[], bf16[8,4])) -> pred[] {
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %loop = (s32[], bf16[8,4]) while(%t), condition=%condition, body=%body
  %pair = (bf16[8,4], bf16[8,4], u32[], u32[]) collective-permute-start(%x), channel_id=9
}
"""


def test_an_overlapped_collective_is_one():
    gather, permute = hlo.collectives(OVERLAPPED)
    assert (gather.kind, gather.bytes, gather.times) == ("all-gather", 32 * 4 * 2, 3)
    assert (permute.kind, permute.bytes, permute.times) == ("collective-permute", 8 * 4 * 2, 1)


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
        stage: config_lib.load(f"earthgpt_13b:{stage}", ["--config.data.tokens_per_row=1024"])
        for stage in ("align", "instruct")
    }
    outside = {stage: flops._before(configs[stage], rows=1, trained={}) for stage in configs}
    full = {p: Trained(group="all", decay=False) for p in earthgpt.abstract(configs["align"].model)[1] if "llm" in p}
    projector = 2 * 6976 * 5120 * 257 * program.batch_shapes(configs["align"]).images.shape[1]
    assert flops.minimum(configs["align"], rows=1) == pytest.approx(
        2 * tokens * (2 * blocks + attention + 2 * head) + outside["align"] + projector, rel=1e-4
    )
    first = 3 * 5120**2  # nothing before layer 0 is trained: no gradient of its q, k, v's input
    assert flops.minimum(configs["instruct"], rows=1) == pytest.approx(
        2 * tokens * (2 * blocks + 2 * head - first) + outside["instruct"], rel=1e-4
    )
    assert flops.minimum(configs["align"], rows=1, trained=full) == pytest.approx(
        2 * tokens * (3 * blocks + 3 * head) + outside["align"], rel=1e-4
    )


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(slices, "compiler_is_there", lambda: False)


def test_without_a_compiler_the_shapes_are_added_up(no_compiler):
    config = config_lib.load("earthgpt_13b:instruct", ["--config.mesh.fsdp=4"])
    result = report.plan(config, slices.parse("v5e-4"), per_chip_batch=1, question=report.Question())
    assert result.fits is None and result.hbm_gib_per_chip is None
    assert result.mesh == {"data": 1, "fsdp": 4, "tensor": 1} and result.per_chip_batch == 1
    # 13.016e9 parameters of the LLM and 0.5e9 of the encoders in bfloat16 over four chips; fp32 adapters with moments.
    assert result.frozen_gib == pytest.approx(2 * (13.016e9 + 0.5006e9 + 35.7e6) / 4 / 2**30, rel=2e-3)
    assert result.state_gib == pytest.approx(3 * 4 * 4_259_840 / 2**30, rel=1e-3)
    assert list(result.replicated) == ["vit/position"] or not result.replicated
    assert "libtpu" in report.text(result) and "?" in report.text(result)


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


def test_the_search_finds_the_largest_batch_without_trying_all(monkeypatch):
    limit, tried = 13, []

    def fake(config, wanted, *, per_chip_batch, question):
        tried.append(per_chip_batch)
        return result(per_chip_batch)

    def result(rows: int) -> report.Plan:
        return report.Plan(
            recipe="", stage="", topology="", chips=1, mesh={}, remat="", per_chip_batch=rows, tokens_per_row=1,
            estimate="", state_gib=1.0, frozen_gib=1.0, batch_gib=0.0, hbm_limit_gib=15.0,
            hbm_gib_per_chip=2.5 + rows, fits=rows <= limit,
        )  # fmt: skip

    monkeypatch.setattr(report, "plan", fake)
    config = nano.config("align")
    for start in (1, 4, 13, 14, 40):
        tried.clear()
        assert report.largest_batch(config, slices.parse("v5e-8"), start=result(start)) == limit
        assert len(tried) <= 27
    limit = 0
    assert report.largest_batch(config, slices.parse("v5e-8"), start=result(2)) == 0
    assert np.all(np.asarray(tried) > 0)
