"""A scene read part by part has the pixels and the stretch of the file decoded whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.raster import scene_file
from earthgpt_jax.raster.decode import decode_picture
from earthgpt_jax.raster.policy import Speckle, Stretch, StretchPolicy, Values
from earthgpt_jax.raster.scene_file import SceneFile, find_georeference, read_scene
from tests.support.rasters import raster_file, with_orientation

RNG = np.random.default_rng(7)
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}


def noise(dtype: str, *, bands: int = 1, low: float = 0, high: float = 3000) -> np.ndarray:
    return RNG.uniform(low, high, (bands, 70, 90)).astype(dtype)


def bordered(dtype: str, *, bands: int = 3) -> np.ndarray:
    values = noise(dtype, bands=bands, low=1)
    values[:, :9] = 0
    values[:, np.arange(70)[:, None] + np.arange(90) < 40] = 0
    values[:, 30, 50:] = 0
    values[:, 50, 50] = 0  # no border
    return values


ANY = StretchPolicy()
SCENES = {
    "u8": (raster_file(noise("uint8", bands=3, high=255), **TILED), StretchPolicy()),
    "u8 percentiles": (raster_file(noise("uint8", high=200)), StretchPolicy(percentiles=(5, 90))),
    "u16 bands": (raster_file(noise("uint16", bands=4), **TILED), StretchPolicy(bands=(4, 3, 2))),
    "u16 border": (raster_file(bordered("uint16"), **TILED), StretchPolicy()),
    "i16 no-data": (raster_file(noise("int16", low=-100), nodata=-32768), StretchPolicy(nodata=7)),
    "f32": (raster_file(noise("float32", low=-5), **TILED), StretchPolicy()),
    "f32 border": (raster_file(bordered("float32")), StretchPolicy()),
    "f32 NaN": (raster_file(np.where(RNG.random((70, 90)) < 0.2, np.nan, noise("float32")), nodata=np.nan), ANY),
    "f64 intensity": (raster_file(noise("float64", low=-1)), StretchPolicy(values=Values.INTENSITY)),
    "i32 dB border": (raster_file(bordered("int32", bands=1)), StretchPolicy(values=Values.AMPLITUDE)),
    "range": (raster_file(noise("uint32")), StretchPolicy(range=(273, 900))),
    "mask": (raster_file(noise("uint16"), mask=RNG.random((70, 90)) > 0.3), StretchPolicy()),
    "empty": (raster_file(np.zeros((1, 70, 90), np.float32), nodata=0), StretchPolicy()),
    "speckle": (raster_file(noise("uint16")), StretchPolicy(speckle=Speckle.LEE)),
    "orientation": (with_orientation(raster_file(noise("uint16"), georeferenced=False), 6), StretchPolicy()),
    "palette": (
        raster_file(RNG.integers(0, 2, (1, 70, 90), np.uint8), palette={0: (1, 2, 3, 255), 1: (9, 8, 7, 0)}),
        StretchPolicy(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_parts_are_those_of_the_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scene_file, "_BLOCK", 600)  # pixels: many blocks
    data, policy = SCENES[name]
    path = tmp_path / "scene.tif"
    path.write_bytes(data)
    whole = decode_picture(data, policy)
    expected = Stretch.from_text(whole.stretch)
    with SceneFile(path, policy) as scene:
        assert (scene.height, scene.width) == whole.pixels.shape[:2]
        np.testing.assert_allclose(scene.stretch.low, expected.low, rtol=1e-6)
        np.testing.assert_allclose(scene.stretch.high, expected.high, rtol=1e-6)
        assert scene.stretch.rule() == expected.rule() and scene.stretch.zero_border == expected.zero_border
        x, y, width, height = 13, 5, 40, 33
        part = scene.read(x, y, width, height)
        difference = np.int16(part.pixels) - whole.pixels[y : y + height, x : x + width]
        assert np.abs(difference).max() <= (1 if name in ("f32", "f32 NaN", "f64 intensity", "f32 border") else 0)
        assert part.has_data == (name != "empty")
        assert scene.read(0, 0, 32, 16, reduce=4).pixels.shape == (4, 8, 3)


def test_a_reduced_part_without_data_in_its_overview_has_data_if_one_pixel_has(tmp_path: Path):
    values = np.zeros((1, 64, 64), np.uint16)
    values[0, 21, 13] = 5
    (tmp_path / "scene.tif").write_bytes(raster_file(values, nodata=0))
    with SceneFile(tmp_path / "scene.tif") as scene:
        assert scene.read(0, 0, 64, 64, reduce=16).has_data
        assert not scene.read(32, 32, 32, 32, reduce=16).has_data


def test_a_picture_with_a_world_file_and_a_vrt_have_their_places(tmp_path: Path):
    pixels = RNG.integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.pgw").write_text("0.5\n0.1\n0.1\n-0.5\n1000.25\n1999.75\n")
    with SceneFile(tmp_path / "a.png") as scene:
        assert scene.georeference is not None
        np.testing.assert_allclose(scene.georeference.affine, (0.5, 0.1, 999.95, 0.1, -0.5, 1999.95))
        np.testing.assert_array_equal(scene.read(0, 0, 30, 20).pixels, pixels)
    (tmp_path / "b.tif").write_bytes(raster_file(np.moveaxis(pixels, -1, 0)))
    (tmp_path / "b.vrt").write_text(
        '<VRTDataset rasterXSize="10" rasterYSize="8"><GeoTransform>1, 2, 0, 5, 0, -2</GeoTransform>'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{i}"><SimpleSource><SourceFilename relativeToVRT="1">b.tif'
            f'</SourceFilename><SourceBand>{i}</SourceBand><SrcRect xOff="4" yOff="2" xSize="10" ySize="8"/>'
            '<DstRect xOff="0" yOff="0" xSize="10" ySize="8"/></SimpleSource></VRTRasterBand>'
            for i in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    with SceneFile(tmp_path / "b.vrt") as scene:
        np.testing.assert_array_equal(scene.read(0, 0, 10, 8).pixels, pixels[2:10, 4:14])
        assert scene.georeference is not None and scene.georeference.affine == (2, 0, 1, 0, -2, 5)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    with SceneFile(tmp_path / "plain.png") as scene:
        assert scene.georeference is None


def test_a_picture_above_pillows_limit_is_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.fromarray(np.full((30, 40, 3), 7, np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(EarthGPTError, match="cut it into tiles"):
        read_scene(tmp_path / "a.png")
    assert read_scene(tmp_path / "a.png", window=(1, 2, 3, 4)).pixels.shape == (4, 3, 3)
    assert Image.MAX_IMAGE_PIXELS == 500


def test_bad_files_are_refused_in_one_line(tmp_path: Path):
    for name, content in {
        "none.tif": None, "text.tif": b"hello", "cut.tif": SCENES["u16 bands"][0][:3000], "bad.vrt": b"<VRTDataset>",
    }.items():  # fmt: skip
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(EarthGPTError) as caught:
            SceneFile(tmp_path / name, StretchPolicy(bands=(1,)))
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_scene_in_a_bucket_is_read_in_parts(bucket: BucketPath, tmp_path: Path):
    data = raster_file(RNG.integers(0, 255, (3, 400, 500), np.uint8), **TILED)
    (tmp_path / "scene.tif").write_bytes(data)
    (bucket / "scene.tif").write_bytes(data)
    with SceneFile(tmp_path / "scene.tif") as local, SceneFile(bucket / "scene.tif") as remote:
        assert remote.georeference == local.georeference == find_georeference(bucket / "scene.tif")
        np.testing.assert_array_equal(remote.read(100, 50, 90, 80).pixels, local.read(100, 50, 90, 80).pixels)
    with pytest.raises(EarthGPTError, match=r"none\.tif"):
        SceneFile(bucket / "none.tif")
