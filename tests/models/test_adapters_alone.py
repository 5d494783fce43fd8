"""Model directories that hold adapters alone: read as the whole model, found with their parents, copied, checked."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax import params as params_lib
from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import SafetensorsWriter
from earthgpt_jax.config import Config, MeshConfig
from earthgpt_jax.convert import exporter, importer
from earthgpt_jax.models import earthgpt, loading, model_copy, model_dir, model_writer
from earthgpt_jax.sharding import rules
from earthgpt_jax.sharding.mesh import build_mesh
from earthgpt_jax.training.initial import initial_model
from earthgpt_jax.training.stages import trainable_paths
from tests.support import nano

SIZES = ("model.llm.heads=8", "model.llm.kv_heads=8")
BIASES = ("model.llm.attention_bias=True", "model.llm.mlp_bias=True")


def _config(stage: str, init: Path | str, *more: str) -> Config:
    return nano.config(stage, *SIZES, f"init={init}", *more)


def _finish(config: Config, out: Path, *, seed: int, whole: Path | None = None) -> Path:
    """Write what a run of `config` would leave if its adapters were random, and with `whole`, also the whole model."""
    initial = initial_model(config)
    _, shapes = earthgpt.abstract(config.model)
    place = rules.placement(config.model, shapes, mesh=build_mesh(MeshConfig(data=2, fsdp=4), rows=8))
    trainable, frozen = loading.load(
        initial.source, config.model, seed=0, placement=place, trainable=trainable_paths(config, shapes),
        frozen_dtype=config.frozen_dtype,
    )  # fmt: skip
    noise = np.random.default_rng(seed)
    trainable = place.put(
        {path: np.float32(1) + noise.normal(size=v.shape).astype(np.float32) for path, v in trainable.items()}
    )
    about = {
        "compute_dtype": config.model.compute_dtype, "model": config.model, "decimals": 2, "chat_template": "plain",
        "tokenizer": initial.tokenizer, "provenance": {"recipe": "nano", "parent": initial.about},
    }  # fmt: skip
    model_writer.write(out, trainable, parent=initial.directory, frozen_dtype=config.frozen_dtype, **about)
    if whole is not None:
        model_writer.write(whole, params_lib.merge(trainable, frozen), **about)
    return out


def _assert_same(one: Path, other: Path, **parent: Path) -> None:
    """Check that two directories are the same model, bit by bit."""
    (_, expected), (_, found) = model_dir.read(one), model_dir.read(other, **parent)
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype, path
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return nano.model_dir(tmp_path_factory.mktemp("parent") / "base", nano.config("align", *SIZES).model)


@pytest.fixture(scope="module")
def adapters(base) -> Path:
    return _finish(_config("instruct", base), base.parent / "adapters", seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_adapters_and_parent_are_the_whole_model_bit_by_bit(base, tmp_path, dtype):
    """Also when each device loads its shards alone: both axes of a kernel are sharded."""
    config = _config("instruct", base, f"frozen_dtype={dtype}", "model.compute_dtype=bfloat16")
    adapters = _finish(config, tmp_path / "adapters", seed=0, whole=tmp_path / "whole")
    _assert_same(tmp_path / "whole", adapters)
    size = sum(file.stat().st_size for file in adapters.glob("*.safetensors"))
    count = 4 * params_lib.count({k: v for k, v in earthgpt.abstract(config.model)[1].items() if "/adapter/" in k})
    assert count < size < count + 3000  # fp32 and a header
    whole, alone = model_dir.read_config(tmp_path / "whole"), model_dir.read_config(adapters)
    assert abs(whole.weight_bytes - alone.weight_bytes) < 30_000  # the header of a file
    _, shapes = earthgpt.abstract(config.model)
    place = rules.placement(config.model, shapes, mesh=build_mesh(MeshConfig(data=2, fsdp=2, tensor=2), rows=8))
    loaded = model_dir.load_sharded(alone, place)
    assert params_lib.fingerprint(loaded) == params_lib.fingerprint(model_dir.load_sharded(whole, place))


def test_at_13b_the_adapters_are_17_mb():
    """In fp32, next to 26 GB of other parameters in bfloat16."""
    config = config_lib.load("earthgpt_13b:instruct")
    _, shapes = earthgpt.abstract(config.model)
    trained, frozen = params_lib.split(shapes, trainable_paths(config, shapes))
    assert sum(4 * leaf.size for leaf in trained.values()) == 17_039_360
    assert 26e9 < sum(2 * leaf.size for leaf in frozen.values()) < 28e9


def test_a_parent_may_hold_adapters_alone_and_adapters_of_another_kind_are_merged(base, adapters, tmp_path):
    """lora on top of scale+bias on top of a whole model; and scale+bias trained further."""
    whole = model_copy.copy_whole(adapters, tmp_path / "copy")
    _assert_same(whole, adapters)
    assert model_dir.read_config(whole).parent is None
    for stage, more in (("lora", (*BIASES, "frozen_dtype=bfloat16")), ("instruct", ())):
        again = _finish(_config(stage, adapters, *more), tmp_path / stage, seed=1, whole=tmp_path / f"{stage}-whole")
        assert [len(model.files) for model in (model_dir.read_config(again), model_dir.read_config(adapters))] == [3, 2]
        _assert_same(tmp_path / f"{stage}-whole", again)
        initial = initial_model(_config("finetune", again, *BIASES))
        assert initial.files == model_dir.read_config(again).files


@pytest.mark.torch
@pytest.mark.slow
def test_exports_and_imports_are_those_of_the_whole_model(base, adapters, tmp_path):
    whole = model_copy.copy_whole(adapters, tmp_path / "whole")
    for export in (exporter.export_hf, exporter.export_llama, exporter.export_accessory):
        one, other = (export(path, tmp_path / export.__name__ / path.name) for path in (whole, adapters))
        names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
        assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
        different = [str(name) for name in names if (one / name).read_bytes() != (other / name).read_bytes()]
        assert different == [], export.__name__
    parts = {"model": [adapters]}
    model = model_dir.read_config(adapters)
    imported = importer.import_model(
        parts, model.model, out=tmp_path / "imported", tokenizer=importer.find_tokenizer(parts), decimals=2,
        chat_template="plain",
    )  # fmt: skip
    _assert_same(whole, imported)
    assert set(importer.weight_files(parts)) == set(model.files)


def test_a_pair_that_is_moved_together_stays_a_pair(tmp_path, monkeypatch):
    old = tmp_path / "old"
    (old / "align").mkdir(parents=True)
    (old / "instruct").mkdir()
    nano.model_dir(old / "align" / "model", nano.config("align", *SIZES).model)
    monkeypatch.chdir(old)
    _finish(_config("instruct", "align/model"), Path("instruct/model"), seed=0)
    record = json.loads((old / "instruct" / "model" / "config.json").read_text())["parent"]
    assert (record["path"], record["relative_path"]) == ("align/model", "../../align/model")
    monkeypatch.chdir(tmp_path)
    old.rename(tmp_path / "new")
    assert model_dir.read_config("new/instruct/model").parent.path.samefile("new/align/model")

    (tmp_path / "new" / "align" / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(EarthGPTError, match=r"no model in align/model; no model in .*new/align/model.*--parent"):
        model_dir.read_config("new/instruct/model")
    model = model_dir.read_config("new/instruct/model", parent="elsewhere")
    assert model.parent.path == Path("elsewhere")
    assert model_dir.open_params(model).shapes.keys() > model_dir.open_params(model.parent).shapes.keys()
    config = _config("finetune", "new/instruct/model", *BIASES, "init_parent=elsewhere")
    assert initial_model(config).directory.parent == model.parent
    with pytest.raises(EarthGPTError, match="holds all parameters and has no parent, got parent elsewhere"):
        model_dir.read_config("elsewhere", parent="elsewhere")


def test_relative_paths_work_in_buckets_too():
    adapters, parent = files.path("gs://bucket/runs/instruct/model"), files.path("gs://bucket/runs/align/model")
    assert model_dir.relative_path(parent, adapters) == "../../align/model"
    assert model_dir.join_relative(files.path("gs://other/x/instruct/model"), "../../align/model") == files.path(
        "gs://other/x/align/model"
    )
    assert model_dir.relative_path(Path("/models/base"), adapters) == ""


def test_another_model_in_place_of_the_parent_is_refused_by_name(base, adapters, tmp_path):
    other = nano.model_dir(tmp_path / "other", nano.config("align", *SIZES).model, seed=1)
    expected, got = (model_dir.read_config(path).stored_fingerprint for path in (base, other))
    message = rf"{adapters}: .*fingerprint {expected}, recipe nano.*got another model in {other} \(fingerprint {got}"
    with pytest.raises(EarthGPTError, match=message):
        model_dir.read_config(adapters, parent=other)
    # The same parameters in another directory, in two files, are the same model.
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    _split_in_two(moved)
    _assert_same(adapters, adapters, parent=moved)


def test_an_embedded_model_is_recorded_by_name(tmp_path):
    config = config_lib.load("tiny:lora", ["--config.init=tiny-base"])
    _finish(config, tmp_path / "adapters", seed=0)
    record = json.loads((tmp_path / "adapters" / "config.json").read_text())["parent"]
    assert (record["path"], record["relative_path"]) == ("tiny-base", "")
    assert model_dir.read_config(tmp_path / "adapters").parent.name == "tiny-base"


def test_a_parent_of_format_2_is_read_and_its_fingerprint_computed(base, adapters, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(base, old)
    values = json.loads((old / "config.json").read_text())
    del values["fingerprint"]
    (old / "config.json").write_text(json.dumps({**values, "format_version": 2}))
    assert model_dir.fingerprint(model_dir.read_config(old)) == model_dir.read_config(base).stored_fingerprint
    _assert_same(adapters, adapters, parent=old)


def test_parents_that_form_a_cycle_are_refused(adapters, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path, parent in ((one, two), (two, one)):
        shutil.copytree(adapters, path)
        values = json.loads((path / "config.json").read_text())
        values["parent"] |= {"path": str(parent), "relative_path": ""}
        (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(EarthGPTError, match=rf"cycle: {one} -> {two} -> {one}"):
        model_dir.read_config(one)


def test_a_changed_value_is_found_by_a_full_check(base, adapters, tmp_path):
    model_dir.check_fingerprint(model_dir.read_config(adapters))
    for changed in ("base", "adapters"):
        for name in ("base", "adapters"):
            shutil.copytree(base.parent / name, tmp_path / changed / name)
        weights = tmp_path / changed / changed / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
        model = model_dir.read_config(tmp_path / changed / "adapters", parent=tmp_path / changed / "base")
        with pytest.raises(EarthGPTError, match=rf"{re.escape(str(weights))}: expected arrays with fingerprint"):
            model_dir.check_fingerprint(model)


def _split_in_two(path: Path) -> None:
    """Write the arrays of a model directory into two files instead of one, in another order."""
    _, arrays = model_dir.read(path)
    names = sorted(arrays, reverse=True)
    tensors = {key: (arrays[key].shape, arrays[key].dtype) for key in names}
    writer = SafetensorsWriter(path, tensors, groups=[names[::2], names[1::2]])
    for key in names:
        writer.write(key, arrays[key])
    writer.close()
    (path / "model.safetensors").unlink()


def test_the_fingerprint_depends_on_the_parent(base, adapters, tmp_path):
    values = json.loads((adapters / "config.json").read_text())
    record = model_dir.read_config(adapters).parent_record
    assert values["fingerprint"] == model_dir.compute_fingerprint(model_dir.read_config(adapters))
    model = model_dir.read_config(adapters)
    other = dataclasses.replace(model, parent_record=dataclasses.replace(record, fingerprint="0" * 16))
    assert model_dir.compute_fingerprint(other) != values["fingerprint"]
