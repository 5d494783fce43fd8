"""A run goes on, on another mesh and under another remat policy, where it was stopped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from earthgpt_jax.config import MeshConfig, Remat, Stage
from earthgpt_jax.training.loop import read_losses, train
from tests import nano


def test_resumed_on_another_mesh(tmp_path):
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    config = nano.config(Stage.ALIGN, f"data.source={data}", f"init={base}", "data.batch_size=8")
    spread = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=8), remat=Remat.FULL)
    train(config, tmp_path / "whole")
    expected = read_losses(tmp_path / "whole")

    class Stop(Exception): ...

    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        from earthgpt_jax.training import loop

        patch.setattr(loop._Log, "__call__", lambda self, step, *rest: stop(step))
        train(config, tmp_path / "parts")
    train(spread, tmp_path / "parts")
    got = dict(read_losses(tmp_path / "parts"))
    assert min(got) > 1, "nothing was resumed"
    for step, loss in expected:
        if step in got:
            np.testing.assert_allclose(got[step], loss, atol=1e-3)
