"""Detect objects in images and scenes of any size; write boxes as JSON, tables or map layers.

A scene that is larger than a window is looked at in overlapping windows, whose boxes are merged. Boxes
are axis-aligned (hbb) or oriented (obb), with label, confidence and window, and with area and bearing
where the file says where it is on Earth. A confidence ranks boxes; it is not a calibrated probability.

Standard output gets one JSON object per image, on one line. With --out, the boxes go to a file, whose
suffix chooses the format: .json, .jsonl, .csv, or a layer for a geographic information system: .gpkg,
.geojson, .fgb, .parquet. The answers of windows are kept in FILE.windows.jsonl as they come: rerun the
same command to continue after an interruption, or to filter in another way without asking again.

examples:
  earthgpt detect scene.png --draw boxes.png
  earthgpt detect scene.tif --boxes obb --out ships.gpkg --class ship --draw map.html
  earthgpt detect 'scenes/**/*.tif' --out boxes.parquet --stretch 'bands: [4, 3, 2]'
  earthgpt detect scene.tif --prompt "ships" --largest-object 80 --out ships.geojson
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from earthgpt_jax.cli import engine_options, images, process_options, table_file
from earthgpt_jax.common import files

if TYPE_CHECKING:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.scenes.detection import SceneDetector, SceneResult, WindowSizes

BATCH_SIZE = 8  # windows answered at a time
LAYERS = (".gpkg", ".geojson", ".fgb", ".parquet")
DRAWINGS = (".png", ".jpg", ".jpeg", ".tif", ".html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    images.add_arguments(parser)
    parser.add_argument(
        "--boxes", choices=("hbb", "obb"), default="hbb", help="axis-aligned or oriented boxes (default: hbb)"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="find only this, such as 'ships', instead of all objects")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="NAME",
        help="keep only boxes of this class; may be repeated",
    )
    parser.add_argument(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="keep only boxes from this confidence (default: 0)",
    )
    parser.add_argument(
        "--draw", type=files.output_path, action="append", metavar="PATH", help="draw the boxes: .png or .jpg for a "
        "picture, .tif for a Cloud Optimized GeoTIFF, .html for a page to zoom and pan; repeatable. For several "
        "images, a folder for pictures",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=int, default=448, metavar="N", help="longest answer in tokens (default: 448)"
    )
    table_file.add_argument(parser, more=LAYERS)
    group = parser.add_argument_group("windows")
    group.add_argument(
        "--window-size",
        type=int,
        metavar="N",
        help="side of the windows in pixels (default: twice what the encoders see)",
    )
    group.add_argument(
        "--overlap", type=int, metavar="N", help="pixels that windows share (default: a quarter of a side)"
    )
    group.add_argument(
        "--largest-object", type=float, metavar="N", help="choose the overlap so that objects of up to N pixels "
        "along x and y lie whole in a window",
    )  # fmt: skip
    group.add_argument(
        "--zoom", type=int, metavar="N", help="look first with 1/N of the detail, and closely only where something is "
        "(default: closely everywhere)",
    )  # fmt: skip
    group.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help=f"windows answered at a time (default: {BATCH_SIZE})",
    )
    engine_options.add_arguments(parser)
    process_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError

    for name, least in (("batch_size", 1), ("max_new_tokens", 1), ("window_size", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise EarthGPTError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if args.overlap is not None and args.largest_object is not None:
        raise EarthGPTError("--overlap and --largest-object: expected one of them, got both")
    paths = images.find(args.images, asset=args.asset)
    drawings = [_Drawings(path, images=paths) for path in args.draw or ()]
    is_layer = args.out is not None and args.out.suffix.lower() in LAYERS
    places = _places(paths) if is_layer or len(paths) == 1 else []
    if is_layer:
        from earthgpt_jax.scenes import layers

        layers.check(args.out, places)
    process_options.start(args)
    return _detect(args, paths, drawings)


def _places(paths: Sequence[Path]) -> list[tuple[Path, bool, bool]]:
    """Return (file, has a transform, has a CRS) for the images that can be opened.

    Raises:
        EarthGPTError: the only image cannot be opened.
    """
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.raster.scene_file import find_georeference

    found = []
    for path in paths:
        try:
            place = find_georeference(path)
        except EarthGPTError:
            if len(paths) == 1:
                raise
            continue  # reported when its turn comes
        found.append((path, place is not None, bool(place and place.crs)))
    return found


def _detect(args: argparse.Namespace, paths: Sequence[Path], drawings: Sequence[_Drawings]) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.inference.processes import Process
    from earthgpt_jax.scenes.detection import SceneDetector, WindowSizes
    from earthgpt_jax.scenes.prompts import question
    from earthgpt_jax.scenes.zoom import zoomed

    process = Process.current()
    if process.count > 1 and not args.out:
        raise EarthGPTError(f"{process.count} processes: expected --out FILE, where they put their answers together")
    policy = images.stretch_policy(args)
    engine = engine_options.engine(args, batch_size=args.batch_size)
    sizes = WindowSizes.choose(
        image_size=engine.seen_size, side=args.window_size, overlap=args.overlap, largest=args.largest_object
    )
    if not args.quiet and process.is_main:
        images.warn_about_model(engine.model)
    asked = question(args.boxes, prompt=args.prompt, max_new_tokens=args.max_new_tokens)
    options: dict[str, Any] = {"question": asked, "sizes": sizes, "policy": policy, "process": process}
    if args.zoom is None:
        detector = SceneDetector(engine, **options)
    else:
        detector = zoomed(engine, paths, factor=args.zoom, out=args.out, progress=not args.quiet, **options)
    failures = _Failures(paths)
    kept: list[SceneResult] = []
    for result in _filtered(args, detector.detect(paths, out=args.out, progress=not args.quiet, on_error=failures.add)):
        if args.out:
            kept.append(result)
        else:
            from earthgpt_jax.scenes.plain import to_dict

            print(json.dumps(to_dict(result)), flush=True)
        drawn = "".join(f"; drawn: {drawing.save(result, policy)}" for drawing in drawings)
        if not args.quiet:
            _warn_about_windows(result, sizes=sizes, image_size=engine.seen_size)
            print(f"{result.path}: {_summary(result)}{drawn}", file=sys.stderr)
    if not process.is_main:
        return 0
    failures.check()
    if args.out:
        _write(args.out, kept, detector)
        if not args.quiet:
            _print_table(kept)
            print(f"boxes: {args.out}", file=sys.stderr)
    return failures.status()


def _filtered(args: argparse.Namespace, results: Iterator[SceneResult]) -> Iterator[SceneResult]:
    """Keep the boxes of the chosen classes, from the chosen confidence."""
    import dataclasses

    from earthgpt_jax.boxes import singular

    classes = {singular(name.strip().lower()) for name in args.classes or ()}
    for result in results:
        objects = tuple(
            item
            for item in result.objects
            if (not classes or singular(item.label.lower()) in classes)
            and (1.0 if item.confidence is None else item.confidence) >= args.min_confidence
        )
        yield dataclasses.replace(result, objects=objects)


def _write(path: Path, results: Sequence[SceneResult], detector: SceneDetector) -> None:
    if path.suffix.lower() in LAYERS:
        from earthgpt_jax.scenes import layers
        from earthgpt_jax.scenes.provenance import provenance

        layers.write(path, results, provenance=provenance(results, detector))
        return
    from earthgpt_jax.scenes.plain import COLUMNS, to_dict, to_rows

    table_file.write(path, [to_dict(result) for result in results], columns=COLUMNS, to_rows=to_rows)


def _summary(result: SceneResult) -> str:
    """Such as `3 boxes (2 ship, 1 storage tank) in 12 windows`."""
    counts = collections.Counter(item.label or "no label" for item in result.objects)
    labels = ", ".join(f"{count} {label}" for label, count in counts.most_common())
    count = len(result.objects)
    rejected = f", {len(result.rejected)} unreadable" if result.rejected else ""
    windows = f" in {len(result.windows)} windows" if len(result.windows) > 1 else ""
    empty = sum(answer.text is None for answer in result.answers)
    return (
        f"{count} box{'' if count == 1 else 'es'}{f' ({labels})' if labels else ''}{rejected}{windows}"
        f"{f', {empty} without data' if empty else ''}"
    )


def _print_table(results: Sequence[SceneResult]) -> None:
    """Print how many boxes each class has, and the range of their confidences."""
    from earthgpt_jax.common.tables import align_columns

    by_label: dict[str, list[float]] = collections.defaultdict(list)
    for result in results:
        for item in result.objects:
            by_label[item.label or "no label"].append(item.confidence or 0.0)
    rows = [["class", "boxes", "confidence: lowest", "median", "highest"]]
    for label, values in sorted(by_label.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        values.sort()
        rows.append([label, str(len(values)), *(f"{v:.3f}" for v in (values[0], values[len(values) // 2], values[-1]))])
    print("\n".join(align_columns(rows)), file=sys.stderr)


def _warn_about_windows(result: SceneResult, *, sizes: WindowSizes, image_size: int) -> None:
    width, height = (min(sizes.side, length) for length in (result.width, result.height))
    images.warn_about_size(
        result.path, width=width, height=height, image_size=image_size, advice="choose a smaller --window-size"
    )


class _Failures:
    """Reports images that cannot be read. A single one is an error; of several, the others are answered."""

    def __init__(self, paths: Sequence[Path]):
        self._count, self._failed = len(paths), 0

    def add(self, error: EarthGPTError) -> None:
        if self._count == 1:
            raise error
        self._failed += 1
        print(f"error: {error}", file=sys.stderr)

    def check(self) -> None:
        from earthgpt_jax.common.errors import EarthGPTError

        if self._failed == self._count:
            raise EarthGPTError(f"none of {self._count} images could be read")

    def status(self) -> int:
        """Report how many images could not be read, and return the exit status."""
        if self._failed:
            print(f"error: {self._failed} of {self._count} images could not be read", file=sys.stderr)
        return 2 if self._failed else 0


class _Drawings:
    """Draws the boxes of one image into a file, or of several into a folder."""

    def __init__(self, path: Path, *, images: Sequence[Path]):
        """Check the path.

        Raises:
            EarthGPTError: it is a folder for one image, a file for several, or has no suffix of a drawing.
        """
        from earthgpt_jax.common.errors import EarthGPTError

        several = len(images) > 1
        self._path = path
        self._names = _names_below(images) if several else {}
        if several and path.is_file():
            raise EarthGPTError(f"--draw {path}: expected a folder for several images, got a file")
        if not several and (path.is_dir() or path.suffix.lower() not in DRAWINGS):
            raise EarthGPTError(f"--draw {path}: expected a file name that ends in {' or '.join(DRAWINGS)}")

    def save(self, result: SceneResult, policy: Any) -> Path:
        """Draw a scene; return the drawing's path."""
        from earthgpt_jax.scenes import quick_look

        path = self._path / self._names[result.path] if self._names else self._path
        quick_look.save(path, result, policy)
        return path


def _names_below(images: Sequence[Path]) -> dict[Path, str]:
    """Return the names of the drawings, each different, with the folders that the images do not all share."""
    parts = {image: image.resolve().parts for image in images}
    levels = enumerate(zip(*(names[:-1] for names in parts.values()), strict=False))
    shared = next((i for i, level in levels if len(set(level)) > 1), min(len(names) - 1 for names in parts.values()))
    # Without a common folder, as on a disk and in a bucket, the first part is a root.
    below = {image: PurePosixPath(*names[max(shared, 1) :]) for image, names in parts.items()}
    counts = collections.Counter(path.with_suffix("") for path in below.values())
    return {
        image: f"{path if counts[path.with_suffix('')] > 1 else path.with_suffix('')}.png"
        for image, path in below.items()
    }
