"""Rasters of remote sensing, compared with rasterio: more than 8 bits, bands, no-data, masks, orientation."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp as C
from rasterio.io import MemoryFile

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.raster.decode import decode, decode_picture, examine, read_bands
from earthgpt_jax.raster.orientation import turn
from earthgpt_jax.raster.policy import Stretch, StretchPolicy
from tests.conftest import ROOT
from tests.support.rasters import raster_file, with_orientation

RNG = np.random.default_rng(0)


def _scaled(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return what a stretch is defined to give: low..high becomes 0..255, the rest is cut off."""
    return np.clip((plane.astype(np.float64) - low) / (high - low) * 255, 0, 255)


def _assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Pixels are rounded down, and float32 may fall below a whole number."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1.01


def _image(bands: int, dtype: type, low: float, high: float, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    return np.linspace(low, high, bands * size[0] * size[1]).reshape(bands, *size).astype(dtype)


# ------------------------------------------------------------------- each of these was once wrong without a word
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", ["none", "deflate"])
def test_sixteen_bits_in_three_bands(interleave, compress):
    values = np.stack([RNG.integers(low, high, (30, 40)) for low, high in ((0, 3000), (200, 900), (1000, 9000))])
    data = raster_file(values.astype(np.uint16), photometric="RGB", interleave=interleave, compress=compress)
    expected = [_scaled(plane, *np.percentile(plane, (2, 98))) for plane in values]
    _assert_close(decode(data), np.moveaxis(np.stack(expected), 0, -1))


@pytest.mark.parametrize(
    ("colours", "wanted"),
    [
        ((C.red, C.green, C.blue, C.nir), (0, 1, 2)),
        ((C.blue, C.green, C.red, C.nir), (2, 1, 0)),
        ((C.red, C.green, C.blue, C.undefined), (0, 1, 2)),
        ((C.undefined, C.undefined, C.undefined), (0, 1, 2)),
        ((C.gray, C.alpha), (0, 0, 0)),
    ],
)
def test_the_tags_say_which_bands_are_the_colours(colours, wanted):
    values = RNG.integers(1, 4000, (len(colours), 30, 40)).astype(np.uint16)
    data = raster_file(values, colours=colours, photometric="MINISBLACK")
    assert Stretch.from_text(decode_picture(data).stretch).bands == tuple(dict.fromkeys(i + 1 for i in wanted))
    expected = [_scaled(values[i], *np.percentile(values[i], (2, 98))) for i in wanted]
    _assert_close(decode(data), np.moveaxis(np.stack(expected), 0, -1))


def test_bands_are_chosen_by_name_or_number_and_never_guessed():
    values = RNG.integers(1, 4000, (5, 20, 20)).astype(np.uint16)
    names = ("B2", "B3", "B4", "B8", "SCL")
    data = raster_file(values, names=names, photometric="MINISBLACK")
    with pytest.raises(EarthGPTError, match=r"has 5 bands .* 1 \(B2\), 2 \(B3\).*stretch: \{bands"):
        decode(data)
    by_name = decode_picture(data, StretchPolicy.parse("bands: [b4, B3, B2]"))
    by_number = decode_picture(data, StretchPolicy.parse("bands: [3, 2, 1]"))
    np.testing.assert_array_equal(by_name.pixels, by_number.pixels)
    assert by_name.stretch == by_number.stretch
    grey = decode_picture(data, StretchPolicy.parse("bands: 4")).pixels
    _assert_close(grey[..., 0], _scaled(values[3], *np.percentile(values[3], (2, 98))))
    for wrong in ("bands: [1, 2, 6]", "bands: B9", "bands: [0, 1, 2]"):
        with pytest.raises(EarthGPTError, match="expected one band"):
            decode_picture(data, StretchPolicy.parse(wrong))
    # Names that are colours are tags as well.
    named = raster_file(values[:4], names=("Blue", "Green", "Red", "NIR"), photometric="MINISBLACK")
    assert Stretch.from_text(decode_picture(named).stretch).bands == (3, 2, 1)


@pytest.mark.parametrize(
    ("nodata", "dtype"),
    [(-9999.0, np.int16), (-9999.0, np.float32), (-3.4028234663852886e38, np.float32), (0, np.uint16), (np.nan, float)],
)
def test_pixels_without_data_are_black_and_do_not_count(nodata, dtype):
    values = _image(1, dtype, 1000, 2000)
    values[:, ::4] = nodata
    got = decode_picture(raster_file(values, nodata=nodata))
    rest = np.delete(values[0], np.s_[::4], axis=0).astype(np.float64)
    assert not got.pixels[::4].any()
    _assert_close(np.delete(got.pixels[..., 0], np.s_[::4], axis=0), _scaled(rest, *np.percentile(rest, (2, 98))))
    # A file that does not say so itself is read with the policy's value.
    silent = decode_picture(raster_file(values), StretchPolicy(nodata=nodata))
    np.testing.assert_array_equal(silent.pixels, got.pixels)
    np.testing.assert_array_equal(decode(raster_file(values), silent.stretch), got.pixels)


def test_a_border_of_zeros_does_not_count():
    scene = _image(3, np.uint16, 2000, 4000, (60, 60))
    bordered = np.zeros((3, 100, 100), np.uint16)
    bordered[:, 20:80, 20:80] = scene
    got = decode_picture(raster_file(bordered, photometric="RGB"))
    np.testing.assert_array_equal(got.pixels[20:80, 20:80], decode(raster_file(scene, photometric="RGB")))
    assert not got.pixels[:20].any()
    assert Stretch.from_text(got.stretch).zero_border == 0.64
    counted = decode_picture(raster_file(bordered, photometric="RGB"), StretchPolicy.parse("zero_border: include"))
    assert Stretch.from_text(counted.stretch).low == (0, 0, 0)
    # Zeros inside of the scene are values, and so are a few at its edge.
    inside = scene.copy()
    inside[:, 20:40, 20:40] = 0
    inside[:, 0, :20] = 0
    assert Stretch.from_text(decode_picture(raster_file(inside, photometric="RGB")).stretch).low == (0, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_under_alpha_0_and_masked_pixels_are_black(dtype):
    values = RNG.integers(1, 200, (3, 20, 30)).astype(dtype)
    hidden = values.copy()
    hidden[:, :5] = 250  # would be the brightest pixels
    opaque = np.full((1, 20, 30), np.iinfo(dtype).max, dtype)
    opaque[:, :5] = 0
    expected = decode(raster_file(values[:, 5:], photometric="RGB"))
    alpha = raster_file(np.concatenate([hidden, opaque]), colours=(C.red, C.green, C.blue, C.alpha), photometric="RGB")
    for data in (alpha, raster_file(hidden, mask=opaque[0] > 0, photometric="RGB")):
        got = decode(data)
        assert not got[:5].any()
        np.testing.assert_array_equal(got[5:], expected)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("GIF", "P"), ("WEBP", "RGBA"),
     ("TIFF", "RGBA"), ("TIFF", "LA")],
)  # fmt: skip
def test_transparent_pixels_of_pictures_are_black(kind, mode):
    """Modes without an alpha band name one colour as transparent."""
    image = Image.fromarray(RNG.integers(50, 200, (20, 30, 3)).astype(np.uint8)).convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    if mode.endswith("A"):
        alpha = np.full((20, 30), 255, np.uint8)
        alpha[:5] = 0
        image.putalpha(Image.fromarray(alpha))
    else:
        key = image.getpixel((0, 0))
        image.paste(key, (0, 0, 30, 5))
        options["transparency"] = key
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    got = decode(buffer.getvalue())
    assert not got[:5].any() and (got[5:].any(-1)).mean() > 0.95
    visible = got.any(-1)
    np.testing.assert_array_equal(got[visible], np.asarray(image.convert("RGB"))[visible])


