"""A run resumes on another mesh and with another remat policy."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
from safetensors.numpy import load_file

from earthgpt_jax.config import MeshConfig, Remat, Stage
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
    sharded = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8), remat=Remat.FULL)
    resumed = train(sharded, workdir)

    folders = (tmp_path / "uninterrupted", workdir)
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in folders]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(*([line["loss"] for line in run] for run in lines), atol=1e-4)
    assert (workdir / "checkpoints" / "6").is_dir(), "the resumed run must have trained to step 6 again"
    expected, got = (load_file(path / "model.safetensors") for path in (finished, resumed))
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, atol=1e-3, err_msg=path)
