"""Validation on several processes gives the figures of one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.synthetic import SyntheticSource
from earthgpt_jax.training.loop import train
from tests.multiprocess.test_hosts import run_hosts
from tests.support import nano

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_two_processes_have_the_figures_of_one(tmp_path):
    """On a dataset with a validation split, and on one of which images are held out."""
    data = tmp_path / "data"
    nano.dataset(data / "synthetic", val=6)
    scenes = SyntheticSource("train", 12)
    others = [dataclasses.replace(scenes[i], id=f"other/train/{i}", source="other") for i in range(12)]
    write_dataset({"train": others}, out=data / "other", name="other")
    base = nano.model_dir(tmp_path / "base", nano.config("align").model)
    overrides = (
        f"data.source={data}", f"init={base}", "data.batch_size=8", "data.seq_len=300", "optim.steps=2",
        "validation.every_steps=2", "validation.share=0.3", "checkpoint.keep_best=validation/loss",
    )  # fmt: skip
    train(nano.config("align", *overrides), tmp_path / "alone")
    run_hosts(2, tmp_path / "hosts", *overrides)
    one, two = (
        [json.loads(line)["validation"] for line in (tmp_path / name / "metrics.jsonl").open() if "validation" in line]
        for name in ("alone", "hosts")
    )
    assert len(one) == len(two) == 1 and one[0]["split"] == "val and held out of train"
    for name in ("samples", "supervised_tokens", "answers", "data"):
        assert one[0][name] == two[0][name]
    np.testing.assert_allclose(one[0]["loss_sum"], two[0]["loss_sum"], rtol=1e-4)
    for key in ("tasks", "sensors"):
        assert one[0][key].keys() == two[0][key].keys()
        for name, part in one[0][key].items():
            assert part["supervised_tokens"] == two[0][key][name]["supervised_tokens"]
            np.testing.assert_allclose(part["loss"], two[0][key][name]["loss"], rtol=1e-4)
    report = json.loads((tmp_path / "hosts" / "validation.json").read_text())
    assert report["best"]["step"] == report["last"]["step"] == 2
