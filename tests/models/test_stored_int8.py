"""Parameters stored in 8 bits."""

import numpy as np
import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.safetensors_files import SafetensorsWriter, model_files, open_model_files
from earthgpt_jax.models import model_copy, model_dir
from earthgpt_jax.models.stored_int8 import SCALE, DecodingReader, encode


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "model"
    assert main(["convert", "merge", "tiny", "--out", str(out), "--int8", "--max-shard-mb", "1"]) == 0
    return out


def test_values_differ_by_at_most_half_a_level(stored):
    _, exact = model_dir.read("tiny")
    model, rounded = model_dir.read(stored)
    own = open_model_files(stored)
    encoded = {key.removesuffix(SCALE) for key in own.shapes if key.endswith(SCALE)}
    assert len(encoded) > 10
    for path, value in exact.items():
        if path not in encoded:
            np.testing.assert_array_equal(rounded[path], value)
            continue
        level = np.abs(value.astype(np.float32)).max(-1, keepdims=True) / 127
        assert rounded[path].dtype == np.float32
        assert (np.abs(rounded[path] - value) <= level * 0.5001).all(), path
    sizes = [sum(file.stat().st_size for file in model_files(path)) for path in (stored, model_dir.find("tiny"))]
    assert sizes[0] < 0.65 * sizes[1]  # `tiny` is stored in bfloat16 and has many small arrays
    assert max(file.stat().st_size for file in model_files(stored)) < 1.1e6
    assert model.weight_bytes > sizes[0]


def test_any_part_of_a_parameter_is_read_alone(stored):
    reader = DecodingReader(open_model_files(stored))
    path = "llm/blocks/mlp/gate/kernel"
    whole = reader.read(path)
    np.testing.assert_array_equal(reader.read(path, 1, 1), whole[1:2])
    for index in ((slice(0, 1),), (slice(1, 2), slice(3, 9)), (slice(0, 2), slice(0, 8), slice(5, 11))):
        np.testing.assert_array_equal(reader.read_slice(path, index), whole[index])


def test_a_second_copy_is_the_same_and_a_changed_scale_is_found(stored, tmp_path):
    again = model_copy.copy_whole(stored, tmp_path / "again", int8=True)
    for path, value in model_dir.read(stored)[1].items():
        np.testing.assert_allclose(model_dir.read(again)[1][path], value, rtol=1e-6)
    file = again / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(EarthGPTError, match="fingerprint"):
        model_dir.read(again)


def test_zeros_stay_zeros():
    values, scale = encode(np.zeros((2, 4), np.float32))
    assert not values.any()
    np.testing.assert_array_equal(scale, 1)


def test_values_without_scales_are_refused(stored, tmp_path):
    reader = open_model_files(stored)
    path = next(key for key in reader.shapes if key + SCALE in reader.shapes)
    for lost in (path, path + SCALE):
        tensors = {key: (reader.shapes[key], reader.dtypes[key]) for key in reader.shapes if key != lost}
        writer = SafetensorsWriter(tmp_path, tensors)
        for key in tensors:
            writer.write(key, reader.read(key))
        writer.close()
        with pytest.raises(EarthGPTError, match="expected int8 values and their scales"):
            DecodingReader(open_model_files(tmp_path))


def test_a_size_of_files_that_is_no_size_is_refused(tmp_path, capsys):
    for size in ("0", "-1", "nan"):
        assert main(["convert", "merge", "tiny", "--out", str(tmp_path / "m"), "--max-shard-mb", size]) == 2
        assert "--max-shard-mb: expected a number of megabytes" in capsys.readouterr().err
