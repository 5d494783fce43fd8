"""Test tiles of large scenes: their objects compared with shapely, their pixels, their annotations."""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from earthgpt_jax.boxes import degeneracy, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.builder import build
from earthgpt_jax.datasets.build.tiling import cut_into_tiles, size_limit, tile_windows
from earthgpt_jax.datasets.cards import Images, Tile
from earthgpt_jax.datasets.image_digests import image_digest, read_image_digests
from earthgpt_jax.datasets.inspect.validate import find_problems
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Object, Record, Sensor, Task, Turn
from tests.support.native_datasets import card


def _encoded(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format, **options)
    return buffer.getvalue()


def _scene(*objects: Object, width: int = 100, height: int = 70, image: bytes = b"", **changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": "s/train/a", "image": image or _encoded(np.zeros((height, width, 3), np.uint8)), "height": height,
        "width": width, "sensor": Sensor.OPTICAL, "source": "s", "split": "train", "tasks": (Task.HBB, Task.OBB),
        "objects": objects,
    }  # fmt: skip
    return Record(**values | changes)


def _ship(x0: float, y0: float, x1: float, y1: float, label: str = "ship", **options: Any) -> Object:
    return Object(label=label, polygon=rect_to_polygon(x0, y0, x1, y1), **options)


def _cut(record: Record, tile: Tile) -> tuple[dict[str, Record], collections.Counter]:
    counter: collections.Counter[str] = collections.Counter()
    tiles = list(cut_into_tiles(record, tile, counter=counter))
    assert len({tile.id for tile in tiles}) == len(tiles)
    return {tile.id.removeprefix("s/train/a"): tile for tile in tiles}, counter


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 120), overlap=st.floats(0, 0.99))
def test_tiles_cover_a_scene_and_end_at_its_border(width: int, height: int, size: int, overlap: float) -> None:
    tile = Tile(size=size, overlap=int(size * overlap))
    if width * height / (size - tile.overlap) ** 2 > 2000:
        return
    found = tile_windows(width, height, tile)
    assert len(set(found)) == len(found)
    covered = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in found:
        assert (x1 - x0, y1 - y0) == (min(size, width), min(size, height))
        assert x1 <= width and y1 <= height
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    rows = sorted({y for _, y, _, _ in found})
    assert all(b - a <= size - tile.overlap for a, b in itertools.pairwise(rows))


