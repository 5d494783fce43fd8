"""Compare `earthgpt detect` on a scene with the bare engine on the same windows, and a zoom with the full pass.

The bare engine gets the windows as squares in memory; the command reads them from a GeoTIFF of 16 bits, stretches,
resizes, and logs them. Rounds alternate, and the ratio is that of each pair.

    python scripts/bench/scenes.py --side 2048 --rounds 3
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

from earthgpt_jax import compilation
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.requests import ImageRequests, Request
from earthgpt_jax.input.images import to_square
from earthgpt_jax.raster.scene_file import SceneFile
from earthgpt_jax.scenes.detection import SceneDetector, SceneQuestion, WindowSizes
from earthgpt_jax.scenes.windows import grid
from earthgpt_jax.scenes.zoom import zoomed
from earthgpt_jax.synthetic import SyntheticSource


def write_scene(path: Path, side: int, tile: int, share: float) -> list[tuple[float, float]]:
    """Write a mosaic of synthetic scenes as 16 bits; return the centres of its objects.

    Args:
        share: of the tiles that have a synthetic scene; the others are bare ground.
    """
    count = side // tile
    source, rng = SyntheticSource("test", count * count), np.random.default_rng(0)
    pixels = np.full((side, side, 3), 90, np.uint16) + rng.integers(0, 12, (side, side, 1), np.uint16)
    centres = []
    for i in np.flatnonzero(rng.random(count * count) < share):
        y, x = i // count * tile, i % count * tile
        record = source[int(i)]
        with Image.open(io.BytesIO(record.image)) as image:
            pixels[y : y + tile, x : x + tile] = np.asarray(image.convert("RGB").resize((tile, tile)))
        scale = tile / max(record.width, record.height)
        centres += [
            tuple(np.asarray(item.polygon).reshape(4, 2).mean(axis=0) * scale + (x, y)) for item in record.objects
        ]
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint16", tiled=True, blockxsize=256,
        blockysize=256, compress="deflate", photometric="RGB",
    ) as raster:  # fmt: skip
        raster.write(np.moveaxis(pixels * 16, -1, 0))
    return centres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--side", type=int, default=2048, help="of the scene in pixels")
    parser.add_argument("--window", type=int, default=128, help="side of a window in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--zoom", type=int, help="also compare a zoom with the full pass, on an emptier scene")
    args = parser.parse_args()
    compilation.enable_cache()
    engine = Engine.from_model_dir(args.model, batch_size=args.batch)
    question = SceneQuestion.detect("hbb", max_new_tokens=args.max_new_tokens)
    sizes = WindowSizes.choose(image_size=engine.image_size, side=args.window)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scene.tif")
        write_scene(path, args.side, args.window, 1.0)
        compare_speed(engine, path, question, sizes, rounds=args.rounds)
        if args.zoom:
            centres = write_scene(path, args.side, args.window, 0.15)
            compare_zoom(engine, path, question, sizes, factor=args.zoom, centres=centres)


def compare_speed(engine: Engine, path: Path, question: SceneQuestion, sizes: WindowSizes, *, rounds: int) -> None:
    """Print windows per second of the bare engine and of a detector, and their ratio."""
    detector = SceneDetector(engine, question=question, sizes=sizes)
    with SceneFile(path) as file:
        windows = grid(file.width, file.height, size=sizes.side, overlap=sizes.overlap)
        squares = [detector.read_square(file, window) for window in windows]
    work = [
        ImageRequests(
            image=lambda square=square: square,  # type: ignore[misc]
            requests=[Request(id=f"0:{i}", text=question.text, max_new_tokens=question.max_new_tokens)],
        )
        for i, square in enumerate(squares)
    ]
    shape = engine.state_shape(work[: engine.batch_size])
    list(engine.stream(work[: engine.batch_size], state_shape=shape))  # compiles
    ratios = []
    for number in range(rounds):
        seconds = {}
        for name in ("engine", "detect") if number % 2 else ("detect", "engine"):
            begin = time.perf_counter()
            if name == "engine":
                list(engine.stream(work, state_shape=shape))
            else:
                list(detector.detect([path], out=path.with_name(f"{number}.gpkg")))
            seconds[name] = time.perf_counter() - begin
        ratios.append(seconds["engine"] / seconds["detect"])
        rates = {name: f"{len(windows) / value:.2f}" for name, value in seconds.items()}
        print(
            f"{len(windows)} windows; windows/s: engine {rates['engine']}, detect {rates['detect']}: {ratios[-1]:.3f}"
        )
    print(f"detect / engine, median of {rounds} pairs: {np.median(ratios):.3f}")


def compare_zoom(
    engine: Engine, path: Path, question: SceneQuestion, sizes: WindowSizes, *, factor: int,
    centres: list[tuple[float, float]],
) -> None:  # fmt: skip
    """Print windows, seconds and the share of objects that lie in a box, of the full pass and of a zoom."""
    to_square(np.zeros((64, 96, 3), np.uint8), engine.image_size)  # compiles
    for name in ("full pass", f"zoom {factor}"):
        begin = time.perf_counter()
        if name == "full pass":
            detector = SceneDetector(engine, question=question, sizes=sizes)
        else:
            detector = zoomed(engine, [path], factor=factor, sizes=sizes, question=question)
        (result,) = detector.detect([path])
        boxes = np.array([[*o.polygon.min(axis=0), *o.polygon.max(axis=0)] for o in result.objects]).reshape(-1, 4)
        points = np.array(centres)[:, None]
        inside = np.any(np.all((points >= boxes[:, :2]) & (points <= boxes[:, 2:]), axis=2), axis=1)
        print(
            f"{name}: {len(result.windows)} windows, {time.perf_counter() - begin:.1f} s, {len(boxes)} boxes, "
            f"{inside.mean():.3f} of {len(centres)} objects have their centre in a box"
        )


if __name__ == "__main__":
    main()
