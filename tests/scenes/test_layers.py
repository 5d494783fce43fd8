"""Boxes on the map: where the oracle put them, in every format and with every kind of georeference."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from rasterio.crs import CRS

from earthgpt_jax.boxes import BoxKind, rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.raster.policy import Stretch
from earthgpt_jax.raster.scene_file import Georeference
from earthgpt_jax.scenes import layers
from earthgpt_jax.scenes.detection import SceneResult
from earthgpt_jax.scenes.merging import SceneObject
from earthgpt_jax.scenes.places import places
from earthgpt_jax.scenes.plain import COLUMNS, to_dict, to_rows
from earthgpt_jax.scenes.window_log import WindowAnswer
from earthgpt_jax.scenes.windows import Window
from tests.support.oracle import random_objects


def wkt(code: int) -> str:
    return CRS.from_epsg(code).to_wkt()


# Affine and CRS: pixels of 0.3 m, of 3e-6 degrees.
PLACES = {
    "UTM": Georeference(affine=(0.3, 0, 500000, 0, -0.3, 4600000), crs=wkt(32633)),
    "degrees": Georeference(affine=(3e-6, 0, 12.25, 0, -3e-6, 41.5), crs=wkt(4326)),
    "rotated": Georeference(affine=(0.25, 0.1, 500000, 0.12, -0.26, 4600000), crs=wkt(32633)),
    "south up": Georeference(affine=(0.3, 0, 500000, 0, 0.3, 4600000), crs=wkt(32733)),
    "no CRS": Georeference(affine=(0.3, 0, 100, 0, -0.3, 200), crs=""),
    "none": None,
}
HERE = Window(0, 0, 1024, 1024)


def result(georeference: Georeference | None, objects: list[SceneObject], name: str = "a.tif") -> SceneResult:
    return SceneResult(
        path=Path(name), width=20000, height=20000, stretch=Stretch(), georeference=georeference, windows=(HERE,),
        answers=(WindowAnswer(text="an answer"),), objects=tuple(objects),
    )  # fmt: skip


def some_objects() -> list[SceneObject]:
    rng = np.random.default_rng(3)
    objects = random_objects(rng, 25, width=20000, height=20000, largest=200, kind=BoxKind.OBB)
    return [dataclasses.replace(item, window=HERE, confidence=(i + 1) / 32) for i, item in enumerate(objects)]


@pytest.mark.parametrize("suffix", layers.FORMATS)
@pytest.mark.parametrize("name", PLACES)
def test_boxes_are_where_the_oracle_put_them(name: str, suffix: str, tmp_path: Path):
    place, objects = PLACES[name], some_objects()
    if suffix == ".geojson" and (place is None or not place.crs):
        with pytest.raises(EarthGPTError, match="expected scenes with a coordinate reference system"):
            layers.check(tmp_path / "a.geojson", [(Path("a.tif"), True, False)])
        return
    path = tmp_path / f"boxes{suffix}"
    layers.write(path, [result(place, objects)], provenance={"model": "oracle"})
    found, crs, metadata = read(path)
    assert metadata == {"model": "oracle"}
    found = found.sort_values("confidence")  # FlatGeobuf orders objects by place
    assert list(found["label"]) == [item.label for item in objects]
    assert list(found["window"]) == ["0,0,1024,1024"] * len(objects)
    corners = np.array([shapely.get_coordinates(shape)[:4] for shape in found.geometry])
    if place is not None:
        if place.crs:
            target = pyproj.CRS.from_wkt(place.crs)
            assert pyproj.CRS(crs) == ("EPSG:4326" if suffix == ".geojson" else target)
            to_scene = pyproj.Transformer.from_crs(crs, target, always_xy=True)
            corners = np.stack(to_scene.transform(corners[..., 0], corners[..., 1]), axis=-1)
        a, b, c, d, e, f = place.affine
        corners = (corners - (c, f)) @ np.linalg.inv([[a, b], [d, e]]).T
    for item, seen in zip(objects, corners, strict=True):  # the ring may begin at another corner
        distances = np.linalg.norm(item.polygon[:, None] - seen[None], axis=2)
        assert distances.min(axis=0).max() < 0.01 and distances.min(axis=1).max() < 0.01


def read(path: Path):
    """Return the layer, its CRS and the provenance, as other programs read them."""
    import geopandas
    import pyarrow.parquet

    if path.suffix == ".parquet":
        found = geopandas.read_parquet(path)
        return found, found.crs, json.loads(pyarrow.parquet.read_schema(path).metadata[b"earthgpt"])
    found = pyogrio.read_dataframe(path)
    info = pyogrio.read_info(path)
    if path.suffix == ".geojson":
        content = json.loads(path.read_text())
        assert content["type"] == "FeatureCollection" and "crs" not in content
        outlines = [np.array(each["geometry"]["coordinates"][0]) for each in content["features"]]
        assert all(shapely.is_ccw(shapely.linearrings(outline)) for outline in outlines)
        return found, found.crs, content["earthgpt"]
    if path.suffix == ".fgb":
        return found, found.crs, json.loads(info["layer_metadata"]["DESCRIPTION"])
    return found, found.crs, json.loads(info["dataset_metadata"]["earthgpt"])


def test_area_and_bearing_are_those_on_the_ground():
    polygon = rotated_to_polygon(cx=500, cy=500, w=100, h=20, angle=np.radians(-30))  # 30 degrees up from the x axis
    item = SceneObject(
        label="ship", kind=BoxKind.OBB, polygon=np.float64(polygon).reshape(4, 2), confidence=0.5, window=HERE
    )
    (place,) = places([item], PLACES["UTM"])
    assert place.area_m2 == pytest.approx(100 * 20 * 0.09, rel=1e-3)  # the scale of UTM is 0.9996 at its centre
    assert place.bearing == pytest.approx(60, abs=0.02)
    (place,) = places([item], PLACES["degrees"])
    metres = 3e-6 * np.pi / 180 * 6378137
    assert place.area_m2 == pytest.approx(2000 * metres**2 * np.cos(np.radians(41.5)), rel=5e-3)
    for nowhere in (PLACES["no CRS"], None):
        (place,) = places([item], nowhere)
        assert place.area_m2 is None and place.bearing is None


def test_scenes_in_different_systems_share_a_layer_in_wgs_84(tmp_path: Path):
    objects = some_objects()[:2]
    layers.write(
        tmp_path / "both.gpkg",
        [
            result(PLACES["UTM"], objects),
            result(PLACES["south up"], objects, "b.tif"),
            result(PLACES["UTM"], [], "c.tif"),
        ],
        provenance={},
    )
    found = pyogrio.read_dataframe(tmp_path / "both.gpkg")
    assert found.crs == "EPSG:4326" and list(found["image"]) == ["a.tif"] * 2 + ["b.tif"] * 2
    with pytest.raises(EarthGPTError, match=r"1 of 2 scenes have no coordinate reference system, the first is b.tif"):
        layers.check(tmp_path / "x.gpkg", [(Path("a.tif"), True, True), (Path("b.tif"), False, False)])


@pytest.mark.parametrize("suffix", layers.FORMATS)
def test_equal_results_are_equal_bytes_and_no_objects_are_a_layer_too(suffix: str, tmp_path: Path):
    for name in "ab":
        layers.write(tmp_path / f"{name}{suffix}", [result(PLACES["UTM"], some_objects())], provenance={"x": 1})
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    layers.write(tmp_path / f"c{suffix}", [result(PLACES["UTM"], [])], provenance={"x": 1})
    assert len(read(tmp_path / f"c{suffix}")[0]) == 0


def test_plain_values_have_pixels_and_map_coordinates():
    values = to_dict(result(PLACES["UTM"], some_objects()[:1]))
    (box,) = json.loads(json.dumps(values))["boxes"]
    assert len(box["polygon"]) == len(box["map_polygon"]) == 8 and box["area_m2"] > 0 and 0 <= box["bearing"] < 180
    assert values["answer"] == "an answer" and values["crs"].startswith("PROJCS")
    (row,) = to_rows(values)
    assert len(row) == len(COLUMNS)
    assert "map_polygon" not in to_dict(result(None, some_objects()[:1]))["boxes"][0]