def test_unsigned_integers_of_32_bits_above_half_of_their_range():
    values = (2**31 + np.arange(1200, dtype=np.uint32).reshape(1, 30, 40)).astype(np.uint32)
    expected = _scaled(values[0], *np.percentile(values.astype(np.float64), (2, 98)))
    _assert_close(decode(raster_file(values))[..., 0], expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_tag_says(kind, orientation):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8], pixels[8:, 24:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(pixels).save(buffer, kind, exif=exif, **options)
    tagged = Image.fromarray(pixels)
    tagged.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(tagged)).astype(int)
    assert np.abs(decode(buffer.getvalue()).astype(int) - expected).max() <= 4
    info = examine(buffer.getvalue())
    assert (info.height, info.width, info.orientation) == (*expected.shape[:2], orientation)


def test_a_georeferenced_raster_is_not_turned():
    values = RNG.integers(0, 255, (3, 20, 30)).astype(np.uint8)
    for georeferenced, orientation in ((True, 1), (False, 6)):
        data = with_orientation(raster_file(values, photometric="RGB", georeferenced=georeferenced), 6)
        np.testing.assert_array_equal(decode(data), turn(np.moveaxis(values, 0, -1), orientation))


# ------------------------------------------------------------------------------------- kinds of pixels
@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_pixels_become_their_amplitude(dtype):
    values = (RNG.integers(-900, 900, (1, 30, 40)) + 1j * RNG.integers(-900, 900, (1, 30, 40))).astype(np.complex64)
    amplitude = np.abs(values[0])
    _assert_close(
        decode(raster_file(values, dtype=dtype))[..., 0], _scaled(amplitude, *np.percentile(amplitude, (2, 98)))
    )


