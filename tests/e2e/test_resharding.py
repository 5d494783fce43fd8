"""A run goes on, on another mesh and under another remat policy, where it was stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
from safetensors.numpy import load_file

from earthgpt_jax.config import MeshConfig, Remat, Stage
from earthgpt_jax.training.loop import train
from tests.support import nano


def test_resumed_on_another_mesh(tmp_path):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    config = nano.config(Stage.ALIGN, f"data.source={data}", f"init={base}", "data.batch_size=8")
    finished = train(config, tmp_path / "whole")
    # As if it had been stopped behind its checkpoint of step 4.
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", parts, ignore=shutil.ignore_patterns("model", "tb"))
    shutil.rmtree(parts / "checkpoints" / "6")
    spread = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8), remat=Remat.FULL)
    resumed = train(spread, parts)

    lines = [[json.loads(line) for line in (where / "metrics.jsonl").open()] for where in (tmp_path / "whole", parts)]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(*([line["loss"] for line in run] for run in lines), atol=1e-4)
    assert (parts / "checkpoints" / "6").is_dir(), "nothing was computed anew"
    expected, got = (load_file(path / "model.safetensors") for path in (finished, resumed))
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, atol=1e-3, err_msg=path)
