"""Validation in whole runs: it sees overfitting, keeps the best checkpoint, resumes, and changes no weight."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.packing.training_data import load_training_data
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.input.validation_data import load_validation_data
from earthgpt_jax.models import earthgpt, loading
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import build_mesh
from earthgpt_jax.training.initial import initial_model
from earthgpt_jax.training.inspection import checkpoint_steps, inspect
from earthgpt_jax.training.loop import train
from earthgpt_jax.training.stages import trainable_paths
from earthgpt_jax.training.validation import Validator
from tests.support import nano

EVERY = ("validation.every_steps=2",)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset, a base model, and a run of `align` with validation."""
    root = tmp_path_factory.mktemp("world")
    data, base = nano.dataset(root / "data", val=6), nano.model_dir(root / "base", nano.config("align").model)
    overrides = (f"data.source={data}", f"init={base}", "data.seq_len=300", "checkpoint.keep=9")
    train(nano.config("align", *overrides, *EVERY), root / "validated")
    return {"root": root, "overrides": overrides}


def _lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _validations(workdir) -> dict[int, dict]:
    return {line["step"]: line["validation"] for line in _lines(workdir) if "validation" in line}


def _assert_same_weights(one, other) -> None:
    (_, expected), (_, found) = io.read(one / "model"), io.read(other / "model")
    assert [path for path, value in expected.items() if value.tobytes() != found[path].tobytes()] == []


def test_a_run_without_validation_has_the_same_weights_and_losses(world):
    train(nano.config("align", *world["overrides"]), world["root"] / "plain")
    _assert_same_weights(world["root"] / "plain", world["root"] / "validated")
    steps = [line for line in _lines(world["root"] / "validated") if "validation" not in line]
    assert steps == _lines(world["root"] / "plain")
    assert not (world["root"] / "plain" / "validation.json").exists()


def test_held_out_images_are_left_out_of_training_whether_or_not_the_run_is_validated(world, tmp_path):
    data = nano.dataset(tmp_path / "data", train=16)
    overrides = (*world["overrides"][1:], f"data.source={data}", "optim.steps=2", "validation.share=0.3")
    train(nano.config("align", *overrides, *EVERY), tmp_path / "validated")
    train(nano.config("align", *overrides), tmp_path / "plain")
    _assert_same_weights(tmp_path / "plain", tmp_path / "validated")
    validation = _validations(tmp_path / "validated")[2]
    assert validation["split"] == "held out of train" and validation["samples"] > 0
    with pytest.raises(EarthGPTError, match=r"validation\.share was 0\.3, is 0\.0"):
        train(nano.config("align", *overrides[:-1]), tmp_path / "plain")


def test_sums_of_tasks_and_of_sensors_add_up_to_the_total(world):
    validations = _validations(world["root"] / "validated")
    assert list(validations) == [2, 4, 6]
    for validation in validations.values():
        for key in ("tasks", "sensors"):
            for name in ("supervised_tokens", "correct_tokens", "answers", "exact_answers"):
                assert sum(part[name] for part in validation[key].values()) == validation[name]
            total = sum(part["loss_sum"] for part in validation[key].values())
            np.testing.assert_allclose(total, validation["loss_sum"], rtol=1e-12)
        assert set(validation["tasks"]) == {"caption", "grounded_caption", "grounded_caption_obb"}
        assert 0 < validation["loss"] < 9 and len({v["supervised_tokens"] for v in validations.values()}) == 1


@pytest.mark.slow
def test_figures_do_not_depend_on_the_batch_size_or_on_microbatches(world):
    expected = _validations(world["root"] / "validated")[2]
    still = ("optim.peak_lr=1e-30", "optim.steps=2", *EVERY)  # parameters that do not move
    results = []
    for number, more in enumerate((("data.batch_size=4",), ("data.batch_size=8", "optim.microbatches=2"))):
        workdir = world["root"] / f"still{number}"
        train(nano.config("align", *world["overrides"], *still, *more), workdir)
        results.append(_validations(workdir)[2])
    for name in ("supervised_tokens", "correct_tokens", "answers", "exact_answers", "samples", "data"):
        assert results[0][name] == results[1][name], name
    np.testing.assert_allclose(results[0]["loss_sum"], results[1]["loss_sum"], rtol=1e-5)
    assert results[0]["supervised_tokens"] == expected["supervised_tokens"]


