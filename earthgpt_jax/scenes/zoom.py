"""Look at a scene coarsely first, and closely only where the coarse look found something.

The coarse look asks the same question about windows that are several times larger, read with less detail. Windows that
meet one of its boxes, or are near one, are then looked at as usual. This costs a fraction of the windows, and misses
objects that are too small to be seen coarsely and far from any that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.scenes.detection import SceneDetector, WindowSizes
from earthgpt_jax.scenes.merging import SceneObject
from earthgpt_jax.scenes.windows import Window

NEAR = 0.25  # of a window's side: how far from a coarse box a window is still looked at


def coarse_sizes(sizes: WindowSizes, factor: int) -> WindowSizes:
    """Return the sizes of the windows of the coarse look.

    Args:
        sizes: of the close look.
        factor: pixels of the close look per pixel of the coarse one, along each axis.

    Raises:
        EarthGPTError: the factor is less than 2.
    """
    if factor < 2:
        raise EarthGPTError(f"--zoom: expected at least 2, got {factor}")
    return WindowSizes(side=sizes.side * factor, overlap=sizes.overlap * factor)


def near_boxes(windows: Sequence[Window], boxes: Sequence[SceneObject], *, side: int) -> list[Window]:
    """Return the windows that meet the axis-aligned bounds of a box, or are up to `NEAR` of `side` from them."""
    if not boxes:
        return []
    corners = np.stack([box.polygon for box in boxes])
    low, high = corners.min(axis=1) - NEAR * side, corners.max(axis=1) + NEAR * side
    bounds = np.array([window.bounds for window in windows])
    meets = ((bounds[:, None, :2] < high) & (bounds[:, None, 2:] > low)).all(axis=2).any(axis=1)
    return [window for window, chosen in zip(windows, meets, strict=True) if chosen]


def zoomed(
    engine: Engine,
    paths: Sequence[Path],
    *,
    factor: int,
    sizes: WindowSizes,
    out: Path | None = None,
    progress: bool = False,
    **options: Any,
) -> SceneDetector:
    """Look at scenes coarsely, and return a detector that looks closely where something is.

    With several processes, each looks coarsely at everything, so that all choose the same windows.

    Args:
        engine, sizes, options: as for `SceneDetector`.
        paths: the scenes; those that cannot be read are left to the close look.
        factor: as for `coarse_sizes`.
        out, progress: as for `SceneDetector.detect`; the coarse answers are kept under the name `OUT.zoom`.

    Raises:
        EarthGPTError: as for `SceneDetector.detect`, or the factor is less than 2.
    """
    alone = options.get("process") in (None, Process())
    log = out.with_name(f"{out.name}.zoom") if out and alone else None
    coarse = SceneDetector(engine, sizes=coarse_sizes(sizes, factor), **{**options, "process": Process()})
    found = {
        result.path: result.objects
        for result in coarse.detect(paths, out=log, progress=progress, on_error=lambda error: None)
    }

    def choose(path: Path, windows: Sequence[Window]) -> list[Window]:
        return near_boxes(windows, found.get(path, ()), side=sizes.side)

    return SceneDetector(engine, sizes=sizes, choose_windows=choose, zoom=factor, **options)
