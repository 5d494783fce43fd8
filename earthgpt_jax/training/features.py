"""Compute the features of the frozen encoders once and keep them on disk (`data.features`).

The encoders are frozen and images are not augmented, so an image has the same features in every epoch. Where the LLM is
small, the encoders would take most of a step. Features are stored as bfloat16: if the model computes in bfloat16,
training on them is bit-identical to training on images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from earthgpt_jax.common import files
from earthgpt_jax.common.digests import fingerprint_json
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.config import ModelConfig, to_dict
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.features import CHUNK, FeatureStore, TowerFeatures
from earthgpt_jax.input.images import to_square
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.params import Params, merge_module
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.training.checkpoints import fingerprint
from earthgpt_jax.training.step import ENCODE_CHUNK

_BATCH = ENCODE_CHUNK  # images encoded at a time: as in the step, because XLA rounds differently for other shapes
TOWERS: dict[str, Callable[[EarthGPT, jax.Array], jax.Array]] = {
    "vit": lambda model, images: model.packed_vit(images),
    "convnext": lambda model, images: model.packed_cnn(images),
}


def feature_store(folder: Path, model: ModelConfig, params: Params, *, replicated: Sharding) -> FeatureStore:
    """Return the store of the features of a model's encoders; `compute_missing` fills it.

    Args:
        params: parameters that include those of the encoders.
    """
    towers = tuple(tower_features(tower, folder, model, params, replicated=replicated) for tower in TOWERS)
    return FeatureStore(towers=towers)


def tower_features(
    tower: str, folder: Path, model: ModelConfig, params: Params, *, replicated: Sharding
) -> TowerFeatures:
    """Return the store of the features of one encoder, one of `TOWERS`."""
    identity = _identity(tower, model, params, replicated=replicated)
    return TowerFeatures(folder=folder, tower=tower, identity=identity, shape=_shape(tower, model, params))


def compute_missing(
    towers: Iterable[TowerFeatures], model: ModelConfig, params: Params, *, sources: Iterable[RecordSource]
) -> None:
    """Compute the features of all records that have none yet. What is finished stays if the process is killed.

    Raises:
        EarthGPTError: an image cannot be read; a file cannot be written; or features are missing and there are several
            processes.
    """
    sources = {source.fingerprint: source for source in sources}.values()
    for tower in towers:
        missing = [
            (source, number)
            for source in sources
            for number in range(-(-len(source) // CHUNK))
            if not tower.file(source, number).is_file()
        ]
        if not missing:
            continue
        if jax.process_count() > 1:
            raise EarthGPTError(
                f"data.features: expected the features of all images in {tower.folder}, but {len(missing)} files of "
                f"{tower.tower} are missing; compute them with a run of one process, or set --config.data.features=''"
            )
        encode = _encoder(tower.tower, model, params)
        with Bar(total=len(missing) * CHUNK, desc=f"features of {tower.tower}", unit="image") as bar:
            for source, number in missing:
                path = tower.file(source, number)
                records = range(number * CHUNK, min((number + 1) * CHUNK, len(source)))
                array = _encode_records(encode, source, records, size=model.image_size)
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.atomic_open(path) as file:
                    np.save(file, array, allow_pickle=False)
                bar.update(CHUNK)


def _encode_records(
    encode: Callable[[np.ndarray], jax.Array], source: RecordSource, records: Sequence[int], *, size: int
) -> np.ndarray:
    parts = []
    for start in range(0, len(records), _BATCH):
        chosen = records[start : start + _BATCH]
        images = np.zeros((_BATCH, size, size, 3), np.uint8)  # of one shape, so that the program is compiled once
        for place, record in enumerate(chosen):
            to_square(record_pixels(source[record]), size, out=images[place])
        parts.append(np.asarray(encode(images))[: len(chosen)])
    return np.concatenate(parts)


def _encoder(tower: str, model: ModelConfig, params: Params) -> Callable[[np.ndarray], jax.Array]:
    graphdef, arrays = _with(tower, model, params)
    encode = jax.jit(lambda arrays, images: TOWERS[tower](merge_module(graphdef, arrays), images))
    return lambda images: encode(arrays, images)


def _with(tower: str, model: ModelConfig, params: Params) -> tuple[nnx.GraphDef, dict[str, jax.Array | None]]:
    """Return the structure of a model and the parameters of one encoder; the others are None."""
    graphdef, shapes = earthgpt.abstract(model)
    return graphdef, {path: params[path] if path.startswith(f"{tower}/") else None for path in shapes}


def _identity(tower: str, model: ModelConfig, params: Params, *, replicated: Sharding) -> str:
    weights = {path: value for path, value in params.items() if path.startswith(f"{tower}/")}
    values = to_dict(model)
    used = values["perception"][{"vit": "vit_layers", "convnext": "cnn_stages"}[tower]]
    images = [model.image_size, model.vit.tokens_per_side, values["compute_dtype"]]
    return fingerprint_json([values[tower], used, images, fingerprint(weights, replicated=replicated)])


def _shape(tower: str, model: ModelConfig, params: Params) -> tuple[int, int]:
    graphdef, arrays = _with(tower, model, params)
    images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), np.uint8)
    out = jax.eval_shape(lambda arrays, images: TOWERS[tower](merge_module(graphdef, arrays), images), arrays, images)
    return out.shape[1], out.shape[2]
