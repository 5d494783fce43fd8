"""Measure the error rates of near-duplicate detection in `earthgpt data audit`.

    python scripts/bench/perceptual_hashes.py DATASETS

DATASETS is a folder written by `earthgpt data build`. Every distinct image is transformed in twelve ways, and each copy
is compared with the original (misses). All pairs of different images of a sensor are compared too (false positives).
The script uses the hashes and limits of the audit and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.manifest import dataset_directories, read_manifest
from earthgpt_jax.datasets.overlap.perceptual_hashes import MAX_DHASH_DISTANCE, MAX_PHASH_DISTANCE, NO_HASH, hash_image
from earthgpt_jax.raster.decode import record_pixels


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (max(8, round(image.width * factor)), max(8, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Crop this share of the width and height from each side."""
    dx, dy = int(image.width * share), int(image.height * share)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def stretched(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    low, high = np.percentile(pixels, (2, 98))
    return Image.fromarray(np.clip((pixels - low) / max(high - low, 1) * 255, 0, 255).astype(np.uint8))


def brightened(image: Image.Image) -> Image.Image:
    return Image.fromarray((255 * (np.asarray(image) / 255) ** 0.7).astype(np.uint8))


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 90": functools.partial(jpeg, quality=90),
    "JPEG of quality 50": functools.partial(jpeg, quality=50),
    "half the size": functools.partial(scaled, factor=0.5),
    "twice the size": functools.partial(scaled, factor=2.0),
    "224 x 224 pixels": lambda image: image.resize((224, 224), Image.Resampling.BILINEAR),
    "half the size, JPEG of quality 75": lambda image: jpeg(scaled(image, 0.5), 75),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "gamma of 0.7": brightened,
    "stretched between the 2nd and 98th percentile": stretched,
    "cropped by 1 % on each side": functools.partial(cropped, share=0.01),
    "cropped by 2 % on each side": functools.partial(cropped, share=0.02),
    "cropped by 5 % on each side": functools.partial(cropped, share=0.05),
}


def hashes(image: Image.Image) -> tuple[int, int]:
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return hash_image(buffer.getvalue())[1:]


def near_duplicate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Apply the audit's criterion to u64[..., 2] pairs of pHash and dHash; returns bool[...]."""
    bits = np.bitwise_count(a ^ b)
    return (bits[..., 0] <= MAX_PHASH_DISTANCE) & (bits[..., 1] <= MAX_DHASH_DISTANCE)


def distinct_images(folder: Path) -> dict[str, list[Image.Image]]:
    """Return sensor -> images with different pixels and enough contrast for a perceptual hash."""
    images: dict[str, dict[int, Image.Image]] = collections.defaultdict(dict)
    for directory in dataset_directories(folder):
        for split in read_manifest(directory)["counts"]:
            for record in store.RecordSource(directory, split):
                pixels, phash, _ = hash_image(record.image)
                if phash != NO_HASH:
                    images[record.sensor.value].setdefault(pixels, Image.fromarray(record_pixels(record)))
    return {sensor: list(by_pixels.values()) for sensor, by_pixels in images.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    columns: dict[str, list[str]] = {}
    for sensor, images in distinct_images(parser.parse_args().datasets).items():
        base = np.array([hashes(image) for image in images], np.uint64)
        column = columns[f"{sensor}, {len(images)}"] = []
        for change in tqdm(CHANGES.values(), desc=sensor, leave=False):
            changed = np.array([hashes(change(image)) for image in images], np.uint64)
            column.append(f"{100 * (1 - near_duplicate(base, changed).mean()):.1f} %")
        first, second = np.triu_indices(len(images), 1)
        column.append(f"{int(near_duplicate(base[first], base[second]).sum())} of {len(first):,} pairs")
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    titles = [*(f"missed: {name}" for name in CHANGES), "different images detected as near-duplicates"]
    for title, *cells in zip(titles, *columns.values(), strict=True):
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