def test_palettes_few_bits_and_inverted_bands():
    indices = (np.arange(600) % 3).astype(np.uint8).reshape(1, 20, 30)
    palette = {0: (9, 8, 7, 255), 1: (200, 100, 50, 255), 2: (255, 0, 0, 0)}
    expected = np.array([(9, 8, 7), (200, 100, 50), (0, 0, 0)], np.uint8)[indices[0]]
    # TIFF palettes have no alpha; the third colour is then visible
    visible = decode(raster_file(indices, palette=palette, photometric="palette"))
    np.testing.assert_array_equal(visible[indices[0] < 2], expected[indices[0] < 2])
    without = decode(raster_file(indices, palette=palette, photometric="palette", nodata=2))
    np.testing.assert_array_equal(without, expected)
    for bits in (1, 2, 4):
        top = (1 << bits) - 1
        few = (np.arange(600) % (top + 1)).astype(np.uint8).reshape(1, 20, 30)
        np.testing.assert_array_equal(decode(raster_file(few, NBITS=bits))[..., 0], few[0] * (255 // top))
    grey = RNG.integers(0, 255, (1, 20, 30)).astype(np.uint8)
    np.testing.assert_array_equal(decode(raster_file(grey, photometric="MINISWHITE"))[..., 0], 255 - grey[0])
    deep = RNG.integers(0, 65535, (1, 20, 30)).astype(np.uint16)
    inverted = decode(raster_file(deep, photometric="MINISWHITE"))
    np.testing.assert_array_equal(inverted, decode(raster_file(65535 - deep)))


def test_a_scale_in_the_file_is_applied():
    stored = RNG.integers(0, 3000, (1, 30, 40)).astype(np.int16)
    kelvin = stored[0] * 0.01 + 273.15
    data = raster_file(stored, scale=(0.01, 273.15))
    got = decode_picture(data, StretchPolicy.parse("range: [280, 300]"))
    _assert_close(got.pixels[..., 0], _scaled(kelvin, 280, 300))
    assert Stretch.from_text(got.stretch).rule() == "280 to 300 of band 1"


@pytest.mark.parametrize(
    ("driver", "dtype"),
    [("JP2OpenJPEG", np.uint8), *((name, np.uint16) for name in ("JP2OpenJPEG", "HFA", "NITF", "PNG", "PNM"))],
)
@pytest.mark.parametrize("bands", [1, 3])
def test_other_formats(driver, dtype, bands):
    values = RNG.integers(0, 200 if dtype == np.uint8 else 60000, (bands, 40, 48)).astype(dtype)
    options = {"QUALITY": "100", "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    data = raster_file(values, driver=driver, georeferenced=False, **options)
    got, reference = decode(data), decode(raster_file(values, photometric="RGB" if bands == 3 else "MINISBLACK"))
    np.testing.assert_array_equal(got, reference)


@pytest.mark.parametrize("bands", [2, 4])
def test_png_files_of_16_bits_with_alpha(bands):
    values = RNG.integers(1, 60000, (bands, 20, 24)).astype(np.uint16)
    values[-1] = 65535
    values[-1, :4] = 0
    got = decode(raster_file(values, driver="PNG", georeferenced=False))
    assert not got[:4].any()
    for i in range(3):
        plane = values[i if bands == 4 else 0]
        _assert_close(got[4:, :, i], _scaled(plane[4:], *np.percentile(plane[4:], (2, 98))))


# ------------------------------------------------------------------------------------- policies
def test_decibels_fixed_ranges_and_speckle():
    intensity = RNG.gamma(1.0, 0.05, (1, 64, 64)).astype(np.float32)
    intensity[0, 0, 0] = 0  # minus infinity in decibels
    decibels = 10 * np.log10(np.maximum(intensity[0], 1e-30, dtype=np.float64))
    data = raster_file(intensity)
    got = decode_picture(data, StretchPolicy.parse("{values: intensity, range: [-25, 0]}"))
    _assert_close(got.pixels[..., 0], np.where(intensity[0] > 0, _scaled(decibels, -25, 0), 0))
    amplitude = raster_file(np.sqrt(intensity))
    same = decode_picture(amplitude, StretchPolicy.parse("{values: amplitude, range: [-25, 0]}")).pixels
    _assert_close(same.astype(int), got.pixels * 1.0)
    stored = decode_picture(raster_file(decibels[None]), StretchPolicy.parse("{values: db, range: [-25, 0]}")).pixels
    _assert_close(stored[1:].astype(int), got.pixels[1:] * 1.0)
    fitted = Stretch.from_text(decode_picture(data, StretchPolicy.parse("values: intensity")).stretch)
    np.testing.assert_allclose(fitted.low + fitted.high, np.percentile(decibels.ravel()[1:], (2, 98)), atol=1e-3)
    assert fitted.rule() == "percentiles 2 to 98 dB from intensity of band 1"
    # A filter lowers the variance of speckle, keeps its mean and a step between two regions, and is off by default.
    step = intensity * np.where(np.arange(64) < 32, 1, 20).astype(np.float32)
    policy = "{values: as_stored, range: [0, 4], speckle: lee}"
    smooth = decode_picture(raster_file(step), StretchPolicy.parse(policy)).pixels[..., 0].astype(float)
    rough = decode_picture(raster_file(step), StretchPolicy.parse("range: [0, 4]")).pixels[..., 0].astype(float)
    for part in (np.s_[:, :28], np.s_[:, 36:]):
        assert smooth[part].std() < 0.7 * rough[part].std()
        assert abs(smooth[part].mean() - rough[part].mean()) < 6


def test_pictures_of_8_bits_take_a_policy_as_well():
    pixels = RNG.integers(90, 120, (20, 30, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    assert decode_picture(data).stretch == ""
    got = decode_picture(data, StretchPolicy.parse("{percentiles: [0, 100], bands: green}"))
    green = pixels[..., 1]
    _assert_close(got.pixels[..., 0], _scaled(green, green.min(), green.max()))
    np.testing.assert_array_equal(decode(data, got.stretch), got.pixels)
    chosen = decode_picture(data, StretchPolicy.parse("bands: [3, 2, 1]"))
    np.testing.assert_array_equal(chosen.pixels, pixels[..., ::-1])
    assert Stretch.from_text(chosen.stretch).rule() == "8 bits as stored of bands 3, 2, 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{range: [1, 0]}", "the first one less than the second"), ("{percentiles: [-1, 98]}", "from 0 to 100"),
        ("{range: [0, 1], percentiles: [2, 98]}", "got both"), ("{bands: [1, 2]}", "one band, or three"),
        ("{values: power}", "power"), ("{stretch: 1}", "expected a mapping"), ("nothing", "expected a mapping"),
        ("{bands: [1", "YAML"), ("{nodata: none}", "could not convert"),
        ("{range: [-.inf, 1]}", "finite"), ("{nodata: 1" + "0" * 400 + "}", "too large"),
    ],
)  # fmt: skip
def test_policies_are_checked(text, message):
    with pytest.raises(EarthGPTError, match=message):
        StretchPolicy.parse(text)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "1", '{"low": [1]}', '{"bands": [1], "low": [1, 2], "high": [3, 4]}', '{"x": 1}', '{"low": "a"}'],
)
def test_texts_of_no_stretch_are_refused(text):
    with pytest.raises(EarthGPTError, match="stretch: expected"):
        Stretch.from_text(text)


