"""Compute the features of the frozen encoders once and keep them on disk (`data.features`).

The encoders are frozen and images are not augmented, so an image has the same features in every epoch. Where the LLM is
small, the encoders would take most of a step. Features are stored as bfloat16: if the model computes in bfloat16,
training on them is bit-identical to training on images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from earthgpt_jax.datasets.image_digests import read_image_digests
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.features import CHUNK, FeatureStore, TowerFeatures
from earthgpt_jax.input.images import to_square
from earthgpt_jax.models import earthgpt
from earthgpt_jax.models.earthgpt import EarthGPT
from earthgpt_jax.params import Params, merge_module
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import Record
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

    An image that several datasets share is encoded once.

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
        encode, known = _encoder(tower.tower, model, params), _KnownImages(tower)
        for source in sources:
            known.add(source, range(-(-len(source) // CHUNK)))
        with (
            ThreadPoolExecutor(1) as pool,
            Bar(total=len(missing) * CHUNK, desc=f"features of {tower.tower}", unit="image") as bar,
        ):
            chunks = [(source, _indices(source, number)) for source, number in missing]
            pending = [pool.submit(_read, known, *chunk, size=model.image_size) for chunk in chunks[:1]]
            for place, (source, number) in enumerate(missing):
                records, images = pending.pop().result()
                if place + 1 < len(chunks):  # read while these are encoded
                    pending.append(pool.submit(_read, known, *chunks[place + 1], size=model.image_size))
                array = _features(encode, known, source, records, images)
                path = tower.file(source, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.atomic_open(path) as file:
                    np.save(file, array, allow_pickle=False)
                known.add(source, [number])
                bar.update(CHUNK)


class _KnownImages:
    """The images whose features are on disk, by the digests of their files."""

    def __init__(self, tower: TowerFeatures):
        self._tower = tower
        self._digests: dict[str, np.ndarray] = {}
        self._places: dict[int, tuple[RecordSource, int]] = {}

    def add(self, source: RecordSource, numbers: Iterable[int]) -> None:
        """Add the records of those files of a source that exist."""
        digests = self._of(source)
        for number in numbers:
            if self._tower.file(source, number).is_file():
                for record in _indices(source, number):
                    self._places.setdefault(int(digests[record]), (source, record))

    def find(self, source: RecordSource, index: int, record: Record) -> np.ndarray | None:
        """Return the features of the same image, shown in the same way, in another record; None if there are none."""
        place = self._places.get(int(self._of(source)[index]))
        if place is None:
            return None
        other = place[0][place[1]]
        same = other.image == record.image and other.stretch == record.stretch
        return self._tower.read(*place) if same else None

    def _of(self, source: RecordSource) -> np.ndarray:
        if source.fingerprint not in self._digests:
            self._digests[source.fingerprint] = read_image_digests(source.directory)[source.split]
        return self._digests[source.fingerprint]


def _indices(source: RecordSource, number: int) -> range:
    """Return the records of a file."""
    return range(number * CHUNK, min((number + 1) * CHUNK, len(source)))


def _read(
    known: _KnownImages, source: RecordSource, indices: range, *, size: int
) -> tuple[dict[int, Record], dict[int, np.ndarray]]:
    """Return some records, and the images of those whose features are not known, by their index."""
    records = {index: source[index] for index in indices}
    unknown = [index for index, record in records.items() if known.find(source, index, record) is None]
    return records, {index: to_square(record_pixels(records[index]), size) for index in unknown}


def _features(
    encode: Callable[[np.ndarray], jax.Array], known: _KnownImages, source: RecordSource,
    records: Mapping[int, Record], images: Mapping[int, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Return the features of some records, u16[records, T, C]."""
    found = {index: known.find(source, index, record) for index, record in records.items()}
    unknown = [index for index, array in found.items() if array is None]
    for start in range(0, len(unknown), _BATCH):
        chosen = unknown[start : start + _BATCH]
        batch = np.stack([images[index] for index in chosen])
        # Of one shape, so that the program is compiled once.
        padded = np.pad(batch, ((0, _BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        found |= dict(zip(chosen, np.asarray(encode(padded)), strict=False))
    return np.stack([array for array in found.values() if array is not None])


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
