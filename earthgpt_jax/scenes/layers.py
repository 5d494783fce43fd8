"""Write the objects of scenes as a layer that geographic information systems open.

One layer has the objects of all scenes, in the coordinate reference system (CRS) that these share, and otherwise in WGS
84. GeoJSON is always in WGS 84 (RFC 7946). Scenes without any georeference are written in pixels, with y downwards.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.scenes.detection import SceneResult
from earthgpt_jax.scenes.places import WGS84, places

if TYPE_CHECKING:
    import geopandas

LAYER = "detections"
_METADATA = "earthgpt"  # name of the entry with the provenance
_DATE = "1970-01-01T00:00:00.000Z"  # that GeoPackages have: equal results give equal bytes
_DECIMALS = 9  # of degrees in GeoJSON: a tenth of a millimetre


def check(path: Path, georeferenced: Sequence[tuple[Path, bool, bool]]) -> None:
    """Check before any work that scenes can be written to a layer.

    Args:
        georeferenced: file, whether it has a transform, and whether it has a CRS, for each scene.

    Raises:
        EarthGPTError: a package is missing, the format needs a CRS that a scene lacks, or some scenes have a CRS and
            others have none.
    """
    missing = [name for name in ("geopandas", "pyogrio") if importlib.util.find_spec(name) is None]
    if missing:
        raise EarthGPTError(
            f"--out {path}: {path.suffix} files need {' and '.join(missing)}; pip install 'earthgpt-jax[geo]', or "
            "choose .json, .jsonl or .csv"
        )
    without = [scene for scene, _, crs in georeferenced if not crs]
    if without and path.suffix.lower() == ".geojson":
        raise EarthGPTError(
            f"--out {path}: expected scenes with a coordinate reference system, because GeoJSON is in WGS 84, but "
            f"{without[0]} has none; choose .gpkg, .fgb, .parquet or .json"
        )
    if without and len(without) < len(georeferenced):
        raise EarthGPTError(
            f"--out {path}: {len(without)} of {len(georeferenced)} scenes have no coordinate reference system, the "
            f"first is {without[0]}; a layer has one system: detect them separately"
        )


def to_frame(results: Sequence[SceneResult]) -> geopandas.GeoDataFrame:
    """Return the objects of scenes, one per row, as a GeoDataFrame of geopandas.

    Columns: image, label, kind, confidence, window (`x,y,width,height`), area_m2, bearing (see `Place`), geometry.
    """
    import geopandas

    systems = {(result.georeference.crs if result.georeference else "") for result in results}
    frames = []
    for result in results:
        crs = (result.georeference.crs if result.georeference else "") or None
        found = places(result.objects, result.georeference)
        columns = {
            "image": [str(result.path)] * len(found),
            "label": [item.label for item in result.objects],
            "kind": [item.kind.value for item in result.objects],
            "confidence": np.array([_number(item.confidence) for item in result.objects], np.float64),
            "window": [window_text(item) for item in result.objects],
            "area_m2": np.array([_number(place.area_m2) for place in found], np.float64),
            "bearing": np.array([_number(place.bearing) for place in found], np.float64),
        }
        shapes = shapely.polygons([place.polygon for place in found]) if found else []
        frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)
        frames.append(frame.to_crs(WGS84) if len(systems) > 1 and crs else frame)
    import pandas

    return frames[0] if len(frames) == 1 else pandas.concat(frames, ignore_index=True)


def window_text(item: Any) -> str:
    """Return the window of an object as `x,y,width,height`."""
    window = item.window
    return f"{window.x},{window.y},{window.width},{window.height}"


def write(path: Path, results: Sequence[SceneResult], *, provenance: Mapping[str, Any]) -> None:
    """Write a layer; the suffix of the name chooses the format.

    Args:
        provenance: what the results depend on, stored as JSON in the metadata of the file.

    Raises:
        EarthGPTError: the file cannot be written.
    """
    frame = to_frame(results)
    with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
        partial = Path(scratch, path.name)
        FORMATS[path.suffix.lower()](partial, frame, json.dumps(provenance, sort_keys=True))
        files.write_output(path, partial.read_bytes())


def _write_ogr(path: Path, frame: geopandas.GeoDataFrame, driver: str, **options: Any) -> None:
    import pyogrio

    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
    try:
        pyogrio.write_dataframe(
            frame, path, driver=driver, layer=LAYER, geometry_type="Polygon", use_arrow=False, **options
        )
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _geopackage(path: Path, frame: geopandas.GeoDataFrame, provenance: str) -> None:
    _write_ogr(path, frame, "GPKG", dataset_metadata={_METADATA: provenance}, dataset_options={"VERSION": "1.2"})


def _flatgeobuf(path: Path, frame: geopandas.GeoDataFrame, provenance: str) -> None:
    _write_ogr(path, frame, "FlatGeobuf", layer_options={"DESCRIPTION": provenance})


def _geojson(path: Path, frame: geopandas.GeoDataFrame, provenance: str) -> None:
    frame = frame.to_crs(WGS84)
    frame = frame.set_geometry(shapely.orient_polygons(frame.geometry.values))
    _write_ogr(path, frame, "GeoJSON", layer_options={"RFC7946": "YES", "COORDINATE_PRECISION": str(_DECIMALS)})
    content = json.loads(path.read_text())
    features = ",\n".join(json.dumps(feature) for feature in content.pop("features"))
    head = json.dumps({**content, _METADATA: json.loads(provenance)})
    path.write_text(f'{head[:-1]}, "features": [\n{features}\n]}}\n')


def _geoparquet(path: Path, frame: geopandas.GeoDataFrame, provenance: str) -> None:
    import pyarrow.parquet

    frame.to_parquet(path, index=False, schema_version="1.1.0")
    table = pyarrow.parquet.read_table(path)
    metadata = {**(table.schema.metadata or {}), _METADATA.encode(): provenance.encode()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


FORMATS: Mapping[str, Callable[[Path, Any, str], None]] = {
    ".gpkg": _geopackage, ".geojson": _geojson, ".fgb": _flatgeobuf, ".parquet": _geoparquet,
}  # fmt: skip