@given(st.integers(1, 3), st.sampled_from(["uint16", "int16", "int8", "float32"]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_percentiles_are_those_of_numpy_and_the_text_of_a_stretch_restores_it(count, dtype, seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(1, 23, 31)) * rng.integers(1, 100)).astype(dtype)
    pair = sorted(rng.uniform(0, 100, 2).round(1))
    policy = (
        StretchPolicy(percentiles=(pair[0], pair[1]), zero_border="include") if pair[0] < pair[1] else StretchPolicy()
    )
    bands = read_bands(raster_file(values), policy)
    from earthgpt_jax.raster.stretch import apply, fit

    stretch = fit(bands, policy)
    numbers = np.percentile(
        values.astype(np.float32 if dtype == "float32" else np.float64), policy.percentiles or (2, 98)
    )
    assert (stretch.low[0], stretch.high[0]) == tuple(map(float, numbers))
    assert Stretch.from_text(stretch.to_text()) == stretch
    np.testing.assert_array_equal(apply(bands, Stretch.from_text(stretch.to_text())), apply(bands, stretch))


# ------------------------------------------------------------------------------------- everything at once
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "complex64")


@given(
    dtype=st.sampled_from(TYPES), bands=st.integers(1, 4), interleave=st.sampled_from(["pixel", "band"]),
    compress=st.sampled_from(["none", "deflate", "lzw", "zstd", "packbits"]), tiled=st.booleans(),
    nodata=st.sampled_from([None, 0, 7]), masked=st.booleans(), orientation=st.integers(1, 8), big=st.booleans(),
    georeferenced=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=250, deadline=None)
