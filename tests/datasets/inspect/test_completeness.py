"""`earthgpt data check --root`: is a native dataset complete?"""

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
    """Three images with a ship each, the second of which is cut short, in `tmp_path/d`."""
    there = Native(tmp_path)
    for number in (1, 2, 9):
        image = tmp_path / "d" / "i" / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)).save(image)
        there.put(f"a/{number}.txt", "0 0.5 0.5 0.5 0.2\n")
    (tmp_path / "d" / "i" / "2.png").write_bytes(png()[:60])
    return tmp_path


def _card(native: Path, objects: int = 3, train: int = 77) -> Path:
    path = native / "ours.yaml"
    path.write_text(CARD % (objects, train))
    return path


def _check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str], str]:
    capsys.readouterr()
    status = main(["data", "check", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def test_counts_splits_and_reasons(native: Path, capsys) -> None:
    status, said, _ = _check(capsys, _card(native), "--root", native)
    rows = {line.split()[0]: line.split(None, 3)[1:] for line in said}
    assert status == 0
    assert said[0] == "our_ships: nothing is known to be missing, but the card has no figures to rely on"
    assert rows["images"] == ["3", "3", "agrees"]
    assert rows["objects"] == ["3", "3", "agrees"]
    assert rows["test"] == ["1", "1", "agrees"]
    assert rows["train"] == ["77", said[4].split()[2], said[4].split(None, 3)[3]]
    assert rows["train"][2].endswith("; the card's figure is unverified")
    assert any(line.startswith("  quarantined 1: image: image of N bytes cannot be decoded") for line in said)
    assert said[-1] == "  unverified in the card: licence, expected.train"
    kept = said[4].split()[2]
    assert _check(capsys, _card(native, train=int(kept)), "--root", native)[1][0] == "our_ships: complete"


def test_what_does_not_agree_is_not_complete(native: Path, capsys) -> None:
    status, said, _ = _check(capsys, _card(native, objects=5), "--root", native)
    assert status == 1
    assert said[0] == "our_ships: NOT complete"
    assert any(line.split(None, 3) == ["objects", "5", "3", "differs by -2"] for line in said)
    assert said[-1] == "  to be had from: https://example.org/ships"


def test_a_split_does_not_know_of_quarantined_images(native: Path) -> None:
    ours = card("yolo", tasks=(Task.HBB,), classes=("ship",), expected={"train": 2, "val": 0, "test": 1})
    short = check_native(ours, root=native)
    by_name = {figure.name: figure for figure in short.figures}
    assert by_name["images"].expected is None
    assert sum(by_name[split].found for split in ("train", "val", "test") if split in by_name) == 2
    assert all(figure.slack == 1 for name, figure in by_name.items() if name in ("train", "val", "test"))


def test_parts_that_are_not_there(native: Path) -> None:
    parts = ({"annotations": "a", "images": "i"}, {"annotations": "more", "images": "i"})
    report = check_native(card("yolo", *parts, classes=("ship",)), root=native)
    assert (report.complete, report.absent) == (False, ("more",))
    assert "  not there: more" in report.text().splitlines()
    lost = check_native(card("yolo", folder="elsewhere"), root=native)
    assert not lost.complete
    assert "expected the dataset in" in lost.text()


def test_hashes_are_sha256sums(native: Path, capsys) -> None:
    listed, ours = native / "list.sha256", _card(native)
    status, _, said = _check(capsys, ours, "--root", native, "--write-hashes", listed)
    assert (status, "6 files" in said) == (0, True)
    assert subprocess.run(["sha256sum", "--check", "--strict", listed.name], cwd=native, check=False).returncode == 0
    assert _check(capsys, ours, "--root", native, "--hashes", listed)[0] == 0

    (native / "d/a/1.txt").write_text("0 0.5 0.5 0.5 0.3\n")
    (native / "d/i/9.png").rename(native / "d/i/12.png")
    status, said, _ = _check(capsys, ours, "--root", native, "--hashes", listed)
    assert status == 1
    assert "  sha256 differs: d/a/1.txt" in said
    assert "  listed, but not there: d/i/9.png" in said
    assert "  1 files are not in the list of sums" in said

    made = subprocess.run("sha256sum ./d/*/* | sed 's/  / */'", cwd=native, shell=True, capture_output=True, check=True)
    listed.write_bytes(made.stdout)
    assert not [line for line in _check(capsys, ours, "--root", native, "--hashes", listed)[1] if "sum" in line]


def test_names_that_a_list_must_escape(tmp_path: Path) -> None:
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
        (["all", "--root", "."], "holds none of the datasets"),
        (["nonsense", "--root", "."], "no card for nonsense"),
        (["hit_uav", "--root", ".", "--hashes", "none.sha256"], "it cannot be read"),
        (["hit_uav", "--root", ".", "--hashes", "torn.sha256"], "line 2: expected `<sha256>  <file>`"),
        (["hit_uav", "--hashes", "torn.sha256"], "name their folder with --root"),
        (["hit_uav", "--root", ".", "--against", "x"], "leave --root out"),
        (["nowhere", "--against", "x"], "there is no such folder"),
    ],
)
def test_what_the_user_can_mend(tmp_path: Path, monkeypatch, capsys, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.sha256").write_text(f"{'0' * 64}  a\n{'0' * 40}  b\n")
    status, _, wrong = _check(capsys, *words)
    assert (status, wrong.startswith("error: ")) == (2, True)
    assert message in wrong


@pytest.mark.realdata
def test_real_samples_are_parts_of_their_datasets(realdata: Path, capsys) -> None:
    _, said, _ = _check(capsys, "ssdd_yolo", "--root", realdata)
    assert any(line.split()[:3] in (["objects", "-", "221"], ["objects", "2587", "221"]) for line in said), said
