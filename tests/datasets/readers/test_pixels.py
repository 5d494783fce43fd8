"""Pixels of records: one stretch for a scene and its tiles, and annotations of images with an orientation tag."""

from __future__ import annotations

import collections
import io

import numpy as np
import pytest
from PIL import Image
from rasterio.enums import ColorInterp as C

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.tiling import cut_into_tiles, tile_windows
from earthgpt_jax.datasets.cards import Tile, load_card
from earthgpt_jax.datasets.examples import serialize_record, to_record
from earthgpt_jax.raster.decode import decode, examine, record_pixels
from earthgpt_jax.raster.policy import Stretch, StretchPolicy
from earthgpt_jax.records import Record, Sensor, Task
from tests.support.native_datasets import Native, card, why
from tests.support.rasters import raster_file

RNG = np.random.default_rng(0)
SHAPE = (50, 70)
LIGHT = np.linspace(1, 40, 70)  # brighter from left to right, so that every tile has another range


def _values(bands: int, dtype: type) -> np.ndarray:
    return (RNG.integers(50, 100, (bands, *SHAPE)) * LIGHT).astype(dtype)


def _with_nodata(values: np.ndarray, nodata: float) -> np.ndarray:
    values[:, 10:30, 20:45] = nodata
    return values


def _alpha(values: np.ndarray) -> np.ndarray:
    values[-1] = np.iinfo(values.dtype).max
    values[-1, 10:30, 20:45] = 0
    return values


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (*SHAPE, 3)).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


RGBA = (C.red, C.green, C.blue, C.alpha)
SCENES = {
    "JPEG": (_jpeg(), {}),
    "JPEG, one band": (_jpeg(), {"bands": "green", "range": [20, 200]}),
    "8 bits, no-data": (raster_file(_with_nodata(_values(3, np.uint8), 7), nodata=7, photometric="RGB"), {}),
    "16 bits": (raster_file(_values(1, np.uint16)), {}),
    "16 bits, RGB": (raster_file(_values(3, np.uint16), photometric="RGB"), {}),
    "16 bits, RGBA": (raster_file(_alpha(_values(4, np.uint16)), photometric="RGB", colours=RGBA), {}),
    "signed": (raster_file(_with_nodata(_values(1, np.int16), -9999), nodata=-9999), {}),
    "float, no-data of the card": (raster_file(_with_nodata(_values(1, np.float32), -9999)), {"nodata": -9999}),
    "float, NaN": (raster_file(_with_nodata(_values(3, np.float32), np.nan), photometric="RGB"), {}),
    "13 bands": (raster_file(_values(13, np.uint16)), {"bands": [4, 3, 2]}),
    "complex SAR": (raster_file(_values(1, np.float32).astype(np.complex64)), {"values": "amplitude"}),
    "SAR, filtered": (raster_file(_values(1, np.uint16)), {"values": "intensity", "speckle": "lee"}),
    "fixed range": (raster_file(_values(1, np.float64)), {"range": [100, 2000]}),
}


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_has_one_stretch_and_its_tiles_agree_with_it(name: str) -> None:
    data, policy = SCENES[name]
    info = examine(data, StretchPolicy.of(policy, where="test"))
    scene = Record(
        id="s/train/1", image=data, height=info.height, width=info.width, sensor=Sensor.SAR, source="s", split="train",
        tasks=(Task.HBB,), stretch=info.stretch,
    )  # fmt: skip
    whole = record_pixels(scene)
    assert whole.std() > 5
    tile = Tile(size=32, overlap=8)
    tiles = list(cut_into_tiles(scene, tile, counter=collections.Counter()))
    for record, (x0, y0, x1, y1) in zip(tiles, tile_windows(info.width, info.height, tile), strict=True):
        np.testing.assert_array_equal(record_pixels(record), whole[y0:y1, x0:x1])
        assert record_pixels(to_record(serialize_record(record))).tolist() == record_pixels(record).tolist()
    if info.stretch and "range" not in policy:  # each tile alone would look different
        assert not np.array_equal(decode(tiles[0].image), record_pixels(tiles[0]))


