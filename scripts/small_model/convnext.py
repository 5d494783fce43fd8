"""Train the ConvNeXt tower on real images, because no pretrained one of this size can be had.

It learns, for each cell of the ViT's grid, the last features of DINOv2 (a cosine loss); for images of a known scene,
its class; and for images with boxes, at a stride of 8 pixels, which cells hold the centre of which object, and how
large it is. The heads are discarded afterwards. Only training images are used, without those of evaluation splits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.boxes import Square, polygon_to_rect
from earthgpt_jax.common.files import atomic_path
from earthgpt_jax.config import DType, ModelConfig
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.features import TowerFeatures
from earthgpt_jax.input.images import to_square
from earthgpt_jax.models.convnext import ConvNeXt
from earthgpt_jax.models.earthgpt import CLIP_MEAN, CLIP_STD, normalize
from earthgpt_jax.models.layers import LayerNorm, Linear
from earthgpt_jax.models.perception import to_grid
from earthgpt_jax.params import Params
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import Record, Task

STRIDE = 8  # of the cells of the detection head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Training examples of the tower.

    Attributes:
        sources: records, with the indices of those to train on.
        teacher: features of the ViT; the last `dim` channels are those of its last layer.
        scenes, objects: classes of all sources.
        size: side of the images, in pixels.
    """

    sources: tuple[tuple[RecordSource, np.ndarray], ...]
    teacher: TowerFeatures
    scenes: tuple[str, ...]
    objects: tuple[str, ...]
    dim: int
    size: int

    @classmethod
    def open(cls, datasets: Path, names: Sequence[str], teacher: TowerFeatures, *, dim: int, size: int) -> Examples:
        """Open the training splits of some datasets in a folder."""
        parts = [(source, rows) for source, rows in open_records(datasets, "train").parts() if source.name in names]
        records = [source[int(i)] for source, rows in parts for i in rows[:: max(1, len(rows) // 400)]]
        return cls(
            sources=tuple(parts),
            teacher=teacher,
            scenes=tuple(sorted({record.label for record in records} - {""})),
            objects=tuple(sorted({item.label for record in records for item in record.objects})),
            dim=dim,
            size=size,
        )

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """Return example `number`: of a random source, with a probability proportional to the root of its size."""
        rng = np.random.default_rng((3, number))
        roots = np.sqrt([len(rows) for _, rows in self.sources])
        source, rows = self.sources[rng.choice(len(roots), p=roots / roots.sum())]
        index = int(rng.choice(rows))
        record = source[index]
        teacher = self.teacher.read(source, index).view(ml_dtypes.bfloat16)[1:, -self.dim :].astype(np.float32)
        side = round(len(teacher) ** 0.5)
        example = {
            "image": to_square(record_pixels(record), self.size),
            "teacher": teacher.reshape(side, side, -1),
            "scene": np.array(self.scenes.index(record.label) if record.label in self.scenes else -1, np.int32),
            **self._objects(record),
        }
        for axis in (0, 1):  # flips; features of a flipped image are nearly the flipped features
            if rng.random() < 0.5:
                example |= {name: np.flip(example[name], axis) for name in ("image", "teacher", "centres", "sizes")}
        return example

    def _objects(self, record: Record) -> dict[str, np.ndarray]:
        """Return `centres` f32[g, g, classes], `sizes` f32[g, g, 2] (log of width and height in cells), `known`."""
        cells = self.size // STRIDE
        centres, sizes = (
            np.zeros((cells, cells, len(self.objects)), np.float32),
            np.zeros((cells, cells, 2), np.float32),
        )
        square = Square(record.width, record.height)
        for item in record.objects:
            if item.label not in self.objects:
                continue
            x0, y0, x1, y1 = polygon_to_rect(square.to_fractions(np.asarray(item.polygon, np.float64)))
            column, row = np.clip(np.array([x0 + x1, y0 + y1]) / 2 * cells, 0, cells - 1).astype(int)
            centres[row, column, self.objects.index(item.label)] = 1
            sizes[row, column] = np.log(np.maximum([x1 - x0, y1 - y0], 1e-3) * cells)
        return {"centres": centres, "sizes": sizes, "known": np.array(Task.HBB in record.tasks, np.float32)}


class Student(nnx.Module):
    """The tower and its heads; all of them read the stages on the grid, as the projector will."""

    def __init__(self, model: ModelConfig, examples: Examples, *, rngs: nnx.Rngs):
        dims, make = model.convnext.dims, functools.partial(Linear, rngs=rngs, dtype=DType.FLOAT32)
        self.convnext = ConvNeXt(model.convnext, rngs=rngs, dtype=DType.FLOAT32)
        self.norm, self.norm_fine = LayerNorm(sum(dims), eps=1e-6), LayerNorm(sum(dims), eps=1e-6)
        self.teacher, self.scene = make(sum(dims), examples.dim), make(sum(dims), len(examples.scenes))
        self.centres, self.sizes = make(sum(dims), len(examples.objects)), make(sum(dims), 2)
        self.grid = model.vit.tokens_per_side

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        pixels = normalize(images.astype(jnp.float32) / 255, CLIP_MEAN, CLIP_STD)
        maps = self.convnext(pixels)
        coarse = self.norm(jnp.concatenate([to_grid(x, self.grid) for x in maps], axis=-1))
        fine = self.norm_fine(jnp.concatenate([to_grid(x, images.shape[1] // STRIDE) for x in maps], axis=-1))
        return {
            "teacher": self.teacher(coarse), "scene": self.scene(coarse.mean((1, 2))),
            "centres": self.centres(fine) - 4.0, "sizes": self.sizes(fine),
        }  # fmt: skip


def losses(out: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the losses of the heads on a batch of `Examples`."""
    cosine = optax.losses.cosine_similarity(out["teacher"], batch["teacher"], epsilon=1e-6)
    labelled = (batch["scene"] >= 0).astype(jnp.float32)
    scene = optax.softmax_cross_entropy_with_integer_labels(out["scene"], jnp.maximum(batch["scene"], 0))
    known, centres = batch["known"][:, None, None], batch["centres"]
    focal = optax.losses.sigmoid_focal_loss(out["centres"], centres, alpha=0.75, gamma=2.0).sum(-1) * known
    inside = centres.max(-1) * known
    sizes = jnp.abs(out["sizes"] - batch["sizes"]).mean(-1) * inside
    objects = jnp.maximum(inside.sum(), 1.0)
    return {
        "teacher": 1 - cosine.mean(),
        "scene": (scene * labelled).sum() / jnp.maximum(labelled.sum(), 1.0),
        "centres": focal.sum() / objects,
        "sizes": sizes.sum() / objects,
    }


_WEIGHTS = {"teacher": 2.0, "scene": 0.5, "centres": 0.5, "sizes": 0.2}


def train_convnext(
    path: Path, model: ModelConfig, examples: Examples, *, steps: int, batch_size: int = 16, peak_lr: float = 2e-3,
    save_every: int = 50,
) -> Path:  # fmt: skip
    """Train the tower and write its parameters to `path`, npz; resume from a checkpoint next to it.

    Args:
        save_every: steps between checkpoints.
    """
    if path.exists():
        return path
    graphdef, params = params_lib.split_module(Student(model, examples, rngs=nnx.Rngs(params=0)))
    rate = optax.warmup_cosine_decay_schedule(0.0, peak_lr, min(200, steps // 5), steps)
    decay = {name: value.ndim > 1 for name, value in params.items()}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05, mask=decay))
    state = optimizer.init(params)
    saved = path.with_suffix(".checkpoint.npz")
    start, params, state = _restore(saved, params, state)

    def loss(params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        parts = losses(params_lib.merge_module(graphdef, params)(batch["image"]), batch)
        return sum((_WEIGHTS[name] * value for name, value in parts.items()), jnp.zeros(())), parts

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Params, state: Any, batch: Mapping[str, jax.Array]) -> tuple[Params, Any, dict[str, jax.Array]]:
        (_, parts), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, parts

    means: dict[str, float] = {}
    bar = tqdm(range(start, steps), desc="convnext", initial=start, total=steps, mininterval=30)
    for step, batch in zip(bar, _batches(examples, start=start, batch_size=batch_size), strict=False):
        params, state, parts = update(params, state, batch)
        means = {name: 0.95 * means.get(name, float(value)) + 0.05 * float(value) for name, value in parts.items()}
        if (step + 1) % save_every == 0:
            _save(saved, step + 1, params, state)
            bar.write(f"{step + 1} " + " ".join(f"{name}={value:.4f}" for name, value in means.items()))
    tower = {name: np.asarray(value) for name, value in params.items() if name.startswith("convnext/")}
    with atomic_path(path) as target, target.open("wb") as file:
        np.savez(file, **tower)  # type: ignore[arg-type]
    return path


def _batches(examples: Examples, *, start: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches from step `start` on, endlessly; the next one is prepared while one is trained on."""
    with ThreadPoolExecutor(1) as pool:

        def build(step: int) -> dict[str, np.ndarray]:
            rows = [examples[step * batch_size + place] for place in range(batch_size)]
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

        coming = pool.submit(build, start)
        while True:
            start += 1
            batch, coming = coming.result(), pool.submit(build, start)
            yield batch


def _save(path: Path, step: int, params: Params, state: Any) -> None:
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves((params, state)))}
    with atomic_path(path) as target, target.open("wb") as file:
        np.savez(file, step=np.array(step), **leaves)  # type: ignore[arg-type]


def _restore(path: Path, params: Params, state: Any) -> tuple[int, Params, Any]:
    if not path.exists():
        return 0, params, state
    saved = np.load(path)
    leaves, structure = jax.tree.flatten((params, state))
    params, state = jax.tree.unflatten(structure, [jnp.asarray(saved[str(i)]) for i in range(len(leaves))])
    return int(saved["step"]), params, state
