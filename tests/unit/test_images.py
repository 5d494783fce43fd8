"""Image bytes that are unusual: no-data pixels, too large, damaged."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.input.images import FILL, decode, grey_square, load_square


def _file(array: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def test_pixels_without_a_value_are_black_and_do_not_spoil_the_stretch():
    band = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    whole = decode(_file(band, "TIFF"))
    holed = band.copy()
    holed[0, 0], holed[9, 9] = np.nan, np.inf
    got = decode(_file(holed, "TIFF"))
    assert (got[0, 0] == 0).all() and (got[9, 9] == 0).all()
    assert np.abs(got[1:9].astype(int) - whole[1:9]).max() <= 4  # two pixels of a hundred hardly move a percentile
    assert not decode(_file(np.full((4, 4), np.nan, np.float32), "TIFF")).any()


def test_the_stretch_by_hand():
    # 0..100: the 2nd and 98th percentiles are 2 and 98, so 50 is the middle of 0..255
    image = decode(_file(np.arange(101, dtype=np.uint16)[None], "PNG"))[0, :, 0]
    assert image[[0, 2, 50, 98, 100]].tolist() == [0, 0, 127, 255, 255]


def test_a_constant_band_is_black_and_eight_bits_are_never_stretched():
    assert not decode(_file(np.full((4, 4), 900, np.uint16), "PNG")).any()
    assert (decode(_file(np.full((4, 4), 90, np.uint8), "PNG")) == 90).all()


def test_an_image_larger_than_pillow_opens_is_a_users_error(monkeypatch):
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
def test_a_damaged_file_is_an_image_or_a_users_error(data, length, changes):
    damaged = bytearray(data[:length])
    for position, value in changes:
        if position < len(damaged):
            damaged[position] = value
    try:
        image = decode(bytes(damaged))
    except EarthGPTError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3


def test_the_blind_image_is_the_padding_and_a_right_sized_square_is_not_resampled():
    assert grey_square(8).shape == (8, 8, 3) and (grey_square(8) == FILL).all()
    pixels = _RNG.integers(0, 255, (16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(load_square(_file(pixels, "PNG"), 16), pixels)
