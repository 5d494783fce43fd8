"""Two processes, of which neither holds a whole model, end in the model of one process, and it can be used."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.convert import exporter
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.evaluation import predictions_file, runner
from earthgpt_jax.evaluation.questions import select_examples
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.models import model_dir
from earthgpt_jax.records import Task
from tests.multiprocess.stages import train
from tests.support import nano
from tests.support.processes import Together, address

pytestmark = pytest.mark.multiprocess
PROCESSES, DEVICES = 2, 8  # in total
MESH = ("mesh.data=1", "mesh.fsdp=8")


def _run(folder: Path, stages: list[str], *overrides: str, killed: int = -1) -> None:
    where = address()
    commands = [
        ["-m", "tests.multiprocess.stages", where, PROCESSES, i, folder, ",".join(stages), killed, *overrides]
        for i in range(PROCESSES)
    ]
    environment = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    with Together(commands, devices=DEVICES // PROCESSES, **environment) as together:
        ended = together.ended()
    statuses = [each.status for each in ended]
    correct = -signal.SIGKILL in statuses if killed >= 0 else set(statuses) == {0}
    assert correct, "\n".join(each.tail() for each in ended)


def _overrides(folder: Path, *more: str) -> tuple[str, ...]:
    data, base = nano.dataset(folder / "data"), nano.model_dir(folder / "base", nano.config("align").model)
    words = (f"data.source={data}", f"init={base}", "data.batch_size=8", "data.seq_len=180", "optim.steps=3")
    return (*words, *MESH, *more)


def _check_equal(one: Path, several: Path) -> None:
    """Check that two models are equal up to the order of sums."""
    (_, expected), (_, found) = model_dir.read(one), model_dir.read(several)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype, path
        np.testing.assert_allclose(found[path], value, atol=1e-5, err_msg=path)


def _check_layout(one: Path, several: Path) -> None:
    """Check the files of a model of one process, and of two.

    Each of two processes writes about half of a whole model, and of adapters that are sharded. One process writes those
    that it holds completely.
    """
    single = ["config.json", "model.safetensors", "tokenizer.model"]
    assert sorted(path.name for path in one.iterdir()) == single
    assert not several.with_name("model.partial").exists()
    if model_dir.holds_adapters_alone(several) and "lora" not in several.parts:
        assert sorted(path.name for path in several.iterdir()) == single
        return
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    assert sorted(path.name for path in several.iterdir()) == ["config.json", *files, index, "tokenizer.model"]
    assert sorted(set(json.loads((several / index).read_text())["weight_map"].values())) == files
    sizes = [(several / name).stat().st_size for name in files]
    assert max(sizes) < 0.6 * sum(sizes), sizes


@pytest.mark.parametrize(
    "stages", [["align", "instruct"], pytest.param(["align", "lora", "finetune"], marks=pytest.mark.slow)]
)
def test_two_processes_end_in_the_model_of_one(tmp_path, stages):
    overrides = _overrides(tmp_path)
    _run(tmp_path / "two", stages, *overrides)
    train(tmp_path / "one", stages, *overrides)
    for stage in stages:
        one, two = (tmp_path / name / stage / "model" for name in ("one", "two"))
        assert model_dir.holds_adapters_alone(two) == (stage in ("instruct", "lora"))
        _check_layout(one, two)
        _check_equal(one, two)
        model_dir.check_fingerprint(model_dir.read_config(two))
    params = Engine.from_model_dir(two, batch_size=8).params
    assert params_lib.fingerprint(params) == params_lib.fingerprint(model_dir.read(two)[1])
    exporter.export_hf(two, tmp_path / "exported")
    assert _answers(two, tmp_path) == _answers(one, tmp_path)


def _answers(model: Path, folder: Path) -> list[str]:
    """Evaluate a model on the test split and return its answers."""
    records = open_records(folder / "data", "test")
    engine = Engine.from_model_dir(model, batch_size=8)
    examples = select_examples(
        [records[i] for i in range(len(records))], decimals=engine.decimals, tasks=(Task.CLASSIFICATION, Task.VQA)
    )
    out = model.parent / "predictions.jsonl"
    header = {**engine.describe(), "data": records.fingerprint}
    runner.evaluate(engine, examples, out=out, header=header, view=runner.View.IMAGE, label="questions")
    return [prediction.prediction for prediction in predictions_file.read(out)[1]]


@pytest.mark.slow
def test_a_process_killed_before_the_model_is_complete_leaves_none_and_the_run_can_be_repeated(tmp_path):
    """With int8: its kernels are dequantized piece by piece."""
    overrides = _overrides(tmp_path, "frozen_dtype=int8", "checkpoint.model=whole")
    stages = ["instruct"]
    _run(tmp_path / "two", stages, *overrides, killed=1)
    assert not (tmp_path / "two" / "instruct" / "model").exists()
    _run(tmp_path / "two", stages, *overrides)
    train(tmp_path / "one", stages, *overrides)
    one, two = (tmp_path / name / "instruct" / "model" for name in ("one", "two"))
    _check_layout(one, two)
    _check_equal(one, two)
