"""Makes the embedded models: `python scripts/make_tiny.py all --workdir runs/make_tiny --out earthgpt_jax/assets`.

Every step is skipped where its result exists, and all of them are seeded:

  render     synthetic training records, as arrays
  tokenizer  a SentencePiece model in LLaMA's layout over the synthetic texts
  encoders   ViT and ConvNeXt, trained on a dense pretext task (what is in this cell, and where are its
             corners), stand-ins for DINOv2 and CLIP; the heads are thrown away
  llm        LLaMA, trained as a language model on texts alone: scenes written out, then questions and
             answers about them; it never sees an image
  base       encoders + LLM + untrained projector = `tiny-base`
  align      the recipe `tiny:align`, long
  instruct   the recipe `tiny:instruct`, long = `tiny`
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import Config, load
from earthgpt_jax.input.images import load_square
from earthgpt_jax.mmrs.synthetic import SyntheticSource
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.models.layers import LayerNorm, Linear

GRID = 8
COORDINATES = 12  # HBB x0,y0,x1,y1 and the four corners of the OBB


# ---------------------------------------------------------------------------------------------- render
def render(workdir: Path, *, count: int) -> dict[str, np.ndarray]:
    """Images and dense targets of `count` training records."""
    path = workdir / f"dense_{count}.npz"
    if not path.exists():
        source = SyntheticSource("train", count)
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
        np.savez(path, **{name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})
    return dict(np.load(path))


def dense_targets(record, objects: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Class (0: nothing) and coordinates of the object that covers each cell's middle or has its centre there."""
    classes = np.zeros((GRID, GRID), np.int32)
    coordinates = np.zeros((GRID, GRID, COORDINATES), np.float32)
    middles = (np.arange(GRID) + 0.5) / GRID
    x, y = np.meshgrid(middles, middles)
    for item in record.objects:
        polygon = np.asarray(item.polygon, np.float32).reshape(4, 2) / record.width
        box = np.concatenate([polygon.min(0), polygon.max(0)])
        following = np.roll(polygon, -1, axis=0)
        side = [
            (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in zip(polygon, following, strict=True)
        ]
        inside = np.all([s >= 0 for s in side], axis=0) | np.all([s <= 0 for s in side], axis=0)
        column, row = np.clip((polygon.mean(0) * GRID).astype(int), 0, GRID - 1)
        inside[row, column] = True
        classes[inside] = 1 + objects.index(item.label)
        coordinates[inside] = np.concatenate([box, polygon.reshape(-1)])
    return classes, np.clip(coordinates, 0, 0.999)


# -------------------------------------------------------------------------------------------- encoders
class DenseHead(nnx.Module):
    """Linear read-outs of one encoder: what the LLM can later pick up with a linear projector."""

    def __init__(self, dim: int, *, classes: int, scenes: int, rngs: nnx.Rngs):
        make = functools.partial(Linear, dim, rngs=rngs, dtype="float32")
        self.norm = LayerNorm(dim, eps=1e-6)
        self.classes = make(1 + classes)
        self.coordinates = make(COORDINATES)
        self.digits = make(COORDINATES * 20)
        self.scene, self.sensor, self.counts = make(scenes), make(3), make(classes * 6)

    def __call__(self, tokens: jax.Array) -> dict[str, jax.Array]:
        tokens = self.norm(tokens)
        cls, cells = tokens[:, 0], tokens[:, 1:]
        return {
            "classes": self.classes(cells),
            "coordinates": self.coordinates(cells),
            "digits": self.digits(cells).reshape(*cells.shape[:2], COORDINATES, 2, 10),
            "scene": self.scene(cls),
            "sensor": self.sensor(cls),
            "counts": self.counts(cls).reshape(cls.shape[0], -1, 6),
        }


class Pretext(nnx.Module):
    def __init__(self, config: Config, *, classes: int, scenes: int, rngs: nnx.Rngs):
        model = EarthGPT(config.model, rngs=rngs)
        self.vit, self.convnext, self.perception = model.vit, model.convnext, model.perception
        self.taps = config.model.perception.vit_layers
        cnn_dim = sum(config.model.convnext.dims)
        head = functools.partial(DenseHead, classes=classes, scenes=scenes, rngs=rngs)
        self.heads = nnx.List([head(config.model.vit.dim), head(cnn_dim), head(cnn_dim + config.model.vit.dim)])

    def __call__(self, images: jax.Array) -> list[dict[str, jax.Array]]:
        pixels = images.astype(jnp.float32) / 255
        x = (pixels - np.asarray(earthgpt.CLIP_MEAN, np.float32)) / np.asarray(earthgpt.CLIP_STD, np.float32)
        cnn = self.perception._fuse_cnn(self.convnext(x))
        x = (pixels - np.asarray(earthgpt.IMAGENET_MEAN, np.float32)) / np.asarray(earthgpt.IMAGENET_STD, np.float32)
        vit = self.vit(x, taps=self.taps)[-1]
        inputs = (vit, cnn, jnp.concatenate([cnn, vit], -1))
        return [head(tokens) for head, tokens in zip(self.heads, inputs, strict=True)]


def dense_loss(out: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    cross = optax.softmax_cross_entropy_with_integer_labels
    rows = batch["classes"].shape[0]
    classes = batch["classes"].reshape(rows, -1)
    target = batch["coordinates"].reshape(rows, GRID * GRID, COORDINATES)
    inside = (classes > 0).astype(jnp.float32)
    positives = jnp.maximum(inside.sum(), 1.0)
    hundredths = jnp.minimum(jnp.round(target * 100), 99).astype(jnp.int32)
    digits = jnp.stack([hundredths // 10, hundredths % 10], axis=-1)
    each = cross(out["digits"], digits).mean(2)  # B P 2
    parts = {
        "class": cross(out["classes"], classes).mean(),
        "box": (jnp.abs(out["coordinates"] - target).mean(-1) * inside).sum() / positives,
        "tens": (each[..., 0] * inside).sum() / positives,
        "units": (each[..., 1] * inside).sum() / positives,
        "scene": cross(out["scene"], batch["scene"][:, 0]).mean(),
        "sensor": cross(out["sensor"], batch["scene"][:, 1]).mean(),
        "counts": cross(out["counts"], batch["counts"]).mean(),
    }
    weights = {"class": 3.0, "box": 5.0, "tens": 1.0, "units": 0.5, "scene": 0.5, "sensor": 0.1, "counts": 1.0}
    metrics = parts | {
        "scene_acc": (out["scene"].argmax(-1) == batch["scene"][:, 0]).mean(),
        "class_acc": ((out["classes"].argmax(-1) == classes) * inside).sum() / positives,
    }
    return sum(weights[name] * part for name, part in parts.items()), metrics


def encoders(workdir: Path, config: Config, *, count: int, steps: int, batch_size: int = 32) -> Path:
    path = workdir / "encoders.npz"
    if path.exists():
        return path
    data = render(workdir, count=count)
    held = 256
    module = Pretext(
        config, classes=data["counts"].shape[1], scenes=int(data["scene"][:, 0].max()) + 1, rngs=nnx.Rngs(params=0)
    )
    graphdef, params = params_lib.split_module(module)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 200, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.02))
    state = optimizer.init(params)

    def loss(params, batch):
        results = [dense_loss(out, batch) for out in params_lib.merge_module(graphdef, params)(batch["images"])]
        metrics = {f"{n}.{k}": v for n, (_, m) in zip(("vit", "cnn", "both"), results, strict=True) for k, v in m.items()}
        return sum(value for value, _ in results), metrics

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, batch):
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, metrics

    evaluate = jax.jit(lambda params, batch: loss(params, batch)[1])
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(count - held) for _ in range(1 + steps * batch_size // (count - held))])
    bar = tqdm(range(steps), desc="encoders")
    for step in bar:
        rows = order[step * batch_size : (step + 1) * batch_size]
        params, state, metrics = update(params, state, {name: value[rows] for name, value in data.items()})
        if (step + 1) % 100 == 0:
            test = [
                evaluate(params, {name: value[i : i + 64] for name, value in data.items()})
                for i in range(count - held, count, 64)
            ]
            shown = ("vit.scene_acc", "vit.box", "cnn.scene_acc", "cnn.box", "both.scene_acc", "both.class_acc",
                     "both.box", "both.tens", "both.units", "both.class")  # fmt: skip
            bar.write(f"{step + 1} " + " ".join(f"{k}={np.mean([float(m[k]) for m in test]):.3f}" for k in shown))
            np.savez(workdir / "encoders_partial.npz", **{k: np.asarray(v) for k, v in params.items()})
    np.savez(path, **{k: np.asarray(v) for k, v in params.items() if k.startswith(("vit/", "convnext/"))})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["render", "encoders"])
    parser.add_argument("--workdir", type=Path, default=Path("runs/make_tiny"))
    parser.add_argument("--count", type=int, default=16000)
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    config = load("tiny:align")
    if args.step == "render":
        render(args.workdir, count=args.count)
    if args.step == "encoders":
        encoders(args.workdir, config, count=args.count, steps=args.steps)


if __name__ == "__main__":
    main()
