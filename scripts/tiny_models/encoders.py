"""Train the encoders, stand-ins for DINOv2 and CLIP, on a dense pretext task over synthetic scenes.

For each cell of a grid, the heads predict which object is there, where its corners are, and which of its class it is.
The heads are discarded afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from earthgpt_jax import params as params_lib
from earthgpt_jax.config import Config, DType
from earthgpt_jax.models import model_dir
from earthgpt_jax.models.earthgpt import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, EarthGPT, normalize
from earthgpt_jax.models.layers import LayerNorm, Linear
from earthgpt_jax.params import Params
from tiny_models.scenes import COORDINATES, GRID, HELD_OUT, RANKS, dense_dataset


class DenseHead(nnx.Module):
    """Linear heads on the features of one encoder, which probe what a linear projector can extract later."""

    def __init__(self, dim: int, *, classes: int, scenes: int, rngs: nnx.Rngs):
        make = functools.partial(Linear, dim, rngs=rngs, dtype=DType.FLOAT32)
        self.norm = LayerNorm(dim, eps=1e-6)
        self.classes, self.ranks = make(1 + classes), make(RANKS)
        self.coordinates = make(COORDINATES)
        self.offsets = make(COORDINATES)  # relative to the cell's centre, which a convolution can learn
        self.digits = make(COORDINATES * 20)
        self.scene, self.sensor, self.counts = make(scenes), make(3), make(classes * 6)

    def __call__(self, tokens: jax.Array) -> dict[str, jax.Array]:
        tokens = self.norm(tokens)
        cls, cells = tokens[:, 0], tokens[:, 1:]
        return {
            "classes": self.classes(cells),
            "ranks": self.ranks(cells),
            "coordinates": self.coordinates(cells),
            "offsets": self.offsets(cells),
            "digits": self.digits(cells).reshape(*cells.shape[:2], COORDINATES, 2, 10),
            "scene": self.scene(cls),
            "sensor": self.sensor(cls),
            "counts": self.counts(cls).reshape(cls.shape[0], -1, 6),
        }


class Pretext(nnx.Module):
    """Both encoders of a model with dense heads on each of them and on their concatenated features."""

    def __init__(self, config: Config, *, classes: int, scenes: int, rngs: nnx.Rngs):
        model = EarthGPT(config.model, rngs=rngs)
        self.vit, self.convnext, self.perception = model.vit, model.convnext, model.perception
        self.taps = config.model.perception.vit_layers
        cnn_dim = sum(config.model.convnext.dims)
        head = functools.partial(DenseHead, classes=classes, scenes=scenes, rngs=rngs)
        self.heads = nnx.List([head(config.model.vit.dim), head(cnn_dim), head(cnn_dim + config.model.vit.dim)])

    def __call__(self, images: jax.Array) -> list[dict[str, jax.Array]]:
        pixels = images.astype(jnp.float32) / 255
        cnn = self.perception._fuse_cnn(self.convnext(normalize(pixels, CLIP_MEAN, CLIP_STD)))
        vit = self.vit(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), taps=self.taps)[-1]
        inputs = (vit, cnn, jnp.concatenate([cnn, vit], -1))
        return [head(tokens) for head, tokens in zip(self.heads, inputs, strict=True)]


def dense_loss(
    out: dict[str, jax.Array], batch: Mapping[str, np.ndarray | jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the weighted loss of one head, and its parts and accuracies as metrics.

    Args:
        out: output of a `DenseHead`.
        batch: rows of `scenes.dense_dataset`.
    """
    cross = optax.softmax_cross_entropy_with_integer_labels
    rows = batch["classes"].shape[0]
    classes, ranks = batch["classes"].reshape(rows, -1), batch["ranks"].reshape(rows, -1)
    target = batch["coordinates"].reshape(rows, GRID * GRID, COORDINATES)
    centres = (np.stack(np.divmod(np.arange(GRID**2), GRID)[::-1], axis=-1) + 0.5) / GRID  # P 2: x, y
    offsets = target - np.tile(centres, COORDINATES // 2).astype(np.float32)
    inside = (classes > 0).astype(jnp.float32)
    positives = jnp.maximum(inside.sum(), 1.0)
    hundredths = jnp.minimum(jnp.round(target * 100), 99).astype(jnp.int32)
    digits = jnp.stack([hundredths // 10, hundredths % 10], axis=-1)
    digit_losses = cross(out["digits"], digits).mean(2)  # B P 2
    parts = {
        "class": cross(out["classes"], classes).mean(),
        "rank": cross(out["ranks"], ranks).mean(),
        "box": (jnp.abs(out["coordinates"] - target).mean(-1) * inside).sum() / positives,
        "offset": (jnp.abs(out["offsets"] - offsets).mean(-1) * inside).sum() / positives,
        "tens": (digit_losses[..., 0] * inside).sum() / positives,
        "units": (digit_losses[..., 1] * inside).sum() / positives,
        "scene": cross(out["scene"], batch["scene"][:, 0]).mean(),
        "sensor": cross(out["sensor"], batch["scene"][:, 1]).mean(),
        "counts": cross(out["counts"], batch["counts"]).mean(),
    }
    weights = {
        "class": 3.0,
        "rank": 3.0,
        "box": 5.0,
        "offset": 5.0,
        "tens": 1.5,
        "units": 1.0,
        "scene": 0.5,
        "sensor": 0.1,
        "counts": 2.0,
    }
    metrics = parts | {
        "scene_acc": (out["scene"].argmax(-1) == batch["scene"][:, 0]).mean(),
        "class_acc": ((out["classes"].argmax(-1) == classes) * inside).sum() / positives,
        "rank_acc": ((out["ranks"].argmax(-1) == ranks) * inside).sum() / positives,
    }
    return sum(weights[name] * part for name, part in parts.items()), metrics


def train_encoders(workdir: Path, config: Config, *, count: int, rounds: Sequence[int], batch_size: int = 32) -> Path:
    """Train both encoders and return the file of their parameters; a finished file or round is not trained again.

    Args:
        count: number of training scenes.
        rounds: steps of each round. A round continues with the parameters of the last one and a new learning rate
            schedule (a warm restart).
    """
    path = workdir / "encoders.npz"
    if path.exists():
        return path
    data = dense_dataset(workdir, count=count)
    module = Pretext(
        config,
        classes=data["counts"].shape[1],
        scenes=int(data["scene"][:, 0].max()) + 1,
        rngs=nnx.Rngs(params=0),
    )
    graphdef, params = params_lib.split_module(module)
    for number, steps in enumerate(rounds):
        saved = workdir / f"encoders_{number}.npz"
        if saved.exists():
            params |= {key: jnp.asarray(value) for key, value in np.load(saved).items() if key in params}
            continue
        params = _train_round(graphdef, params, data, steps=steps, batch_size=batch_size, seed=number)
        np.savez(saved, **model_dir.to_host(params))  # type: ignore[arg-type]
    np.savez(path, **{k: np.asarray(v) for k, v in params.items() if k.startswith(("vit/", "convnext/"))})  # type: ignore[arg-type]
    return path


def _train_round(
    graphdef: nnx.GraphDef, params: Params, data: dict[str, np.ndarray], *, steps: int, batch_size: int, seed: int
) -> Params:
    count = len(data["images"])
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(200, steps // 8), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.02))
    state = optimizer.init(params)

    def loss(params: Params, batch: dict[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        results = [dense_loss(out, batch) for out in params_lib.merge_module(graphdef, params)(batch["images"])]
        named = zip(("vit", "cnn", "both"), results, strict=True)
        metrics = {f"{head}.{name}": value for head, (_, parts) in named for name, value in parts.items()}
        return sum((value for value, _ in results), start=jnp.float32(0)), metrics

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(
        params: Params, state: optax.OptState, batch: dict[str, Any]
    ) -> tuple[Params, optax.OptState, dict[str, jax.Array]]:
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, metrics

    evaluate = jax.jit(lambda params, batch: loss(params, batch)[1])
    rng = np.random.default_rng(seed)
    training = count - HELD_OUT
    epochs = 1 + steps * batch_size // training
    order = np.concatenate([rng.permutation(training) for _ in range(epochs)])
    shown = ("vit.scene_acc", "vit.box", "cnn.scene_acc", "cnn.box", "both.scene_acc", "both.class_acc",
             "both.rank_acc", "both.box", "both.offset", "both.tens", "both.units", "both.counts")  # fmt: skip
    bar = tqdm(range(steps), desc=f"encoders, round {seed}", mininterval=5)
    for step in bar:
        rows = order[step * batch_size : (step + 1) * batch_size]
        params, state, _ = update(params, state, {name: value[rows] for name, value in data.items()})
        if (step + 1) % 200 == 0:
            test = [
                evaluate(params, {name: value[i : i + 64] for name, value in data.items()})
                for i in range(training, count, 64)
            ]
            bar.write(f"{step + 1} " + " ".join(f"{k}={np.mean([float(m[k]) for m in test]):.3f}" for k in shown))
    return params
