"""The sharding rules cover every recipe, and an unsuitable mesh is refused with all reasons."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from earthgpt_jax import config as config_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterKind, MeshConfig, Stage
from earthgpt_jax.models import earthgpt
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import axis_sizes, build_mesh, constrain, use_mesh

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def _shapes(name: str, *overrides: str):
    config = config_lib.load(name, [f"--config.{override}" for override in overrides])
    return config.model, earthgpt.abstract(config.model)[1]


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("recipe", ["tiny", "tiny_real", "earthgpt_7b", "earthgpt_13b", "sphinx_light", "llama3_1b"])
def test_the_rules_cover_every_recipe_exactly(recipe, stage):
    model, shapes = _shapes(f"{recipe}:{stage}")
    assert rules.specs(model, shapes, sizes=ONE).keys() == shapes.keys()


VARIANTS = [
    *(f"model.adapter.kind='{kind}'" for kind in (AdapterKind.BIAS, AdapterKind.LORA)),
    "model.adapter.targets=('q','v')", "model.adapter.targets=('down',)", "model.perception.cnn_fuse=sum",
    "model.vit.mlp=swiglu", "model.llm.tied_head=True", "model.llm.attention_bias=True", "model.llm.mlp_bias=True",
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rules_cover_every_variant_exactly(variant):
    model, shapes = _shapes("tiny:instruct", variant)
    assert rules.specs(model, shapes, sizes=ONE).keys() == shapes.keys()


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 256, 1), (4, 64, 1), (8, 4, 8), (1, 64, 4)])
def test_13b_divides_over_common_meshes_and_no_large_parameter_is_replicated(stage, sizes):
    model, shapes = _shapes(f"earthgpt_13b:{stage}")
    axes = dict(zip(ONE, sizes, strict=True))
    specs = rules.specs(model, shapes, sizes=axes)
    whole = rules.replicated(shapes, specs, sizes=axes)
    assert [entry.path for entry in whole] == ["vit/position"]
    assert sum(entry.bytes for entry in whole) < 10 * 2**20
    blocks = {path: shape for path, shape in shapes.items() if path.startswith("llm/blocks/")}
    share = {path: np.prod([axes[axis] for axis in specs[path] if axis]) for path in blocks}
    per_device = sum(np.prod(shape.shape) / share[path] for path, shape in blocks.items())
    total = sum(np.prod(shape.shape) for shape in blocks.values())
    assert per_device < total / (axes["fsdp"] * axes["tensor"]) + 5e6  # norms and adapters


def test_large_replicated_parameters_are_listed_largest_first():
    model, shapes = _shapes("earthgpt_13b:instruct")
    axes = {**ONE, "data": 8}
    whole = rules.replicated(shapes, rules.specs(model, shapes, sizes=axes), sizes=axes)
    assert whole[0].path.startswith("llm/blocks/mlp/") and whole[0].bytes == 40 * 5120 * 13824 * 4


def test_all_dimensions_that_do_not_divide_are_reported_at_once():
    model, shapes = _shapes("earthgpt_13b:instruct")
    with pytest.raises(EarthGPTError) as error:
        rules.specs(model, shapes, sizes={"data": 1, "fsdp": 3, "tensor": 16})
    text = str(error.value)
    assert "llm.heads: 40 heads do not divide over tensor=16" in text
    assert "llm/blocks/attn/q/kernel: 5120 of (40, 5120, 5120) does not divide over fsdp=3" in text
    assert "llm/embed: 5120 of (32000, 5120) does not divide over fsdp=3" in text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P("fsdp", "fsdp"), "llm/embed: axis 'fsdp' is used twice"),
        (P("sequence"), "llm/embed: axis 'sequence' is not an axis of the mesh"),
        (P(None, None, "fsdp"), "llm/embed: 3 axes for an array of shape"),
    ],
)
def test_a_wrong_rule_is_refused(monkeypatch, spec, message):
    model, shapes = _shapes("tiny:align")
    table = [(pattern, spec if pattern == "llm/embed" else axes) for pattern, axes in rules.table(model)]
    monkeypatch.setattr(rules, "table", lambda _: table)
    with pytest.raises(EarthGPTError, match=message):
        rules.specs(model, shapes, sizes=ONE)


def test_a_tensor_axis_of_16_is_refused_for_40_heads():
    with pytest.raises(EarthGPTError, match=r"mesh.tensor: expected a divisor of model.llm.heads=40, got 16"):
        config_lib.load("earthgpt_13b:align", ["--config.mesh.tensor=16"])
    with pytest.raises(EarthGPTError, match="expected -1 for at most one of them"):
        config_lib.load("earthgpt_13b:align", ["--config.mesh.data=-1", "--config.mesh.fsdp=-1"])


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 2)),
    ],
)
def test_an_axis_of_minus_one_takes_the_remaining_devices(config, sizes):
    assert axis_sizes(config, devices=8, rows=16) == sizes
    assert tuple(build_mesh(config, rows=16).shape.values()) == sizes


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        (MeshConfig(fsdp=3), 6, "expected sizes that multiply to 8 devices"),
        (MeshConfig(data=2, fsdp=2), 8, "expected sizes that multiply to 8 devices"),
        (
            MeshConfig(fsdp=4),
            12,
            r"expected data \* fsdp to divide the 12 packed sequences of a microbatch, got 2 \* 4",
        ),
    ],
)
def test_an_unsuitable_mesh_is_refused(config, rows, message):
    with pytest.raises(EarthGPTError, match=message):
        axis_sizes(config, devices=8, rows=rows)


def test_constraints_apply_where_they_divide_and_do_nothing_without_a_mesh():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2), rows=4)
    inside = jax.jit(use_mesh(mesh)(lambda x: constrain(x, ("data", "fsdp"), "tensor")))
    for rows, spec in ((4, P(("data", "fsdp"), "tensor")), (6, P(None, "tensor"))):
        x = jax.device_put(np.zeros((rows, 6, 3)), NamedSharding(mesh, P()))
        assert inside(x).sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)
    assert jax.jit(lambda x: constrain(x, "data"))(np.zeros(4)).sharding.is_fully_replicated


def test_constraints_do_nothing_inside_a_shard_map():
    mesh = build_mesh(MeshConfig(data=2, fsdp=2, tensor=2), rows=4)
    local = jax.shard_map(lambda x: constrain(2 * x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_array_equal(jax.jit(use_mesh(mesh)(local))(np.arange(4.0)), 2 * np.arange(4.0))
