"""What the objects of a layer depend on, for the metadata of its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import rasterio

from earthgpt_jax import __version__
from earthgpt_jax.scenes.detection import SceneDetector, SceneResult


def provenance(results: Sequence[SceneResult], detector: SceneDetector) -> dict[str, Any]:
    """Return model digest, question, windows, merging, versions, and the stretch of each scene, as JSON values."""
    scenes = [
        {
            "image": str(result.path),
            "width": result.width,
            "height": result.height,
            "stretch": result.stretch.to_text(),
            "windows": len(result.windows),
            "windows_without_data": sum(answer.text is None for answer in result.answers),
        }
        for result in results
    ]
    versions = {"earthgpt-jax": __version__, "jax": jax.__version__, "gdal": rasterio.__gdal_version__}
    return {**detector.header(), "merging": detector.rule.to_dict(), "scenes": scenes, "versions": versions}
