"""Test `earthgpt data check --root`, which checks whether native datasets are complete."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.cli.main import main
from earthgpt_jax.common import digests
from earthgpt_jax.datasets.inspect.completeness import check_native
from earthgpt_jax.records import Task
from tests.support.native_datasets import Native, card, png

CARD = """
name: our_ships
title: ours
sensor: sar
tasks: [hbb]
format: yolo
folder: d
layout: {annotations: a, images: i}
classes: [ship]
split: {rule: name, test: '9$'}
licence: ours
obtain: https://example.org/ships
expected: {images: 3, objects: %d, test: 1, train: %d}
unverified: [licence, expected.train]
"""


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """Write three images with one ship each to `tmp_path/d`; the second image is truncated."""
    files = Native(tmp_path)
    for number in (1, 2, 9):
        image = tmp_path / "d" / "i" / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)).save(image)
        files.put(f"a/{number}.txt", "0 0.5 0.5 0.5 0.2\n")
    (tmp_path / "d" / "i" / "2.png").write_bytes(png()[:60])
    return tmp_path


def _card(native: Path, objects: int = 3, train: int = 77) -> Path:
    path = native / "ours.yaml"
    path.write_text(CARD % (objects, train))
    return path


def _check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str], str]:
    capsys.readouterr()
    status = main(["data", "check", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_counts_splits_and_reasons(native: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = _check(capsys, _card(native), "--root", native)
    rows = {line.split()[0]: line.split(None, 3)[1:] for line in output}
    assert status == 0
    assert output[0] == "our_ships: no problem found, but the counts of the card cannot confirm that it is complete"
    assert rows["images"] == ["3", "3", "agrees"]
    assert rows["objects"] == ["3", "3", "agrees"]
    assert rows["test"] == ["1", "1", "agrees"]
    assert rows["train"] == ["77", output[4].split()[2], output[4].split(None, 3)[3]]
    assert rows["train"][2].endswith("; the card's number is unverified")
    assert any(line.startswith("  quarantined 1: image: image of N bytes cannot be decoded") for line in output)
    assert output[-1] == "  unverified in the card: licence, expected.train"
    kept = output[4].split()[2]
    assert _check(capsys, _card(native, train=int(kept)), "--root", native)[1][0] == "our_ships: complete"


def test_wrong_counts_mean_not_complete(native: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = _check(capsys, _card(native, objects=5), "--root", native)
    assert status == 1
    assert output[0] == "our_ships: NOT complete"
    assert any(line.split(None, 3) == ["objects", "5", "3", "differs by -2"] for line in output)
    assert output[-1] == "  download: https://example.org/ships"


def test_split_counts_may_be_lower_by_the_quarantined_images(native: Path) -> None:
    ours = card("yolo", tasks=(Task.HBB,), classes=("ship",), expected={"train": 2, "val": 0, "test": 1})
    short = check_native(ours, root=native)
    by_name = {count.name: count for count in short.counts}
    assert by_name["images"].expected is None
    assert sum(by_name[split].found for split in ("train", "val", "test") if split in by_name) == 2
    assert all(count.slack == 1 for name, count in by_name.items() if name in ("train", "val", "test"))


def test_missing_parts_of_the_layout(native: Path) -> None:
    parts = ({"annotations": "a", "images": "i"}, {"annotations": "more", "images": "i"})
    report = check_native(card("yolo", *parts, classes=("ship",)), root=native)
    assert (report.complete, report.missing_paths) == (False, ("more",))
    assert "  missing: more" in report.text().splitlines()
    lost = check_native(card("yolo", folder="elsewhere"), root=native)
    assert not lost.complete
    assert "expected the dataset in" in lost.text()


def test_hash_lists_are_compatible_with_sha256sum(native: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed, ours = native / "list.sha256", _card(native)
    status, _, log = _check(capsys, ours, "--root", native, "--write-hashes", listed)
    assert (status, "6 files" in log) == (0, True)
    assert subprocess.run(["sha256sum", "--check", "--strict", listed.name], cwd=native, check=False).returncode == 0
    assert _check(capsys, ours, "--root", native, "--hashes", listed)[0] == 0

    (native / "d/a/1.txt").write_text("0 0.5 0.5 0.5 0.3\n")
    (native / "d/i/9.png").rename(native / "d/i/12.png")
    status, output, _ = _check(capsys, ours, "--root", native, "--hashes", listed)
    assert status == 1
    assert "  sha256 differs: d/a/1.txt" in output
    assert "  listed, but missing: d/i/9.png" in output
    assert "  1 files are not in the sha256 list" in output

    process = subprocess.run(
        "sha256sum ./d/*/* | sed 's/  / */'", cwd=native, shell=True, capture_output=True, check=True
    )
    listed.write_bytes(process.stdout)
    assert not [line for line in _check(capsys, ours, "--root", native, "--hashes", listed)[1] if "sum" in line]


def test_sha256_lists_escape_special_file_names(tmp_path: Path) -> None:
    names = ("plain", "back\\slash", "two\nlines", "with  spaces ")
    for name in names:
        (tmp_path / name).write_text(name)
    listed = digests.sha256_files(tmp_path, names, title="t")
    (tmp_path / "list").write_text(digests.format_sha256_list(listed))
    assert digests.read_sha256_list(tmp_path / "list") == listed
    assert subprocess.run(["sha256sum", "--check", "--strict", "list"], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hit_uav", "--root", "nowhere"], "there is no such folder"),
        (["all", "--root", "."], "contains none of the datasets"),
        (["nonsense", "--root", "."], "no card for nonsense"),
        (["hit_uav", "--root", ".", "--hashes", "none.sha256"], "it cannot be read"),
        (["hit_uav", "--root", ".", "--hashes", "torn.sha256"], "line 2: expected `<sha256>  <file>`"),
        (["hit_uav", "--hashes", "torn.sha256"], "give their folder with --root"),
        (["hit_uav", "--root", ".", "--against", "x"], "omit --root"),
        (["nowhere", "--against", "x"], "there is no such folder"),
    ],
)
def test_user_errors_name_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.sha256").write_text(f"{'0' * 64}  a\n{'0' * 40}  b\n")
    status, _, error = _check(capsys, *words)
    assert (status, error.startswith("error: ")) == (2, True)
    assert message in error


@pytest.mark.realdata
def test_counts_of_a_real_sample(realdata: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, output, _ = _check(capsys, "ssdd_yolo", "--root", realdata)
    assert any(line.split()[:3] in (["objects", "-", "221"], ["objects", "2587", "221"]) for line in output), output
