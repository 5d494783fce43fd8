"""A run in a bucket that is killed and resumed on other numbers of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.common import json_lines
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training import inspection
from earthgpt_jax.training.loop import train
from tests.multiprocess.test_hosts import run_hosts
from tests.support import nano

pytestmark = pytest.mark.multiprocess
FSDP = ("mesh.data=1", "mesh.fsdp=8")  # each process holds a part of every checkpoint


@pytest.mark.slow
@pytest.mark.timeout(3600)  # eleven processes
def test_four_processes_then_two_then_one_then_four_train_the_same_model(
    bucket: BucketPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACE", "3")  # seconds of a step: a save is complete before the kill in the next step
    data, base = nano.dataset(tmp_path / "data"), nano.model_dir(tmp_path / "base", nano.config("align").model)
    overrides = (
        f"data.source={data}", f"init={base}", "data.batch_size=8", "data.seq_len=180", "optim.steps=8", *FSDP
    )  # fmt: skip
    alone = train(nano.config("align", *overrides), tmp_path / "alone")
    workdir = bucket / "run"
    for processes, kill_at in ((4, 2), (2, 4), (1, 6)):
        run_hosts(processes, workdir, *overrides, kill_at=kill_at)
        assert inspection.checkpoint_steps(workdir / "checkpoints")[-1] in (kill_at, kill_at - 2)
    run_hosts(4, workdir, *overrides)
    one, several = (json_lines.read(folder / "metrics.jsonl") for folder in (tmp_path / "alone", workdir))
    assert [line["data_digest"] for line in several] == [line["data_digest"] for line in one] and len(one) == 8
    np.testing.assert_allclose([line["loss"] for line in several], [line["loss"] for line in one], atol=1e-5)
    expected, (_, found) = io.read(alone)[1], io.read(workdir / "model")
    assert len(list((workdir / "model").glob("model-*-of-00004.safetensors"))) == 4
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=2e-5, err_msg=path)