def test_a_resumed_run_has_the_same_figures_and_the_settings_may_change(world):
    whole, workdir = world["root"] / "validated", world["root"] / "resumed"
    shutil.copytree(whole, workdir, ignore=shutil.ignore_patterns("model", "tb", "validation.json"))
    shutil.rmtree(workdir / "checkpoints" / "6")
    # As if the run had been killed after the save of step 4, before its validation was logged.
    kept = [line for line in _lines(workdir) if line["step"] < 4 or (line["step"] == 4 and "validation" not in line)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    train(nano.config("align", *world["overrides"], *EVERY), workdir)
    assert (workdir / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert (workdir / "validation.json").read_text() == (whole / "validation.json").read_text()
    _assert_same_weights(whole, workdir)

    shutil.rmtree(workdir / "checkpoints" / "6")
    shutil.rmtree(workdir / "model")
    train(nano.config("align", *world["overrides"], "validation.every_steps=3", "validation.split=test"), workdir)
    assert _validations(workdir)[6]["split"] == "test"
    _assert_same_weights(whole, workdir)


def test_a_figure_or_a_split_that_the_data_lacks_leaves_no_trace(world, tmp_path):
    for more, message in (
        (["checkpoint.keep_best=validation/captoin/loss"], r"did you mean 'validation/caption/loss'"),
        (["validation.split=dev"], r"validation\.split: "),
    ):
        with pytest.raises(EarthGPTError, match=message):
            train(nano.config("align", *world["overrides"], *EVERY, *more), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_overfitting_turns_the_validation_loss_and_the_best_checkpoint_becomes_the_model(tmp_path, caplog):
    data, base = nano.dataset(tmp_path / "data", train=1, val=3), nano.model_dir(
        tmp_path / "base", nano.config("align").model
    )  # fmt: skip
    config = nano.config(
        "finetune", f"data.source={data}", f"init={base}", "data.task_weights={'vqa':1.0,'caption':1.0}",
        "optim.steps=36", "optim.peak_lr=2e-2", "optim.min_lr=2e-2",
        "validation.every_steps=4", "checkpoint.every_steps=4", "checkpoint.keep=1",
        "checkpoint.keep_best=validation/loss", "log_every=36",
    )  # fmt: skip
    workdir = tmp_path / "run"
    train(config, workdir)
    losses = {step: validation["loss"] for step, validation in _validations(workdir).items()}
    assert list(losses) == list(range(4, 37, 4))
    best = min(losses, key=losses.__getitem__)
    assert 4 < best < 36 and losses[4] > losses[best] + 0.3 and losses[36] > losses[best] + 0.3
    trained = [line["loss"] for line in _lines(workdir) if "validation" not in line]
    assert trained[-1] < trained[best - 1] / 2  # meanwhile the loss of training falls
    assert checkpoint_steps(workdir / "checkpoints") == [best, 36]
    report = json.loads((workdir / "validation.json").read_text())
    assert report["figure"] == "validation/loss"
    assert [(report[name]["step"], report[name]["value"]) for name in ("best", "last")] == [
        (best, losses[best]), (36, losses[36])
    ]  # fmt: skip
    assert report["best"]["checkpoint"] == f"checkpoints/{best}"
    assert f"best {losses[best]:.4f} at step {best} (checkpoints/{best})" in caplog.text
    throughput = [json.loads(line) for line in (workdir / "throughput.jsonl").read_text().splitlines()]
    assert throughput[-1]["seconds"]["validation"] > 0
    model, arrays = io.read(workdir / "model")
    assert model.provenance["steps"] == best and f"model: written from step {best}" in caplog.text
    assert f"model of step {best}" in str(inspect(workdir)[0])

    saved = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(best) / "state").absolute())["trainable"]
    assert [path for path in saved if not np.array_equal(arrays[path], saved[path])] == []

    shutil.copytree(workdir, tmp_path / "last", ignore=shutil.ignore_patterns("model"))
    checkpoint = dataclasses.replace(config.checkpoint, keep_best="")
    train(dataclasses.replace(config, checkpoint=checkpoint), tmp_path / "last")
    model, arrays = io.read(tmp_path / "last" / "model")
    assert model.provenance["steps"] == 36 and any(not np.array_equal(arrays[path], saved[path]) for path in saved)


@pytest.mark.slow
def test_exact_answers_are_those_that_the_engine_gives(tmp_path):
    """Validation, without decoding, counts the questions of each task that `tiny` answers word for word."""
    data = nano.dataset(tmp_path / "data", train=1, val=16)
    config = config_lib.load("tiny:instruct", ["--config.init=tiny", f"--config.data.source={data}"])
    initial = initial_model(config)
    tokenizer = Tokenizer(initial.tokenizer)
    validation = load_validation_data(config, load_training_data(config, tokenizer=tokenizer), tokenizer=tokenizer)
    _, shapes = earthgpt.abstract(config.model)
    place = rules.placement(config.model, shapes, mesh=build_mesh(config.mesh, rows=config.data.batch_size))
    trainable, frozen = loading.load(
        initial.source, config.model, seed=0, placement=place, trainable=trainable_paths(config, shapes),
        frozen_dtype=config.frozen_dtype,
    )  # fmt: skip
    result = Validator(config, validation, place)(trainable, frozen, heartbeat=lambda: None)

    records, prompts = RecordSource(data, "val"), validation.data.prompt_config
    asked = []
    for sample in (validation.data.schedule[n][i] for n in range(validation.sequences)
                   for i in range(len(validation.data.schedule[n]))):  # fmt: skip
        record = records[sample.record]
        square = load_square(record.image, config.model.image_size)
        for task, index in sample.questions:
            question = prompts.question(record, task, index, annotated=records.annotated)
            asked.append((task, (square, question.text), question.answer))
    answers = Engine.from_model_dir("tiny", batch_size=32).answer([item for _, item, _ in asked], max_new_tokens=256)
    exact = collections.Counter(
        task for (task, _, expected), answer in zip(asked, answers, strict=True) if answer == expected.strip()
    )
    assert {task: part["exact_answers"] for task, part in result["tasks"].items()} == {
        task: exact[task] for task in result["tasks"]
    }
    assert result["answers"] == len(asked) and 0.2 < result["exact"] < 0.9
