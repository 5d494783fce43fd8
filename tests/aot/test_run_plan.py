"""The plan of a whole run: predicted bytes equal those of a real run; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from earthgpt_jax import config as config_lib
from earthgpt_jax.aot import program, run_plan, slices, step_plan
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.safetensors_files import SafetensorsReader, open_model_files
from earthgpt_jax.config import Stage
from earthgpt_jax.models import model_dir
from earthgpt_jax.sharding.mesh import AXES, build_mesh
from earthgpt_jax.training.loop import train
from tests.support import nano


def test_predicted_bytes_are_those_of_a_run(tmp_path):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    config = nano.config(
        Stage.INSTRUCT, f"data.source={data}", f"init={base}", "data.batch_size=8", "optim.steps=2",
        "optim.warmup_steps=1", "checkpoint.model=whole", "mesh.data=1", "mesh.fsdp=8",
    )  # fmt: skip
    inputs = program.step_inputs(config, build_mesh(config.mesh, rows=8))
    initial = step_plan._initial_sizes(config)
    plan = run_plan.plan_run(
        config, inputs, host=run_plan.Host(devices=8, memory_gib=1e3), hbm_gib=1e3, initial=initial
    )
    start, _, save, finish = plan.phases

    read = []
    original = SafetensorsReader.read_slice

    def count(self, key, index):
        rows = original(self, key, index)
        read.append(rows.nbytes)
        return rows

    # Without the comparison of a small model with its fingerprint, which reads it once more.
    with mock.patch.object(SafetensorsReader, "read_slice", count), mock.patch.object(model_dir, "CHECKED_BYTES", 0):
        finished = train(config, tmp_path / "run")

    assert start.read_bytes == sum(read) > 0
    written = open_model_files(finished)
    sizes = {key: int(np.prod(shape)) * written.dtypes[key].itemsize for key, shape in written.shapes.items()}
    assert plan.model_bytes == finish.written_bytes == sum(sizes.values())
    assert plan.adapter_bytes == sum(size for path, size in sizes.items() if "/adapter/" in path)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("2")
    arrays = json.loads((checkpoint / "extra" / "metadata").read_text())["arrays"].values()
    assert plan.checkpoint_bytes == sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in arrays)
    on_disk = sum(file.stat().st_size for file in (checkpoint / "state").rglob("*") if file.is_file())
    assert on_disk < plan.checkpoint_bytes + 128 * 1024  # compressed arrays, and the files that describe them
    assert save.written_bytes == plan.checkpoint_bytes


def _plan(stage: str, topology: str, *overrides: str):
    with mock.patch.object(slices, "compiler_is_available", return_value=False):
        config = config_lib.load(f"earthgpt_13b:{stage}", [f"--config.{override}" for override in overrides])
        return step_plan.plan_step(config, slices.parse(topology), per_chip_batch=1).run


def test_13b_starts_saves_and_ends_on_one_v5e_host():
    """4.2e9 trainable parameters with two moments in fp32; 13.55e9 parameters are read in bfloat16, each once."""
    run = _plan("align", "v5e-8")
    assert run.processes == 1 and not run.problems
    assert run.checkpoint_bytes == pytest.approx(3 * 4 * 4.2304e9, rel=1e-3)
    start, _, save, finish = run.phases
    assert start.read_bytes == pytest.approx(2 * 13.55e9, rel=2e-3) and start.seconds == start.read_bytes / 1e9
    assert finish.written_bytes == run.model_bytes == pytest.approx(4 * 4.2304e9 + 2 * 9.32e9, rel=2e-3)
    assert save.host_gib - run_plan.PROCESS_GIB == pytest.approx(run.checkpoint_bytes / 2**30, rel=1e-3)
    instruct = _plan("instruct", "v5e-4")
    assert instruct.adapter_bytes == 4 * 4_259_840 and instruct.phases[-1].written_bytes == instruct.adapter_bytes
    whole = _plan("instruct", "v5e-4", "checkpoint.model=whole")
    assert whole.phases[-1].written_bytes == whole.model_bytes > 1000 * instruct.adapter_bytes


def test_processes_share_reading_and_writing():
    run = _plan("align", "v5e-32")
    start, _, save, finish = run.phases
    assert run.processes == 8
    # Norms and the position table are replicated, so every process reads them.
    assert start.read_bytes == pytest.approx(2 * 13.55e9, rel=0.02)
    assert start.process_read_bytes == start.read_bytes / 8
    assert save.process_written_bytes == pytest.approx(save.written_bytes / 8, rel=0.01)
    # No parameter is written by two processes, and the largest are 10 % of the model.
    assert finish.written_bytes / 8 < finish.process_written_bytes < finish.written_bytes / 3


@pytest.mark.parametrize(
    ("spec", "devices", "fraction"),
    [((None, "fsdp"), 4, 0.5), (("tensor", "fsdp"), 4, 0.5), (("tensor",), 1, 0.5), ((), 4, 1.0), (("data",), 4, 0.5)],
)
def test_the_part_of_an_array_that_a_process_holds(spec, devices, fraction):
    mesh = AbstractMesh((2, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    array = jax.ShapeDtypeStruct((8, 8), np.float32, sharding=sharding)
    assert run_plan.process_fraction(array, devices=devices) == fraction


def test_hosts_that_are_too_small_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(slices, "compiler_is_available", lambda: False)
    chip = dataclasses.replace(slices.CHIPS["v5e"], hosts={8: 32})
    monkeypatch.setitem(slices.CHIPS, "v5e", chip)
    base = ["plan", "--config", "earthgpt_13b:align", "--topology", "v5e-8", "--per-chip-batch", "1"]
    assert main(base) == 1
    assert "does NOT fit: save: needs 51.28 GiB of host memory, of which there are 29.80" in capsys.readouterr().out
    assert main([*base, "--json", "--read-gbps", "2"]) == 1
    run = json.loads(capsys.readouterr().out)["run"]
    assert run["problems"] and run["phases"][0]["seconds"] == run["phases"][0]["process_read_bytes"] / 2e9
    assert main([*base, "--write-gbps", "0"]) == 2
    assert "--write-gbps: expected a positive number" in capsys.readouterr().err


def test_a_quantized_model_passes_through_fp32_on_the_devices():
    plain, quantized = (_plan("instruct", "v5e-4", f"frozen_dtype={dtype}").phases[0] for dtype in ("bfloat16", "int8"))
    largest = 5120 * 13824 * 4 / 4 / 2**30  # a layer of a kernel in fp32, over four chips
    kernels = 12.6877e9 / 4 / 2**30
    assert quantized.device_gib == pytest.approx(plain.device_gib - kernels + largest, rel=0.01)