_BOXES = st.tuples(
    st.floats(-10, 110), st.floats(-10, 80), st.floats(1, 60), st.floats(1, 30), st.floats(0, 3.14)
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(boxes=st.lists(_BOXES, min_size=1, max_size=6), overlap=st.integers(0, 20))
def test_sufficiently_visible_objects_are_kept_with_the_visible_share_of_shapely(
    boxes: list[tuple[float, ...]], overlap: int
) -> None:
    tile = Tile(size=40, overlap=overlap, keep=0.7, ignore=0.3)
    polygons = [rotated_to_polygon(cx=x, cy=y, w=w, h=h, angle=a) for x, y, w, h, a in boxes]
    scene_area = shapely.box(0, 0, 100, 70)
    shapes = [shapely.Polygon(polygon.reshape(4, 2).astype(float)) for polygon in polygons]
    kept = [i for i, shape in enumerate(shapes) if shape.intersection(scene_area).area > 1e-3 * shape.area]
    objects = [Object(label=f"class {i}", polygon=polygons[i]) for i in kept]
    tiles, counter = _cut(_scene(*objects), tile)
    somewhere = set()
    for x0, y0, x1, y1 in tile_windows(100, 70, tile):
        record = tiles[f"@{x0},{y0}"]
        found = {item.label: item for item in record.objects}
        for i in kept:
            seen = shapes[i].intersection(scene_area)
            share = seen.intersection(shapely.box(x0, y0, x1, y1)).area / seen.area
            item = found.get(f"class {i}")
            if abs(share - tile.ignore) > 1e-4:
                assert (item is not None) == (share > tile.ignore)
            if item is None:
                continue
            somewhere.add(i)
            assert item.visible == pytest.approx(share, abs=1e-3)
            if abs(share - tile.keep) > 1e-4:
                assert item.difficult == (share < tile.keep)
            assert not degeneracy(item.polygon, width=record.width, height=record.height)
            moved = shapely.Polygon((item.polygon.reshape(4, 2) + np.array([x0, y0])).astype(float))
            if item.visible == 1:  # unchanged, with corners beyond the scene
                np.testing.assert_allclose(moved.symmetric_difference(shapes[i]).area, 0, atol=1e-2 * shapes[i].area)
            else:  # the box contains all of the visible part
                part = seen.intersection(shapely.box(x0, y0, x1, y1))
                assert part.difference(moved.buffer(1e-3)).area < 1e-3
    assert counter["objects_in_no_tile"] == len(kept) - len(somewhere)
    assert counter["tiles"] == len(tiles)


def test_objects_at_a_tile_border_follow_the_thresholds_of_the_card() -> None:
    ships = [_ship(30, 5, 50, 10), _ship(36, 15, 46, 20, "bus"), _ship(39, 25, 49, 30, "car"), _ship(5, 5, 9, 9, "van")]
    tiles, counter = _cut(_scene(*ships, width=80, height=40), Tile(size=40, keep=0.5, ignore=0.2))
    left = {item.label: item for item in tiles["@0,0"].objects}
    assert set(left) == {"ship", "bus", "van"}  # only a tenth of the car is visible: too little
    assert (left["ship"].visible, left["ship"].difficult) == (0.5, False)
    np.testing.assert_array_equal(left["ship"].polygon, rect_to_polygon(30, 5, 40, 10))
    assert (left["bus"].visible, left["bus"].difficult) == (pytest.approx(0.4), True)
    right = {item.label: item for item in tiles["@40,0"].objects}
    np.testing.assert_array_equal(right["car"].polygon, rect_to_polygon(0, 25, 9, 30))
    assert right["car"].visible == pytest.approx(0.9)
    # A part of the car is visible in the left tile, which does not have it.
    assert [tiles[name].complete for name in ("@0,0", "@40,0")] == [False, True]
    assert counter == {
        "scenes_cut": 1, "tiles": 2, "objects_whole": 1, "objects_cut": 4, "objects_difficult": 1,
        "objects_removed": 1, "objects_in_no_tile": 0,
    }  # fmt: skip
    _, counter = _cut(_scene(_ship(0, 0, 80, 20), width=80, height=40), Tile(size=40, keep=0.9, ignore=0.6))
    assert counter["objects_in_no_tile"] == 1


def test_annotations_of_a_whole_scene_do_not_pass_to_its_tiles() -> None:
    ships = [_ship(5, 5, 15, 10, phrase="the ship in the west"), _ship(60, 5, 70, 10), _ship(66, 20, 76, 30, "bus")]
    scene = _scene(
        *ships, width=80, height=40, tasks=(Task.CLASSIFICATION, Task.VQA, Task.CAPTION, Task.HBB, Task.GROUNDING),
        label="harbor", references=("two ships",), turns=(Turn(question="How many ships?", answer="2"),),
    )  # fmt: skip
    tiles, _ = _cut(scene, Tile(size=40))
    for record in tiles.values():
        assert (record.label, record.turns, record.references, record.split) == ("", (), (), "train")
        assert record.tasks == (Task.HBB, Task.GROUNDING, Task.REGION_CAPTION)
    assert [item.phrase for item in tiles["@0,0"].objects] == ["the only ship"]
    assert [item.phrase for item in tiles["@40,0"].objects] == ["the only ship", "the only bus"]
    tiles, _ = _cut(dataclasses.replace(scene, complete=False), Tile(size=40))  # as if an object had been rejected
    assert {item.phrase for record in tiles.values() for item in record.objects} == {""}
    assert tiles["@0,0"].tasks == (Task.HBB,)
    # An object that is removed from a tile is still visible in it.
    tiles, _ = _cut(_scene(_ship(5, 5, 15, 10), _ship(38, 20, 58, 30), width=80, height=40), Tile(size=40))
    assert [item.phrase for item in tiles["@0,0"].objects] == [""]
    (small,) = _cut(scene, Tile(size=80))[0].values()
    assert small is scene


@pytest.mark.parametrize(
    ("pixels", "format", "again"),
    [
        (np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8), "TIFF", "PNG"),
        (np.random.default_rng(1).integers(0, 255, (50, 70), np.uint8), "BMP", "PNG"),
        (np.random.default_rng(2).integers(0, 65535, (50, 70), np.uint16), "TIFF", "PNG"),
        (np.random.default_rng(3).integers(0, 65535, (50, 70), np.uint16), "PNG", "PNG"),
        (np.random.default_rng(4).normal(size=(50, 70)).astype(np.float32), "TIFF", "TIFF"),
        (np.random.default_rng(5).integers(-(2**30), 2**30, (50, 70), np.int32), "TIFF", "TIFF"),
    ],
)
def test_the_pixels_of_a_tile_are_those_of_the_scene(pixels: np.ndarray, format: str, again: str) -> None:
    scene = _scene(width=70, height=50, image=_encoded(pixels, format, dpi=(300, 300)))
    tiles, _ = _cut(scene, Tile(size=32, overlap=5))
    for x0, y0, x1, y1 in tile_windows(70, 50, Tile(size=32, overlap=5)):
        record = tiles[f"@{x0},{y0}"]
        with Image.open(io.BytesIO(record.image)) as image:
            assert image.format == again
            got = np.asarray(image)
        assert got.dtype == pixels.dtype
        np.testing.assert_array_equal(got, pixels[y0:y1, x0:x1])
        assert decode(record.image).shape == (record.height, record.width, 3)
    first, second = ([record.image for record in _cut(scene, Tile(size=32))[0].values()] for _ in range(2))
    assert first == second