def test_any_geotiff_reads_as_rasterio_reads_it(
    dtype, bands, interleave, compress, tiled, nodata, masked, orientation, big, georeferenced, seed
):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    values = (rng.integers(0, 100, (bands, height, width)) + 1j * rng.integers(0, 100, (bands, height, width))).astype(
        dtype if dtype == "complex64" else "complex64"
    )
    values = values if dtype == "complex64" else values.real.astype(dtype)
    colours = ((C.gray,), (C.gray, C.alpha), (C.red, C.green, C.blue), (C.blue, C.green, C.red, C.alpha))[bands - 1]
    has_alpha = C.alpha in colours
    data = raster_file(
        values, colours=colours, photometric="MINISBLACK", interleave=interleave, compress=compress, tiled=tiled,
        nodata=nodata, mask=rng.random((height, width)) < 0.9 if masked and not has_alpha and nodata is None else None,
        BIGTIFF="YES" if big else "NO", georeferenced=georeferenced,
        **({"blockxsize": 16, "blockysize": 16} if tiled else {}),
    )  # fmt: skip
    if not big:
        data = with_orientation(data, orientation)
    turned = 1 if georeferenced or big else orientation
    with MemoryFile(data) as file, file.open() as raster:
        order = [1] if bands < 3 else [1, 2, 3] if bands == 3 else [3, 2, 1]
        planes, masks = raster.read(order), raster.read_masks(order) != 0
        if has_alpha and nodata is not None:
            masks &= raster.read(colours.index(C.alpha) + 1) != 0
    planes = np.abs(planes) if dtype == "complex64" else planes
    found = read_bands(data)
    np.testing.assert_array_equal(found.values, np.stack([turn(plane, turned) for plane in planes]))
    valid = np.ones(found.values.shape, bool) if found.valid is None else found.valid
    np.testing.assert_array_equal(valid, np.stack([turn(mask, turned) for mask in masks]))
    got = decode_picture(data, StretchPolicy.parse("zero_border: include"))
    for i in range(3):
        plane, known = (turn(array[i % len(order)], turned) for array in (planes, masks))
        if dtype == "uint8":
            expected = np.where(known, plane, 0) * 1.0
        else:
            low, high = np.percentile(plane[known].astype(float), (2, 98)) if known.any() else (0, 0)
            expected = np.where(known, _scaled(plane, low, high), 0) if high > low else np.zeros(plane.shape)
        _assert_close(got.pixels[..., i], expected)


