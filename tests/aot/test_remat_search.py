"""`remat=auto`: what is worth keeping, and how the policy for the memory that is left is found."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax.aot import program, remat_search
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import Remat, kept

GIB = 2**30


def _config(stage: str):
    return config_lib.load(f"earthgpt_13b:{stage}", ["--config.data.seq_len=1024"])


def test_what_saves_most_per_byte_depends_on_what_is_trained():
    """The gradient of a scale reads the output of `down`: F/D products per byte. Nothing else needs that output."""
    first, *rest = remat_search.outputs(_config("instruct"), sequences=4)
    assert first.name == "down" and first.bytes == 4 * 1024 * 5120 * 2
    assert first.flops / first.bytes == pytest.approx(13824 / 5120 * rest[0].flops / rest[0].bytes)
    assert rest[-1].name == "context"  # attention is cheap at 1024 tokens
    for stage in ("align", "finetune", "lora"):
        assert "down" not in {output.name for output in remat_search.outputs(_config(stage), sequences=2)}


def test_heads_and_widths_are_sharded_over_tensor():
    whole = {output.name: output for output in remat_search.outputs(_config("instruct"), sequences=4)}
    config = dataclasses.replace(_config("instruct"), mesh=config_lib.MeshConfig(data=1, fsdp=1, tensor=4))
    sharded = {output.name: output for output in remat_search.outputs(config, sequences=4)}
    assert sharded["gate"].bytes == whole["gate"].bytes // 4 and sharded["down"].bytes == whole["down"].bytes
    assert all(sharded[name].flops == whole[name].flops / 4 for name in whole)


@pytest.mark.parametrize(("stage", "sequences"), [("instruct", 4), ("align", 2), ("lora", 4)])
def test_more_memory_saves_more_until_nothing_is_recomputed(stage, sequences):
    config = _config(stage)
    outputs = remat_search.outputs(config, sequences=sequences)
    choices = [remat_search.fill(config, sequences=sequences, budget=size * GIB) for size in range(0, 30, 3)]
    assert choices[0].policy == Remat.FULL and choices[0].bytes == 0
    for choice, more in itertools.pairwise(choices):
        assert choice.flops <= more.flops
    for size, choice in zip(range(0, 30, 3), choices, strict=True):
        assert choice.bytes <= size * GIB
        dataclasses.replace(config, remat=choice.policy)
        kept(choice.policy).runs(config.model.llm.depth)  # a valid policy
    everything = 40 * sum(output.flops for output in outputs)
    assert choices[-1].flops == everything
    assert not any(kept(choices[-1].policy).layers.values())


def test_what_does_not_fit_goes_to_host_memory_as_far_as_transfers_overlap():
    config, budget = _config("instruct"), 3.2 * GIB
    choice = remat_search.fill(config, sequences=4, budget=budget, host_budget=3.2 * GIB)
    policy = kept(choice.policy)
    assert policy.layers == {"down": None, "o": None} and policy.offloaded == ("q", "k")
    assert choice.bytes <= budget
    alone = remat_search.fill(config, sequences=4, budget=budget)
    assert choice.flops > alone.flops and not kept(alone.policy).offloaded


@pytest.mark.parametrize("per_byte", [0.8, 1.0, 1.3])
def test_the_search_corrects_its_estimate_by_what_the_compiler_says(per_byte):
    """The compiled step needs another multiple of the kept bytes than the arithmetic says."""
    config, base, limit = _config("align"), 12.6 * GIB, 15.75 * GIB
    best = {}

    def measure(config):
        layers = kept(config.remat).layers
        sizes = {output.name: output.bytes for output in remat_search.outputs(config, sequences=2)}
        size = base + per_byte * sum((40 if count is None else count) * sizes[name] for name, count in layers.items())
        if size > limit:
            raise program.OutOfMemory("Ran out of memory")
        best[config.remat] = size
        return int(size)

    found = remat_search.choose(config, measure, sequences=2, limits=remat_search.Limits(memory=limit))
    assert 0.93 * limit < best[found.policy] <= limit * (1 - remat_search.RESERVE)
    assert len(found.tried) <= 4


def test_the_search_keeps_nothing_in_host_memory_if_that_does_not_fit():
    """As compiled for `align` on v5e-8: the buffers of transfers take the memory that was left."""

    def measure(config):
        if "@" in config.remat:
            raise program.OutOfMemory("Ran out of memory")
        return int((12.6 if config.remat == Remat.FULL else 15.0) * GIB)

    limits = remat_search.Limits(memory=15.75 * GIB, host_bytes_per_flop=15e9 / 197e12)
    found = remat_search.choose(_config("align"), measure, sequences=2, limits=limits)
    assert found.policy == "o,gate" and len(found.tried) == 4


def test_a_step_that_fits_only_with_full_recomputation_keeps_nothing():
    def measure(config):
        if config.remat != Remat.FULL:
            raise program.OutOfMemory("Ran out of memory")
        return int(15.4 * GIB)

    found = remat_search.choose(_config("align"), measure, sequences=2, limits=remat_search.Limits(memory=15.75 * GIB))
    assert found.policy == Remat.FULL


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("most", "expected one of auto"),
        ("gate,wo", "expected one of auto"),
        ("gate:41", "expected at most 40 layers"),
        ("gate,gate:3", "expected one of auto"),
        ("gate:3@host", "expected one of auto"),
        ("", "expected one of auto"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_reason(policy, message):
    with pytest.raises(EarthGPTError, match=message):
        config_lib.load("earthgpt_13b:instruct", [f"--config.remat={policy}"])
