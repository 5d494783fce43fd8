"""Decoding of unusual images: no-data pixels, more than 8 bits, too large, damaged."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.images import FILL, grey_square, load_square, pad_to_square, resize_with_pillow
from earthgpt_jax.input.resize import resize_square
from earthgpt_jax.raster.decode import decode
from tests.conftest import ROOT


def _file(array: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def test_pixels_without_a_value_are_black_and_do_not_affect_the_stretch():
    band = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    whole = decode(_file(band, "TIFF"))
    holed = band.copy()
    holed[0, 0], holed[9, 9] = np.nan, np.inf
    got = decode(_file(holed, "TIFF"))
    assert (got[0, 0] == 0).all() and (got[9, 9] == 0).all()
    assert np.abs(got[1:9].astype(int) - whole[1:9]).max() <= 4  # two pixels of a hundred hardly move a percentile
    assert not decode(_file(np.full((4, 4), np.nan, np.float32), "TIFF")).any()


def test_the_stretch_computed_by_hand():
    # 0..100: the 2nd and 98th percentiles are 2 and 98, so 50 is the middle of 0..255
    image = decode(_file(np.arange(101, dtype=np.uint16)[None], "PNG"))[0, :, 0]
    assert image[[0, 2, 50, 98, 100]].tolist() == [0, 0, 127, 255, 255]


def test_a_constant_band_is_black_and_eight_bits_are_never_stretched():
    assert not decode(_file(np.full((4, 4), 900, np.uint16), "PNG")).any()
    assert (decode(_file(np.full((4, 4), 90, np.uint8), "PNG")) == 90).all()


def test_an_image_larger_than_pillow_opens_is_a_user_error(monkeypatch):
    data = _file(np.zeros((30, 30, 3), np.uint8), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(EarthGPTError, match="cut it into tiles"):
        decode(data)


_RNG = np.random.default_rng(0)
_WHOLE = [
    _file(_RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8), kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF")
] + [_file(_RNG.integers(0, 60000, (20, 30)).astype(np.uint16), kind) for kind in ("PNG", "TIFF")]


@given(st.sampled_from(_WHOLE), st.integers(0, 3000), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255))))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_decoded_or_is_a_user_error(data, length, changes):
    damaged = bytearray(data[:length])
    for position, value in changes:
        if position < len(damaged):
            damaged[position] = value
    try:
        image = decode(bytes(damaged))
    except EarthGPTError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3


def test_the_blind_image_has_the_padding_colour_and_a_square_of_the_right_size_is_not_resampled():
    assert grey_square(8).shape == (8, 8, 3) and (grey_square(8) == FILL).all()
    pixels = _RNG.integers(0, 255, (16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(load_square(_file(pixels, "PNG"), 16), pixels)


def _by_pillow(data: bytes, size: int) -> np.ndarray:
    """Return what `load_square` returns for an 8-bit image, computed with Pillow only."""
    with Image.open(io.BytesIO(data)) as image:
        square = pad_to_square(np.asarray(image.convert("RGB")))
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


@given(
    st.integers(1, 200), st.integers(1, 200), st.integers(1, 150), st.integers(0, 2**32 - 1),
    st.sampled_from([(122, 116, 104), (0, 255, 3)]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_resizing_equals_pillow_bit_by_bit(height, width, size, seed, fill):
    rng = np.random.default_rng(seed)
    levels = 1 + 254 * (seed % 2)  # every other time nothing but 0 and 255, where bicubic overshoots
    image = (rng.integers(0, levels + 1, (height, width, 3)) * (255 // levels)).astype(np.uint8)
    square = pad_to_square(image, fill)
    expected = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
    if square.shape[0] != size:
        np.testing.assert_array_equal(resize_square(image, size, fill), expected)


@pytest.mark.parametrize("shape", [(354, 506), (1024, 700), (2000, 2000), (65, 3000)])
def test_resizing_to_the_size_of_the_model_equals_pillow(shape):
    image = _RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    expected, out = _by_pillow(_file(image, "PNG"), 512), np.empty((512, 512, 3), np.uint8)
    for resize in (resize_square, resize_with_pillow):  # with Numba and without
        np.testing.assert_array_equal(resize(image, 512, FILL), expected)
        np.testing.assert_array_equal(resize(image, 512, FILL, out=out), expected)
        assert resize(image, 512, FILL, out=out) is out


def test_resizing_stays_within_its_arrays():
    """Compiled code does not check indices; the same functions do when they are interpreted."""
    script = "import sys; from tests.raster.test_decode import interpreted; interpreted()"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=ROOT)


def interpreted() -> None:
    for height, width, size in ((1, 1, 2), (3, 9, 5), (9, 3, 5), (7, 7, 3), (66, 5, 4), (5, 66, 70)):
        image = _RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
        expected = np.asarray(Image.fromarray(pad_to_square(image)).resize((size, size), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(resize_square(image, size, FILL), expected)


def _jpeg(array: np.ndarray, mode: str, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 100), st.booleans(), st.integers(0, 2**32 - 1),
    st.sampled_from([
        ("RGB", {"subsampling": "4:4:4"}), ("RGB", {"subsampling": "4:2:2"}), ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"keep_rgb": True}), ("L", {}), ("CMYK", {}),
    ]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_jpeg_files_decode_as_with_pillow(height, width, quality, progressive, seed, colours):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mode, options = colours
    data = _jpeg(image, mode, quality=quality, progressive=progressive, **options)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(decode(data), np.asarray(opened.convert("RGB")))


@given(st.integers(0, 2000), st.integers(0, 255), st.integers(0, 2000))
@settings(max_examples=200, deadline=None)
def test_a_damaged_jpeg_decodes_or_fails_as_with_pillow(position, value, cut):
    data = bytearray(_jpeg(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3), "RGB", quality=90))
    data[min(position, len(data) - 1)] = value
    data = data[: len(data) - max(cut - 1000, 0)]
    results = []
    for fast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not fast:
                patch.setattr("earthgpt_jax.raster.decode._jpeg", lambda data: None)
            try:
                results.append(decode(bytes(data)).tolist())
            except EarthGPTError as error:
                results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.realdata
def test_real_files_decode_as_with_pillow_bit_by_bit(realdata):
    seen = 0
    for path in sorted(path for kind in ("jpg", "JPG", "png", "tif") for path in realdata.rglob(f"*.{kind}")):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("RGB", "L"):
                continue
        seen += 1
        np.testing.assert_array_equal(load_square(data, 512), _by_pillow(data, 512), err_msg=str(path))
    assert seen > 300
