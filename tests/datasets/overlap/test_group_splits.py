"""Splits by groups of near-duplicates: `earthgpt data split`."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import zoom

from earthgpt_jax.cli.main import main
from earthgpt_jax.datasets.cards import SPLITS, load_card
from earthgpt_jax.datasets.overlap.group_splits import split_by_groups

CARD = """
name: chips
title: Chips
sensor: sar
tasks: [classification]
format: folders
folder: chips
layout: {images: images, train: splits/train.txt, val: splits/val.txt, test: splits/test.txt}
classes: [a, b]
split: {rule: native}
licence: none
"""


def _scene(seed: int) -> Image.Image:
    coarse, fine = (np.random.default_rng((seed, side)).random((side, side, 3)) for side in (6, 24))
    pixels = 0.8 * zoom(coarse, (16, 16, 1), order=1) + 0.2 * zoom(fine, (4, 4, 1), order=1)
    return Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    """Sixty scenes in two classes, each as it is, turned, mirrored and as a small JPEG; and two equal flat images."""
    root = tmp_path_factory.mktemp("native")
    for number in range(60):
        folder = root / "chips" / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = _scene(number)
        image.save(folder / f"{number}.png")
        image.transpose(Image.Transpose.ROTATE_90).save(folder / f"{number}_turned.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / f"{number}_mirrored.png")
        image.resize((48, 48)).save(folder / f"{number}_small.jpg", quality=80)
    for name in ("flat1", "flat2"):
        Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / f"{name}.png")
    (root / "chips.yaml").write_text(CARD)
    return root


def test_copies_stay_together_and_the_build_reads_the_lists(native: Path, tmp_path: Path, capsys) -> None:
    assert main(["data", "split", str(native / "chips.yaml"), "--root", str(native), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "61 groups, the largest of 4 images" in printed
    lists = {split: (native / "chips" / "splits" / f"{split}.txt").read_text().split() for split in SPLITS}
    assert all(lists.values()) and sum(map(len, lists.values())) == 242
    scene_splits = {name.split("/")[1].split("_")[0].rstrip("12") if "flat" in name else name.split("_")[0]: split
                    for split in SPLITS for name in lists[split]}  # fmt: skip
    for split, names in lists.items():
        for name in names:
            key = "flat" if "flat" in name else name.split("_")[0]
            assert scene_splits[key] == split, name
    assert 0.5 < len(lists["train"]) / 242 < 0.85
    times = [path.stat().st_mtime_ns for path in (native / "chips" / "splits").iterdir()]
    assert main(["data", "split", str(native / "chips.yaml"), "--root", str(native)]) == 0
    assert "exist already" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in (native / "chips" / "splits").iterdir()] == times
    assert main(["data", "build", str(native / "chips.yaml"), "--root", str(native), "--out", str(tmp_path)]) == 0


def test_groups_take_the_strictest_split_of_another_dataset(native: Path, tmp_path: Path) -> None:
    from earthgpt_jax.datasets.build.writer import write_dataset
    from earthgpt_jax.records import Record, Sensor, Task

    def record(seed: int, split: str) -> Record:
        buffer = io.BytesIO()
        _scene(seed).resize((200, 200)).save(buffer, "JPEG", quality=90)
        return Record(
            id=f"other/{split}/{seed}", image=buffer.getvalue(), height=200, width=200, sensor=Sensor.SAR,
            source="other", split=split, tasks=(Task.CLASSIFICATION,), label="a",
        )  # fmt: skip

    train, test = [record(n, "train") for n in range(10)], [record(n, "test") for n in range(5, 15)]
    write_dataset({"train": train, "test": test}, out=tmp_path / "other", name="other")
    found = split_by_groups(native, load_card(native / "chips.yaml"), like=[tmp_path / "other"], workers=1)
    split_of = {name: split for split, names in found.ids.items() for name in names}
    for number in range(15):
        assert split_of[f"{'ab'[number % 2]}/{number}"] == ("train" if number < 5 else "test")
        assert split_of[f"{'ab'[number % 2]}/{number}_turned"] == ("train" if number < 5 else "test")
    assert found.inherited == 60
    # The flat images have no hash and no counterpart; names alone decide for scenes that look different.
    renamed = [dataclasses.replace(record(99, "test"), id="named/test/flat1")]
    write_dataset({"test": renamed}, out=tmp_path / "named", name="named")
    found = split_by_groups(native, load_card(native / "chips.yaml"), names_like=[tmp_path / "named"], workers=1)
    assert {"a/flat1", "a/flat2", "b/flat1", "b/flat2"} & set(found.ids["test"]) and found.inherited == 2
