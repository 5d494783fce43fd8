"""No file of a dataset's folders gets lost: formats, links, files of the operating system, equal names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.builder import build
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.readers.assemble import ImageFolder
from earthgpt_jax.datasets.readers.native_tree import files_below
from earthgpt_jax.records import Task
from tests.support.native_datasets import Native, card, png, why
from tests.support.rasters import raster_file

CLASSES = card("folders", {"images": "i"}, tasks=(Task.CLASSIFICATION,), classes=("ship", "jetty", "mole", "bay"))


def test_every_file_of_a_class_folder_counts(native: Native, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 16, 16)).astype(np.uint8)
    native.put("i/ship/1.png", png())
    native.put("i/ship/1.jpg", png())  # another image of the same stem
    native.put("i/jetty/2.jp2", raster_file(values, driver="JP2OpenJPEG", georeferenced=False))
    native.put("i/mole/3.heic", b"x")  # a class with a single file of an unknown format
    native.put("i/bay/4.tif", raster_file(values, photometric="RGB"))
    native.put("i/bay/4.tfw", "10")
    native.put("i/bay/list.txt", "4.tif")
    for name in ("i/bay/._4.tif", "i/bay/Thumbs.db", "i/__MACOSX/bay/._4.tif", "i/.DS_Store"):
        native.put(name, b"x")
    records, rejected, dropped = native.read(CLASSES)
    assert set(records) == {"ship/1.png", "ship/1.jpg", "jetty/2", "bay/4"}
    assert why(rejected) == {"3.heic": ["image: unknown image format '.heic'"]}
    assert sum(event.count for event in dropped) == 6
    (built,) = build([CLASSES], root=tmp_path, out=tmp_path / "out", max_quarantine=0.3).datasets
    counts = read_manifest(tmp_path / "out" / "s")["native"]
    assert counts["image"] == {"native": 5, "kept": 4, "quarantined": 1, "dropped": 0}
    assert counts["file"] == {"native": 6, "kept": 0, "quarantined": 0, "dropped": 6}
    assert built.quarantined == {"image: unknown image format '...'": 1}


def test_files_of_the_operating_system_are_no_annotations(native: Native) -> None:
    native.put("i/1.png", png())
    native.put("a/1.txt", "0 0.5 0.5 0.1 0.1")
    native.put("a/._1.txt", b"\x00\x05\x16\x07")
    native.put("i/._1.png", b"\x00\x05\x16\x07")
    records, rejected, dropped = native.read(card("yolo"))
    assert set(records) == {"1"} and rejected == []
    assert [(event.item_type, event.count) for event in dropped] == [("file", 2)]


def test_folders_that_are_links_are_followed(native: Native, tmp_path: Path) -> None:
    native.put("i/ship/1.png", png())
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "2.png").write_bytes(png())
    (native.root / "d/i/jetty").symlink_to(outside)
    (native.root / "d/i/ship/gone.png").symlink_to(tmp_path / "nowhere.png")
    records, rejected, _ = native.read(CLASSES)
    assert set(records) == {"ship/1", "jetty/2"}
    assert why(rejected) == {"ship/gone": ["image: image cannot be read: No such file or directory"]}
    # Boxes whose images are in a linked folder.
    native.put("a/2.txt", "0 0.5 0.5 0.1 0.1")
    records, _, _ = native.read(card("yolo"))
    assert "2" in records


def test_a_link_to_a_folder_around_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    with pytest.raises(EarthGPTError, match="up: a link to a folder that contains it"):
        files_below(tmp_path)


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (("a/1.png", "b/1.png"), "b/1.png", ["b/1.png"]),
        (("x/a/1.png", "x/b/1.png"), "b/1.png", ["x/b/1.png"]),
        (("a/1.png", "b/1.png"), "1.png", ["a/1.png", "b/1.png"]),
        (("1.png", "1.tif"), "1.tif", ["1.tif"]),
        (("A.png", "a.png"), "A", ["A.png"]),
        (("a/1.png",), "c:\\data\\a\\1.png", ["a/1.png"]),
    ],
)
def test_images_are_found_by_as_much_of_their_path_as_is_known(tmp_path: Path, names, wanted, expected) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(png())
    found = ImageFolder(tmp_path).find(wanted)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == expected
