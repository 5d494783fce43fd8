"""Run the commands as a user types them, on a nano model: their output, and their errors for wrong input."""

from __future__ import annotations

import dataclasses
import json

import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.evaluation import predictions_file
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    """Disable cluster detection, which must happen before JAX is used; in this process it has been used."""
    monkeypatch.setenv("EARTHGPT_PROCESSES", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    image = root / "scene.png"
    image.write_bytes(SyntheticSource("test", 3)[2].image)
    return {
        "root": root, "image": image, "model": nano.model_dir(root / "model", nano.config("align").model),
        "data": nano.dataset(root / "data", train=6, test=3),
    }  # fmt: skip


def _fails(capsys, *argv: str) -> str:
    assert main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]  # after a progress bar, if there is one
    assert errors == lines[-1:], lines
    return errors[0]


def test_chat_answers_each_question(world, capsys):
    argv = ["chat", "--image", world["image"], "--model", world["model"], "--max-new-tokens", "4"]
    assert main([*map(str, argv), "--question", "One?", "--question", "Two?"]) == 0
    out = capsys.readouterr().out
    assert out.count("A: ") == 2
    assert "Q: One?" in out


def test_detect_prints_json_and_draws_boxes(world, capsys):
    drawn = world["root"] / "drawn.png"
    argv = ["detect", "--image", world["image"], "--model", world["model"], "--max-new-tokens", "4", "--draw", drawn]
    assert main([str(word) for word in argv]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["width"], result["height"]) == (128, 128)
    assert isinstance(result["boxes"], list)
    assert drawn.stat().st_size > 100


def test_eval_writes_scores_a_report_and_predictions_that_score_identically(world, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")  # hides Java, which is slow
    out = world["root"] / "eval"
    argv = [
        "eval", "--model", world["model"], "--data", world["data"], "--out", out, "--per-image", "1",
        "--false-premises", "--chained", "mmrs", "--batch-size", "8",
    ]  # fmt: skip
    assert main([str(word) for word in argv]) == 0
    first = capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    assert scores["classification"]["all"]["n"] == 3
    assert {"constant", "random", "blind", "top1"} <= scores["classification"]["all"].keys()
    assert scores["absent_grounding"]["all"]["n"] > 0
    assert scores["presence"]["all"]["n"] > 0 and scores["presence"]["all"]["constant"]["accuracy"] > 0
    assert scores["chained_obb"]["all"]["n"] == 3 and "f1" in scores["chained_hbb"]["all"]["blind"]
    _, answered = predictions_file.read(out / "predictions_image.jsonl")
    assert all(len(p.logprobs) == len(p.token_lengths) > 0 for p in answered if p.task in ("hbb", "grounding"))
    assert all(len(p.steps) > 3 for p in predictions_file.read(out / "predictions_chained_image.jsonl")[1])
    assert (out / "report.html").exists()
    # Once more: all predictions exist already, and the scores are identical without running the model.
    assert main([str(word) for word in argv]) == 0
    assert capsys.readouterr().out == first
    again = world["root"] / "again.json"
    assert main(["score", str(out / "predictions_image.jsonl"), "--json", str(again)]) == 0
    found = json.loads(again.read_text())
    chain = out / "predictions_chained_image.jsonl"
    assert main(["score", str(chain), "--json", str(again)]) == 0
    found |= json.loads(again.read_text())
    for task, groups in scores.items():
        for group, values in groups.items():
            expected = {k: v for k, v in values.items() if k not in ("constant", "random", "blind")}
            assert expected == {k: v for k, v in found[task][group].items() if k in expected}


def test_wrong_input_is_reported_in_one_line(world, capsys):
    image, model, root = world["image"], world["model"], world["root"]
    assert "no such file" in _fails(capsys, "chat", "--image", root / "none.png", "--question", "?")
    truncated = root / "truncated.png"
    truncated.write_bytes(image.read_bytes()[:500])
    assert f"image {truncated}: image of 500 bytes cannot be decoded" in _fails(
        capsys, "detect", "--image", truncated, "--model", model
    )
    assert "an embedded model: tiny-base, tiny" in _fails(
        capsys, "chat", "--image", image, "--model", root / "nowhere", "--question", "?"
    )
    assert "did you mean 'peak_lr'" in _fails(
        capsys, "train", "--config", "tiny:align", "--workdir", root / "w", "--config.optim.peak_lrr=1"
    )
    assert "did you mean 'tiny'" in _fails(capsys, "train", "--config", "tinny:align", "--workdir", root / "w")
    assert "there is no such folder" in _fails(
        capsys, "train", "--workdir", root / "w",
        *nano.arguments("align", f"init={model}", f"data.source={root / 'empty'}"),
    )  # fmt: skip
    assert not (root / "w").exists()  # a run that fails before it starts creates no folder
    assert "cannot be read" in _fails(capsys, "score", root / "none.jsonl")
    assert "expected at least 1" in _fails(capsys, "quickstart", "--workdir", root / "q", "--steps", "0")


def test_a_bad_image_in_the_training_data_is_named(world, capsys):
    from earthgpt_jax.datasets.build.writer import write_dataset

    records = [SyntheticSource("train", 4)[i] for i in range(4)]
    records[2] = dataclasses.replace(records[2], image=records[2].image[:300])
    write_dataset({"train": records}, out=world["root"] / "truncated_data", name="synthetic")
    error = _fails(
        capsys, "train", "--workdir", world["root"] / "truncated_run",
        *nano.arguments("align", f"init={world['model']}", f"data.source={world['root'] / 'truncated_data'}"),
    )  # fmt: skip
    assert "synthetic/train/2" in error
    assert "data check" in error
