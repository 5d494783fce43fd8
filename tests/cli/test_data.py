"""Test the command `earthgpt data`: its files, output and exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.cli.main import main
from earthgpt_jax.datasets.build.counts import BuildCounts
from earthgpt_jax.datasets.readers import Dropped, ItemType, Native, Rejected
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.synthetic import SyntheticSource


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """Write five SAR images with YOLO labels to `native/sar/SSDD-yolo`: one has an invalid box, one is truncated."""
    folder = tmp_path / "native" / "sar" / "SSDD-yolo"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("000001", "000002", "000003", "000009", "000012"):
        pixels = rng.integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.2\n")
    (folder / "000009.txt").write_text("0 0.5 0.5 0.5 0.2\n0 0.5 0.5 0 0.2\n")
    complete = (folder / "000012.jpg").read_bytes()
    (folder / "000012.jpg").write_bytes(complete[: len(complete) // 2])
    return tmp_path / "native"


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["data", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_build_counts_items_and_is_repeatable(native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    half = ("--max-quarantine", "0.5")
    status, output, _ = _run(capsys, "build", "ssdd_yolo", "--root", native, "--out", out, *half)
    assert status == 1  # something is in quarantine
    assert "  1 x object: degenerate box: expected fractions and sides above N, got '...'" in output
    assert [path.name for path in out.iterdir()] == ["ssdd_yolo"]
    rows = [line.split() for line in output.splitlines()]
    train = 2 - int(rows[1][7])  # of the two images that are not test, one may be val
    assert rows[1] == ["ssdd_yolo", "image", "5", "4", "1", "0", str(train), str(2 - train), "2"]
    assert rows[2] == ["ssdd_yolo", "object", "6", "4", "2", "0"]
    quarantine = [json.loads(line) for line in (out / "ssdd_yolo" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((q["id"], q["item_type"], q["file"]) for q in quarantine) == [
        ("000009", "object", "000009.txt"),
        ("000012", "image", "000012.txt"),
        ("000012", "object", "000012.txt"),
    ]
    record = RecordSource(out / "ssdd_yolo", "test")[0]
    assert record.id == "ssdd_yolo/test/000001"
    assert record.image == (native / "sar/SSDD-yolo/000001.jpg").read_bytes()
    np.testing.assert_allclose(record.objects[0].polygon, [10, 12, 30, 12, 30, 18, 10, 18], atol=1e-4)

    status, output, _ = _run(capsys, "build", "all", "--root", native, "--out", out)
    assert status == 1  # as the first time
    assert "ssdd_yolo: already built and identical; nothing to do" in output

    status, output, _ = _run(capsys, "build", "ssdd_yolo", "--root", native / "sar" / "SSDD-yolo", "--out", out)
    assert status == 1
    assert "nothing to do" in output  # the same files, with --root as their own folder

    status, _, error = _run(
        capsys, "build", "ssdd_yolo", "--root", native, "--out", native / "sar/SSDD-yolo/000002.txt"
    )
    assert (status, error.startswith("error: writing "), "Traceback" in error) == (2, True, False)

    (native / "sar/SSDD-yolo/000002.txt").write_text("")
    status, _, error = _run(capsys, "build", "ssdd_yolo", "--root", native, "--out", out)
    assert status == 2
    assert "it contains another build" in error
    assert "delete this folder" in error


def test_check_stats_preview(native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    _run(
        capsys,
        "build",
        "ssdd_yolo",
        "synthetic",
        "--root",
        native,
        "--max-quarantine",
        "0.5",
        "--splits",
        "train=3,test=1",
        "--size",
        "64",
        "--out",
        out,
    )
    status, output, _ = _run(capsys, "check", out)
    assert (status, output.count(": no problems found")) == (0, 2)
    status, output, _ = _run(capsys, "stats", out)
    assert status == 0
    rows = [line.split() for line in output.splitlines()]
    assert ["objects", "6", "4", "2", "0"] in rows  # native, kept, quarantined, dropped
    status, _, _ = _run(capsys, "preview", out, "--out", tmp_path / "sheet.png", "--count", "5")
    assert status == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 392 + 8, 2 * 484 + 8)

    shard = next((out / "synthetic").glob("*train*.array_record*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    status, output, _ = _run(capsys, "check", out / "synthetic")
    assert status == 1
    assert "sha256 differs" in output


def test_build_synthetic_stores_the_records_of_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("build", "synthetic", "--count", "10", "--size", "48", "--out", tmp_path)
    status, output, _ = _run(capsys, *words)
    assert status == 0
    assert output.splitlines()[1].split() == ["synthetic", "image", "13", "13", "0", "0", "10", "1", "2"]
    expected = SyntheticSource("test", 2, size=48)
    stored = RecordSource(tmp_path / "synthetic", "test")
    assert [(r.id, r.image, r.turns) for r in stored] == [(r.id, r.image, r.turns) for r in expected]
    assert "nothing to do" in _run(capsys, *words)[1]
    assert _run(capsys, *words, "--seed", "1")[0] == 2


def test_list(native: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = _run(capsys, "list", "--root", native)
    lines = {line.split()[0]: line for line in output.splitlines()}
    assert status == 0
    assert lines["ssdd_yolo"].endswith("[found]")
    assert lines["hit_uav"].endswith("[missing]")
    assert "synthetic" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "dota", "--out", "o"], "with --root"),
        (["build", "nonsense", "--root", "r", "--out", "o"], "no card for nonsense"),
        (["build", "dota", "--root", "r", "--out", "o"], "no such folder"),
        (["build", "ssdd_yolo", "--root", ".", "--out", "o"], "not called SSDD-yolo"),
        (["build", "all", "--root", "r", "--out", "o"], "contains none of the datasets"),
        (["build", "synthetic", "--out", "o"], "give either --count"),
        (["build", "synthetic", "--count", "0", "--out", "o"], "expected at least 1, got 0"),
        (["build", "synthetic", "--splits", "train:3", "--out", "o"], "expected SPLIT=COUNT"),
        (["build", "synthetic", "--splits", "dev=3", "--out", "o"], "got 'dev'"),
        (["build", "synthetic", "--splits", "train=0", "--out", "o"], "at least one record"),
        (["build", "dota", "--count", "3", "--root", "r", "--out", "o"], "are for `build synthetic`"),
        (["build", "dota", "--root", "r", "--out", "o", "--workers", "0"], "--workers: expected at least 1"),
        (["build", "dota", "--root", "r", "--out", "o", "--max-quarantine", "2"], "a fraction from 0 to 1"),
        (["build", "dota", "--root", "r", "--out", "o", "--beam-options=--x=1"], "--beam-options requires --beam"),
        (["build", "dota", "--root", "r", "--out", "o", "--beam", "--workers", "2"], "set Beam's with --beam-options"),
        (["check", "nowhere"], "there is no such folder"),
        (["stats", "."], "found none in it"),
        (["preview", ".", "--out", "x.jpg"], "expected the name of a page"),
    ],
)
def test_user_errors_name_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, error = _run(capsys, *words)
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_counts_that_do_not_add_up_raise() -> None:
    counts = BuildCounts()
    counts.add(Native(item_type=ItemType.OBJECT, count=3))
    counts.add(Rejected(id="a", item_type=ItemType.OBJECT, reason="r", file="f"))
    counts.add(Dropped(item_type=ItemType.OBJECT, reason="rule"))
    with pytest.raises(RuntimeError, match=r"3 native, but 0 kept \+ 1 quarantined \+ 1 dropped = 2"):
        counts.check("x")
    counts.add(Dropped(item_type=ItemType.OBJECT, reason="rule"))
    counts.check("x")


@pytest.mark.realdata
def test_all_real_samples_build_and_check(realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = _run(capsys, "build", "all", "--root", realdata, "--out", tmp_path / "out")
    assert status == 1  # two boxes of DOTA have zero width
    assert ["hit_uav", "object", "916", "909", "0", "7"] in [line.split() for line in output.splitlines()]
    assert _run(capsys, "check", tmp_path / "out")[0] == 0


def test_beam_without_apache_beam_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    status, _, error = _run(capsys, "build", "dota", "--root", tmp_path, "--out", tmp_path / "o", "--beam")
    assert status == 2
    assert "pip install 'earthgpt-jax[beam]'" in error


def test_beam_builds_the_same_files(native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("apache_beam")
    words = ("build", "ssdd_yolo", "--root", native, "--max-quarantine", "0.5", "--out")
    options = ("--beam", "--beam-options=--runner=DirectRunner --direct_num_workers=1")
    assert _run(capsys, *words, tmp_path / "beam", *options)[0] == 1
    assert _run(capsys, *words, tmp_path / "local", "--workers", "1")[0] == 1
    beam, local = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "ssdd_yolo").iterdir()}
        for name in ("beam", "local")
    )
    assert beam == local
    status, _, error = _run(capsys, *words, tmp_path / "x", "--beam", "--beam-options=runner=Nowhere")
    assert (status, "expected --NAME=VALUE" in error) == (2, True)
