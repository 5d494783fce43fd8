"""The training scenes: records as a dataset, and as arrays with dense targets."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.input.images import load_square
from earthgpt_jax.records import Record
from earthgpt_jax.synthetic import SyntheticSource

GRID = 8  # cells per side
RANKS = 6  # 0 for no object, then first to fifth
COORDINATES = 12  # x0, y0, x1, y1 of the HBB and the four corners of the OBB
HELD_OUT = 256  # the last scenes, used for measurements only


def dataset(workdir: Path, *, count: int) -> Path:
    """Write the training records as a dataset directory, generated on all cores, and return its path."""
    path = workdir / f"data_{count}"
    if not path.exists():
        source = SyntheticSource("train", count)
        with multiprocessing.get_context("spawn").Pool() as pool:
            records = pool.imap(source.__getitem__, range(count), chunksize=64)
            write_dataset({"train": tqdm(records, total=count, desc="records")}, out=path, name="synthetic")
    return path


def dense_dataset(workdir: Path, *, count: int) -> dict[str, np.ndarray]:
    """Return the images and dense targets of `count` training records, cached in `workdir`.

    Returns:
        `images` u8[N, 128, 128, 3]; for each grid cell `classes` and `ranks` i32[N, 8, 8] and `coordinates`
        f32[N, 8, 8, 12], see `dense_targets` and `object_ranks`; for each image `scene` i64[N, 2] (scene class and
        sensor) and `counts` i64[N, 10] (objects of each class, at most 5).
    """
    path = workdir / f"dense_{count}.npz"
    if not path.exists():
        source = open_records(dataset(workdir, count=count), "train")
        labels = sorted({item.label for item in (source[i] for i in range(200))})
        objects = sorted({o.label for i in range(200) for o in source[i].objects})
        sensors = ["optical", "sar", "infrared"]
        rows = []
        with multiprocessing.get_context("spawn").Pool() as pool:
            for record in tqdm(pool.imap(source.__getitem__, range(count), chunksize=64), total=count, desc="render"):
                cells = dense_targets(record, objects)
                scene = (labels.index(record.label), sensors.index(record.sensor))
                counts = [min(sum(o.label == name for o in record.objects), 5) for name in objects]
                rows.append((load_square(record.image, 128), *cells, np.array(scene), np.array(counts)))
        names = ("images", "classes", "coordinates", "scene", "counts")
        workdir.mkdir(parents=True, exist_ok=True)
        columns = {name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        np.savez(path, **columns)  # type: ignore[arg-type]
    dense = dict(np.load(path))
    dense["ranks"] = np.stack(
        [object_ranks(*cells) for cells in zip(dense["classes"], dense["coordinates"], strict=True)]
    )
    return dense


def dense_targets(record: Record, objects: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the class and the coordinates of the object in each cell of a grid.

    An object is in a cell if it covers the cell's centre, or if its own centre is in the cell.

    Args:
        objects: names of the object classes.

    Returns:
        (i32[8, 8], 0 for no object, otherwise 1 + index into `objects`; f32[8, 8, 12], fractions of the image).
    """
    classes = np.zeros((GRID, GRID), np.int32)
    coordinates = np.zeros((GRID, GRID, COORDINATES), np.float32)
    centres = (np.arange(GRID) + 0.5) / GRID
    x, y = np.meshgrid(centres, centres)
    for item in record.objects:
        polygon = np.asarray(item.polygon, np.float32).reshape(4, 2) / record.width
        box = np.concatenate([polygon.min(0), polygon.max(0)])
        next_corner = np.roll(polygon, -1, axis=0)
        sides = [
            (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in zip(polygon, next_corner, strict=True)
        ]
        inside = np.all([s >= 0 for s in sides], axis=0) | np.all([s <= 0 for s in sides], axis=0)
        column, row = np.clip((polygon.mean(0) * GRID).astype(int), 0, GRID - 1)
        inside[row, column] = True
        classes[inside] = 1 + objects.index(item.label)
        coordinates[inside] = np.concatenate([box, polygon.reshape(-1)])
    return classes, np.clip(coordinates, 0, 0.999)


def object_ranks(classes: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return the rank of each cell's object among the objects of its class, i32[8, 8], from 1; 0 for no object.

    Objects are ranked in the order in which answers list their boxes: by the top, then by the left.

    Args:
        classes, coordinates: from `dense_targets`.
    """
    order = np.zeros((GRID, GRID), np.int32)
    for label in np.unique(classes[classes > 0]):
        cells = classes == label
        top_left = coordinates[cells][:, 1::-1].round(2)  # y, x
        order[cells] = 1 + np.unique(top_left, axis=0, return_inverse=True)[1].reshape(-1)
    return np.minimum(order, RANKS - 1)