NAN = float("nan")
LOWEST = float(np.float32(-3.4e38))
BYTES = RNG.integers(0, 255, (4, 24, 32)).astype(np.uint8)
BYTES[:, :4] = 0
RGB = (C.red, C.green, C.blue)
# Files like those of rasterio's `tests/data`, whose names they have.
LIKE_RASTERIO = {
    "RGB.byte.tif": {"values": BYTES[:3], "photometric": "RGB", "nodata": 0},
    "RGB2.byte.tif": {"values": BYTES[:3], "photometric": "RGB"},
    "RGBA.byte.tif": {"values": BYTES, "photometric": "RGB", "colours": (*RGB, C.alpha)},
    "RGBA.uint16.tif": {"values": BYTES.astype(np.uint16) * 99, "colours": (*RGB[::-1], C.alpha), "photometric": "RGB"},
    "all-nodata.tif": {"values": np.zeros((4, 24, 32), np.uint16), "nodata": 0, "compress": "lzw", "predictor": 2,
                       "interleave": "band", "colours": (*RGB[::-1], C.undefined),
                       "names": ("blue", "green", "red", "nir")},
    "alpha.tif": {"values": BYTES, "colours": (*RGB, C.alpha), "photometric": "RGB", "compress": "jpeg"},
    "byte.tif": {"values": BYTES[:1]},
    "cogeo.tif": {"values": BYTES[:3], "photometric": "YCbCr", "compress": "jpeg", "tiled": True, "blockxsize": 16,
                  "blockysize": 16, "mask": BYTES[0] > 40},
    "float.tif": {"values": RNG.normal(size=(1, 2, 3)), "georeferenced": False},
    "float32.tif": {"values": RNG.normal(size=(1, 2, 3)).astype(np.float32), "georeferenced": False},
    "float_nan.tif": {"values": np.array([[[NAN, 1.4, -2.0], [0.0, 1.0, NAN]]], np.float32), "nodata": NAN},
    "float_raster_with_nodata.tif": {"values": np.where(BYTES[:1] > 99, BYTES[:1], LOWEST).astype(np.float32),
                                     "nodata": LOWEST},
    "goes.tif": {"values": BYTES[:3], "driver": "COG", "compress": "jpeg", "mask": BYTES[0] > 40, "blocksize": 128},
    "red.tif": {"values": BYTES[:3], "photometric": "RGB", "nodata": 0},
    "rgb_deflate.tif": {"values": BYTES[:3], "photometric": "RGB", "nodata": 0, "compress": "deflate",
                        "interleave": "band"},
    "rgb_lzw.tif": {"values": BYTES[:3], "photometric": "RGB", "nodata": 0, "compress": "lzw"},
    "rotated.tif": {"values": BYTES[:1], "compress": "packbits", "transform": rasterio.Affine(1, 2, 3, 2, -1, 4)},
    "shade.tif": {"values": BYTES[:1], "nodata": 255},
    "test_esri_wkt.tif": {"values": np.array([[[1, 2], [3, 4]]], np.uint16)},
    "world.byte.tif": {"values": BYTES[:1], "compress": "lzw"},
}  # fmt: skip