def _native(root: Path) -> None:
    """Write a scene of 100 x 60 pixels with three objects, a small image, and a scene with an unknown class."""
    (root / "d" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("large", (60, 100)), ("small", (20, 30)), ("odd", (60, 100))):
        (root / "d" / f"{name}.png").write_bytes(_encoded(rng.integers(0, 255, (*size, 3), np.uint8)))
        (root / "d" / "a" / f"{name}.txt").write_text("2 2 9 2 9 9 2 9 ship 0\n")
    with (root / "d" / "a" / "large.txt").open("a") as file:
        file.write("45 10 55 10 55 15 45 15 ship 0\n90 50 99 50 99 59 90 59 small-vehicle 0\n")
    with (root / "d" / "a" / "odd.txt").open("a") as file:
        file.write("45 10 55 10 55 15 45 15 zeppelin 0\n")


def test_a_build_cuts_scenes_and_counts_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _native(tmp_path)
    part = {"annotations": "a", "images": "."}
    found = card("dota", part, tasks=(Task.HBB, Task.OBB), tile=Tile(size=50, overlap=10))
    # Pillow raises an error above twice this number; the scenes are larger.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    (built,) = build([found], root=tmp_path, out=tmp_path / "out", max_quarantine=0.3).datasets
    monkeypatch.undo()
    folder = tmp_path / "out" / "s"
    values = read_manifest(folder)
    assert values["native"]["image"] == {"native": 3, "kept": 3, "quarantined": 0, "dropped": 0}
    assert values["native"]["object"] == {"native": 6, "kept": 5, "quarantined": 1, "dropped": 0}
    assert values["tiles"] == {
        "scenes_not_cut": 1, "scenes_cut": 2, "tiles": 12, "objects_whole": 5, "objects_difficult": 4,
        "objects_in_no_tile": 0,
    }  # fmt: skip
    assert sum(built.records.values()) == 13
    assert sum(built.splits.values()) == 3
    records = {record.id: record for split in values["counts"] for record in RecordSource(folder, split)}
    splits = collections.defaultdict(set)
    for record in records.values():
        splits[record.id.split("/", 2)[2].partition("@")[0]].add(record.split)
    assert {name: len(of_scene) for name, of_scene in splits.items()} == {"large": 1, "small": 1, "odd": 1}
    assert not find_problems(folder)
    # Tiles have the digest of their scene, so that copies of the scene in other datasets are found.
    for split, found_digests in read_image_digests(folder).items():
        names = [record.id.split("/", 2)[2].partition("@")[0] for record in RecordSource(folder, split)]
        scenes = [image_digest((tmp_path / "d" / f"{name}.png").read_bytes()) for name in names]
        assert found_digests.tolist() == scenes
    odd = [item.phrase for name, record in records.items() if "/odd@" in name for item in record.objects]
    assert odd == [""]  # an object with an unknown class was rejected, so nothing is "the only" one


def test_tiles_require_images_and_boxes(tmp_path: Path) -> None:
    _native(tmp_path)
    for options in ({"tasks": (Task.VQA,)}, {"tasks": (Task.HBB,), "images": Images.NONE}):
        found = card("dota", {"annotations": "a", "images": "."}, tile=Tile(size=50), **options)
        with pytest.raises(EarthGPTError, match="`tile` requires images"):
            build([found], root=tmp_path, out=tmp_path / "out")


def test_only_scenes_that_are_cut_may_be_very_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = _encoded(np.zeros((30, 30, 3), np.uint8))
    with size_limit(Tile(size=10)):
        assert decode(data).shape == (30, 30, 3)
    with size_limit(None), pytest.raises(EarthGPTError, match="cut it into tiles"):
        decode(data)
    assert Image.MAX_IMAGE_PIXELS == 100