def test_the_policy_of_a_card_reaches_the_records(native: Native, tmp_path) -> None:
    native.put("i/1.tif", raster_file(_values(1, np.float32) * 0 + np.linspace(250, 320, 70, dtype=np.float32)))
    native.put("a/1.txt", "0 0.5 0.5 0.1 0.1")
    policy = StretchPolicy.of({"range": [260, 310]}, where="card", sensor=Sensor.INFRARED)
    records, _, _ = native.read(card("yolo", sensor=Sensor.INFRARED, stretch=policy))
    assert Stretch.from_text(records["1"].stretch).rule() == "260 to 310 of band 1"
    expected = np.clip((np.linspace(250, 320, 70) - 260) / 50 * 255, 0, 255)
    assert np.abs(record_pixels(records["1"])[0, :, 0] - expected).max() < 1.01
    path = tmp_path / "c.yaml"
    text = "name: c\ntitle: t\nsensor: optical\ntasks: [hbb]\nformat: yolo\nfolder: d\nlicence: x\n"
    text += "layout: {annotations: a}\n"
    path.write_text(text + "stretch: {bands: [4, 3, 2], percentiles: [1, 99]}\n")
    assert load_card(path).stretch == StretchPolicy(bands=(4, 3, 2), percentiles=(1.0, 99.0))
    path.write_text(text + "stretch: {values: amplitude}\n")
    with pytest.raises(EarthGPTError, match="apply to SAR images; these are optical"):
        load_card(path)


# ------------------------------------------------------------------------------------------ orientation
def _picture(width: int, height: int, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "navy").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


LABELS = {
    "yolo": "0 0.5 0.5 0.1 0.1",
    "dota": "2 2 9 2 9 9 2 9 ship 0",
    "visdrone": "2,2,9,9,1,1,0,0",
    "vhr10": "(2,2),(9,9),1",
}


@pytest.mark.parametrize("format", LABELS)
def test_boxes_without_the_image_size_are_not_placed_on_a_turned_image(native: Native, format: str) -> None:
    for orientation in range(1, 9):
        native.put(f"i/{orientation}.jpg", _picture(40, 30, orientation))
        native.put(f"a/{orientation}.txt", LABELS[format])
    native.put("i/empty.jpg", _picture(40, 30, 6))
    native.put("a/empty.txt", "")
    records, rejected, _ = native.read(card(format, tasks=(Task.HBB,)))
    assert set(records) == {"1", "empty"}
    assert (records["empty"].width, records["empty"].height) == (30, 40)  # as displayed: nothing to place
    assert record_pixels(records["empty"]).shape == (40, 30, 3)
    for orientation in range(2, 9):
        reasons = why(rejected)[str(orientation)]
        assert f"has the orientation tag {orientation}, and the annotation does not say" in reasons[0]
        assert "store the image without the tag" in reasons[0] and len(reasons) == 2  # the image and its object


def test_captions_and_classes_are_of_the_displayed_image(native: Native) -> None:
    native.put("i/ship/1.jpg", _picture(40, 30, 6))
    records, rejected, _ = native.read(card("folders", {"images": "i"}, tasks=(Task.CLASSIFICATION,)))
    assert rejected == [] and (records["ship/1"].width, records["ship/1"].height) == (30, 40)


def _coco(width: int, height: int) -> dict:
    return {
        "categories": [{"id": 1, "name": "ship"}],
        "images": [{"id": 1, "file_name": "1.jpg", "width": width, "height": height}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [2, 2, 5, 5]}],
    }


@pytest.mark.parametrize(
    ("picture", "annotated", "placed"),
    [
        ((40, 30, 6), (30, 40), True), ((40, 30, 6), (40, 30), False), ((40, 30, 3), (40, 30), False),
        ((30, 30, 6), (30, 30), False), ((40, 30, 1), (40, 30), True), ((40, 30, 6), (50, 60), False),
    ],
)  # fmt: skip
def test_an_annotated_size_tells_where_boxes_are(native: Native, picture, annotated, placed) -> None:
    native.put("i/1.jpg", _picture(*picture))
    native.put("a.json", _coco(*annotated))
    records, rejected, _ = native.read(card("coco", {"annotations": "a.json", "images": "i"}))
    assert bool(records) == placed and bool(rejected) != placed
    for record in records.values():
        assert (record.width, record.height) == annotated