@pytest.mark.parametrize("name", LIKE_RASTERIO)
def test_files_like_those_of_rasterio_read_as_rasterio_reads_them(name):
    data = raster_file(**LIKE_RASTERIO[name])
    with MemoryFile(data) as file, file.open() as raster:
        numbers = {colour: i for i, colour in enumerate(raster.colorinterp, 1)}
        order = [numbers[colour] for colour in RGB] if C.red in numbers else [1]
        values, masks = raster.read(order), raster.read_masks(order) != 0
    found = read_bands(data)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(np.ones(values.shape, bool) if found.valid is None else found.valid, masks)
    got = decode(data)
    assert not got[~masks.any(axis=0)].any()
    if values.dtype == np.uint8:
        shown = np.where(masks, values, 0)
        np.testing.assert_array_equal(got, np.moveaxis(np.broadcast_to(shown, (3, *shown.shape[1:])), 0, -1))


def test_a_corrupt_tile_is_refused():
    data = bytearray(raster_file(**LIKE_RASTERIO["cogeo.tif"]))
    at = data.find(b"\xff\xda")  # the scan of the first tile
    data[at - 40 : at + 40] = bytes(80)
    with pytest.raises(EarthGPTError, match="cannot be decoded: image, band 1"):
        decode(bytes(data))


# ------------------------------------------------------------------------------------- refusals and safety
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<VRTDataset rasterXSize='9'/>", "format VRT"), (b"\x89HDF\r\n\x1a\n" + b"x" * 99, "HDF5"),
        (b"CDF\x01" + b"x" * 99, "netCDF"), (b"PK\3\4" + b"x" * 99, "ZIP"), (b"II*\0" + b"x" * 99, "cannot be decoded"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + b"x" * 99, "cannot be decoded"), (b"", "not a format"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(data, message):
    for _ in range(2):  # the same message in every run
        with pytest.raises(EarthGPTError, match=message) as caught:
            decode(data)
        assert "\n" not in str(caught.value) and "vsimem" not in str(caught.value)
    with pytest.raises(EarthGPTError) as again:
        decode(data)
    assert str(again.value) == str(caught.value)


def test_a_truncated_raster_is_refused():
    data = raster_file(RNG.integers(0, 60000, (3, 100, 100)).astype(np.uint16), photometric="RGB")
    for length in (len(data) // 2, len(data) - 700):
        with pytest.raises(EarthGPTError, match="cannot be decoded"):
            decode(data[:length])


def test_a_raster_larger_than_pillow_opens_is_refused_before_it_is_read(monkeypatch):
    data = raster_file(np.zeros((1, 30, 30), np.uint16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(EarthGPTError, match=r"30 x 30 pixels .* cut it into tiles"):
        decode(data)


def test_threads_read_rasters_without_warnings():
    data = raster_file(RNG.integers(0, 60000, (3, 64, 64)).astype(np.uint16), photometric="RGB", georeferenced=False)
    expected, results = decode(data), []

    def work() -> None:
        results.extend(bool((decode(data) == expected).all()) for _ in range(20))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 80


def test_pictures_are_decoded_without_rasterio(tmp_path: Path):
    for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP"):
        Image.fromarray(RNG.integers(0, 255, (9, 9, 3)).astype(np.uint8)).save(tmp_path / f"x.{kind}", kind)
    script = (
        "import sys; from pathlib import Path; from earthgpt_jax.raster.decode import examine\n"
        f"for path in Path({str(tmp_path)!r}).iterdir(): examine(path.read_bytes())\n"
        "assert 'rasterio' not in sys.modules and 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
