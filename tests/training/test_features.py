"""Features of the frozen encoders on disk: training on them equals training on images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input import features
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training import features as features_lib
from earthgpt_jax.training.loop import train
from tests.support import nano

BASE = ("model.compute_dtype=bfloat16", "model.perception.spatial_merge=2", "data.seq_len=300")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run on features, with validation, and its dataset and base model."""
    root = tmp_path_factory.mktemp("world")
    data = nano.dataset(root / "data", train=10, val=4)
    base = nano.model_dir(root / "base", nano.config("align", *BASE).model)
    overrides = (*BASE, f"data.source={data}", f"init={base}", "validation.every_steps=2")
    cached = (*overrides, f"data.features={root / 'features'}")
    train(nano.config("align", *cached), root / "cached")
    files = sorted((root / "features").glob("*train-vit*/00000.npy"))
    return {"root": root, "overrides": overrides, "cached": cached, "file": files[0]}


def _lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_on_features_is_bit_identical_to_training_on_images(world):
    train(nano.config("align", *world["overrides"]), world["root"] / "images")
    assert _lines(world["root"] / "images") == _lines(world["root"] / "cached")
    (_, expected), (_, found) = (io.read(world["root"] / name / "model") for name in ("images", "cached"))
    assert [path for path, value in expected.items() if value.tobytes() != found[path].tobytes()] == []


def test_finished_features_are_kept_and_missing_ones_computed(world, monkeypatch):
    folders = {path.name.rsplit("-", 1)[0] for path in (world["root"] / "features").iterdir()}
    assert folders == {f"synthetic-{split}-{tower}" for split in ("train", "val") for tower in ("vit", "convnext")}
    files = {path: path.stat().st_mtime_ns for path in (world["root"] / "features").rglob("*.npy")}
    lost = next(path for path in files if "train-vit" in str(path))
    before = np.load(lost)
    lost.unlink()
    train(nano.config("align", *world["cached"]), world["root"] / "again")
    assert np.array_equal(np.load(lost), before)
    assert all(path.stat().st_mtime_ns == time for path, time in files.items() if path != lost)
    assert _lines(world["root"] / "again") == _lines(world["root"] / "cached")

    def fail(*args):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(features_lib, "_encoder", fail)
    train(
        nano.config("instruct", *world["cached"], "optim.steps=1", "optim.warmup_steps=0"), world["root"] / "instruct"
    )  # same encoders


def test_an_image_that_two_datasets_share_is_encoded_once(world, tmp_path, monkeypatch):
    from earthgpt_jax.input.features import CHUNK
    from earthgpt_jax.models import earthgpt
    from earthgpt_jax.sharding.mesh import data_parallel

    config = nano.config("align", *BASE)
    _, params = earthgpt.init(config.model, seed=3)
    data = nano.dataset(tmp_path / "one", train=5), nano.dataset(tmp_path / "two", train=7)
    sources = [RecordSource(path, "train") for path in data]
    calls, make = [], features_lib._encoder

    def counting(*args):
        encode = make(*args)
        return lambda images: calls.append(int(images.any((1, 2, 3)).sum())) or encode(images)

    monkeypatch.setattr(features_lib, "_encoder", counting)
    replicated = data_parallel(1).replicated
    (vit, _) = features_lib.feature_store(tmp_path / "features", config.model, params, replicated=replicated).towers
    features_lib.compute_missing([vit], config.model, params, sources=sources)
    assert CHUNK > 7 and sum(calls) == 7  # the first five scenes are the same
    assert all(np.array_equal(vit.read(sources[0], i), vit.read(sources[1], i)) for i in range(5))
    assert not np.array_equal(vit.read(sources[1], 5), vit.read(sources[1], 6))


@pytest.mark.slow
def test_other_weights_or_images_have_other_features(world):
    root = world["root"]
    other = nano.model_dir(root / "other", nano.config("align", *BASE).model, seed=1)
    before = {path.name for path in (root / "features").iterdir()}
    train(nano.config("align", *world["cached"], f"init={other}", "optim.steps=2"), root / "weights")
    after = {path.name for path in (root / "features").iterdir()}
    assert len(after - before) == 4


def test_damaged_features_are_named(world, tmp_path):
    path = world["file"]
    content = path.read_bytes()
    path.write_bytes(content[:100])
    features._open.cache_clear()
    try:
        with pytest.raises(EarthGPTError, match=r"00000\.npy: cannot be read .* delete its folder"):
            train(nano.config("align", *world["cached"]), tmp_path / "damaged")
    finally:
        path.write_bytes(content)


def test_augmentation_is_refused(world):
    with pytest.raises(EarthGPTError, match="features: expected no augmentation"):
        nano.config("align", *world["cached"], "data.augment=flips")
