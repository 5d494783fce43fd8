"""A run resumes on another mesh and with another remat policy; `remat=auto` is chosen once per mesh."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
from safetensors.numpy import load_file

from earthgpt_jax.config import MeshConfig, Remat, Stage
from earthgpt_jax.sharding.mesh import build_mesh
from earthgpt_jax.training import remat_choice
from earthgpt_jax.training.loop import train
from tests.support import nano


def test_a_run_resumes_on_another_mesh(tmp_path):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    config = nano.config(Stage.ALIGN, f"data.source={data}", f"init={base}", "data.batch_size=8")
    finished = train(config, tmp_path / "uninterrupted")
    # As if the run had stopped after its checkpoint of step 4.
    workdir = tmp_path / "resumed"
    shutil.copytree(tmp_path / "uninterrupted", workdir, ignore=shutil.ignore_patterns("model", "tb"))
    shutil.rmtree(workdir / "checkpoints" / "6")
    sharded = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8), remat=Remat.AUTO)
    resumed = train(sharded, workdir, choose_remat=lambda config: "q,gate:1")
    assert json.loads((workdir / "config.json").read_text())["remat"] == "q,gate:1"

    folders = (tmp_path / "uninterrupted", workdir)
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in folders]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(*([line["loss"] for line in run] for run in lines), atol=1e-4)
    assert (workdir / "checkpoints" / "6").is_dir(), "the resumed run must have trained to step 6 again"
    expected, got = (load_file(path / "model.safetensors") for path in (finished, resumed))
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, atol=1e-3, err_msg=path)


def test_auto_is_chosen_once_per_mesh_and_saved(tmp_path):
    config = dataclasses.replace(nano.config(Stage.ALIGN), remat=Remat.AUTO)
    calls = []

    def choose(config):
        calls.append(config)
        return f"gate:{len(calls)}"

    def resolve(mesh, choose=choose):
        return remat_choice.resolve(config, tmp_path, mesh=mesh, choose=choose)

    mesh, other = (build_mesh(MeshConfig(data=data, fsdp=-1), rows=8) for data in (1, 8))
    first = resolve(mesh)
    remat_choice.save(first, tmp_path, mesh=mesh)
    assert first.remat == resolve(mesh).remat == "gate:1" and len(calls) == 1
    assert resolve(other).remat == "gate:2"  # another share of memory is free there
    assert resolve(other, None).remat == Remat.FULL  # nobody to choose, as on CPUs
    explicit = dataclasses.replace(config, remat="q")
    assert remat_choice.resolve(explicit, tmp_path, mesh=mesh, choose=choose) is explicit
