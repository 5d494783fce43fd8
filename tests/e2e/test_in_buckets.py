"""The commands around training, on buckets alone: build, evaluate, score, export, import, chat and detect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import earthgpt_jax as eg
from earthgpt_jax.cli.main import main
from earthgpt_jax.common import files
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.models import model_dir
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a nano model, its export, a dataset and the evaluation of the one on the other."""
    root = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PATH", "")  # hides Java, which is slow
        monkeypatch.setenv("EARTHGPT_PROCESSES", "1")  # cluster detection must happen before JAX is used
        _prepare(root)
        yield root


def _prepare(root: Path) -> None:
    nano.model_dir(root / "model", nano.config("instruct").model)
    _run("data", "build", "synthetic", "--splits", "train=6,test=3", "--size", "32", "--workers", "1", "--out", root)
    _run("convert", "export", root / "model", "--out", root / "exported")
    _run("convert", "import", "--model", root / "exported", "--out", root / "imported")
    _evaluate(root, root / "eval")


def _run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def _evaluate(root: Path, out: Path) -> None:
    _run("eval", "--model", root / "model", "--data", root / "synthetic", "--out", out, "--per-image", "1",
         "--batch-size", "8")  # fmt: skip


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_commands_give_in_a_bucket_what_they_give_on_a_disk(
    local: Path, bucket: BucketPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in _contents(local / "model").items():
        files.write_bytes(bucket / "model" / name, content)  # as another program would copy it
    _run("data", "build", "synthetic", "--splits", "train=6,test=3", "--size", "32", "--workers", "1", "--out", bucket)
    assert _contents(bucket / "synthetic") == _contents(local / "synthetic")

    _evaluate(bucket, bucket / "eval")
    assert _contents(bucket / "eval").keys() == _contents(local / "eval").keys()
    predictions = [name for name in _contents(local / "eval") if name.startswith("predictions")]
    assert predictions
    for name in (*predictions, "scores.json"):
        assert (bucket / "eval" / name).read_bytes() == (local / "eval" / name).read_bytes(), name
    _evaluate(bucket, bucket / "eval")  # answers nothing again
    _run("score", bucket / "eval" / "predictions_image.jsonl", "--data", bucket / "synthetic",
         "--json", bucket / "s.json", "--report", bucket / "report", "--samples", "0")  # fmt: skip
    assert json.loads((bucket / "s.json").read_text())
    assert {path.name for path in (bucket / "report").iterdir()} == {"report.html", "report.md"}

    _run("convert", "export", bucket / "model", "--out", bucket / "exported")
    assert _contents(bucket / "exported") == _contents(local / "exported")
    _run("convert", "import", "--model", bucket / "exported", "--out", bucket / "imported")
    expected, found = (model_dir.read(root / "imported")[1] for root in (local, bucket))
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[key], found[key]) for key in expected)

    files.write_bytes(bucket / "images" / "scene.png", SyntheticSource("test", 1, size=32)[0].image)
    capsys.readouterr()
    _run("detect", bucket / "images", "--model", bucket / "model", "--max-new-tokens", "4",
         "--out", bucket / "boxes.json", "--draw", bucket / "drawn.png")  # fmt: skip
    assert len(json.loads((bucket / "boxes.json").read_text())) == 1
    answer = eg.load(str(bucket / "model")).answer(str(bucket / "images" / "scene.png"), "What is this?")
    assert answer == eg.load(local / "model").answer(SyntheticSource("test", 1, size=32)[0].image, "What is this?")
    assert main(["eval", "--model", str(bucket / "absent"), "--data", str(bucket / "synthetic"), "--out", "x"]) == 2
    assert f"model '{bucket}/absent': expected a directory with" in capsys.readouterr().err
