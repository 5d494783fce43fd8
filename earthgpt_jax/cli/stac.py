"""Find the image of a STAC item (SpatioTemporal Asset Catalog)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path, PurePosixPath
from typing import Any

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError

_SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".vrt")
_NO_SCENE = {"thumbnail", "overview", "metadata"}  # roles of assets


def image_of_item(path: Path, asset: str | None = None) -> Path:
    """Return the image of the STAC item in a file.

    Args:
        asset: name of the asset; default: the only one that is an image and no preview, or the one called `visual`.

    Raises:
        EarthGPTError: the file is no item, or which image is meant is not clear; the message lists the assets.
    """
    if importlib.util.find_spec("pystac") is None:
        raise EarthGPTError(f"{path}: STAC items need pystac; pip install 'earthgpt-jax[geo]'")
    import pystac

    try:
        content = json.loads(path.read_text())
        item = pystac.Item.from_dict(content, href=str(path))
    except OSError as error:
        raise EarthGPTError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # pystac raises many types for a damaged item
        raise EarthGPTError(
            f"{path}: expected a STAC item, got other JSON ({error}); give an image or an item"
        ) from error
    images = {name: found for name, found in item.assets.items() if _is_scene(found)}
    if asset is not None:
        if asset not in item.assets:
            raise EarthGPTError(f"{path}: no asset {asset!r}; its assets are {', '.join(item.assets)}")
        chosen = asset
    elif len(images) == 1:
        (chosen,) = images
    elif "visual" in images:
        chosen = "visual"
    else:
        listed = ", ".join(images or item.assets) or "none"
        raise EarthGPTError(
            f"{path}: expected one image, got the assets {listed}; choose one with --asset, or stack bands with "
            "gdalbuildvrt -separate"
        )
    href = item.assets[chosen].href
    if "://" not in href and not href.startswith("/"):
        return path.parent / href
    if href.startswith(("http://", "https://")):
        raise EarthGPTError(f"{path}: its asset {chosen} is at a web address; download it and give the file")
    return files.path(href.removeprefix("file://"))


def _is_scene(asset: Any) -> bool:
    kind = asset.media_type or ""
    by_name = PurePosixPath(asset.href).suffix.lower() in _SUFFIXES
    return (kind.startswith("image/") or by_name) and not _NO_SCENE & set(asset.roles or ())
