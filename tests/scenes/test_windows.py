"""Windows over scenes, and merging, with an oracle in place of the model: it reads the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from earthgpt_jax.boxes import BoxKind, clip, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.scenes.merging import MergeRule, SceneObject, merge
from earthgpt_jax.scenes.windows import Window, grid, overlap_for, starts, with_data
from tests.support.oracle import Oracle, random_objects, shifted_grid

NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


# ------------------------------------------------------------------------------------------ windows
@given(length=st.integers(1, 5000), size=st.integers(2, 700), share=st.floats(0, 0.99))
def test_windows_cover_an_axis_with_the_overlap_and_as_few_as_possible(length: int, size: int, share: float):
    overlap = int(share * size)
    begin = starts(length, size=size, overlap=overlap)
    if length <= size:
        assert begin == [0]
        return
    assert begin[0] == 0 and begin[-1] == length - size
    assert all(0 < b - a <= size - overlap for a, b in itertools.pairwise(begin))
    assert len(begin) == -(-(length - overlap) // (size - overlap))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    valid = rng.random((height, width)) < draw(st.sampled_from([0, 0.001, 0.1, 1]))
    for _ in range(draw(st.integers(0, 3))):  # rectangles with data, as in a mosaic
        y, x = rng.integers(height), rng.integers(width)
        valid[y : y + rng.integers(1, 40), x : x + rng.integers(1, 40)] = True
    return valid


@settings(max_examples=60)
@given(valid=masks(), size=st.integers(1, 50), share=st.floats(0, 0.9))
def test_the_windows_with_data_show_every_valid_pixel_and_no_window_is_empty(
    valid: np.ndarray, size: int, share: float
):
    height, width = valid.shape
    windows = with_data(grid(width, height, size=size, overlap=int(share * size)), valid)
    seen = np.zeros_like(valid)
    for w in windows:
        part = valid[w.y : w.y + w.height, w.x : w.x + w.width]
        assert part.shape == (w.height, w.width) and part.any()
        seen[w.y : w.y + w.height, w.x : w.x + w.width] = True
    assert seen[valid].all()


def test_the_overlap_follows_from_the_largest_object():
    assert overlap_for(100, size=500) == 110
    with pytest.raises(EarthGPTError, match=r"objects of 600 pixels do not fit into windows of 500: .* at most 489"):
        overlap_for(600, size=500)


@pytest.mark.parametrize("text", ["", "1,2,3", "0,0,0,5", "-1,0,5,5", "a,b,c,d"])
def test_a_window_that_cannot_be_is_refused_in_one_line(text: str):
    with pytest.raises(EarthGPTError, match="expected X,Y,WIDTH,HEIGHT"):
        Window.parse(text)
    assert Window.parse("512, 0, 1024, 768") == Window(0, 512, 768, 1024)


# ------------------------------------------------------------------------------------------ merging
def assert_each_once_and_whole(merged: list[SceneObject], truth: list[SceneObject]) -> None:
    assert len(merged) == len(truth)
    centres = {tuple(item.polygon.mean(axis=0).round(2)): item for item in truth}
    for item in merged:
        same = centres.pop(tuple(item.polygon.mean(axis=0).round(2)))
        assert item.label == same.label and np.abs(item.polygon - same.polygon).max() < 0.01
    assert not centres


@pytest.mark.parametrize("kind", BoxKind)
@settings(max_examples=15, deadline=None, phases=NO_SHRINKING)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(160, 900), spare=st.floats(0, 0.3))
def test_each_object_is_found_once_and_whole(kind: BoxKind, seed: int, size: int, spare: float):
    check_scene(4000, kind=kind, seed=seed, size=size, spare=spare, count=150)


def check_scene(side: int, *, kind: BoxKind, seed: int, size: int, spare: float, count: int) -> None:
    """Look at a scene in windows of `size`, shifted at random; `spare` is overlap above the largest object."""
    rng = np.random.default_rng(seed)
    width, height = side, int(side * rng.uniform(0.5, 1))
    truth = random_objects(rng, count, width=width, height=height, largest=size // 4, kind=kind)
    largest = max(float(np.ptp(item.polygon, axis=0).max()) for item in truth)
    overlap = min(int(overlap_for(largest, size=size) * (1 + spare)), size - 1)
    windows = shifted_grid(rng, width, height, size=size, overlap=overlap)
    oracle = Oracle(truth)
    found = [item for window in windows for item in oracle.look(window)]
    assert len(found) > count  # some are seen several times
    assert_each_once_and_whole(merge(found, width=width, height=height), truth)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BoxKind)
@pytest.mark.parametrize(("side", "size"), [(4000, 512), (10000, 800), (20000, 1024)])
def test_each_object_of_a_large_scene_is_found_once_and_whole(kind: BoxKind, side: int, size: int):
    for seed in range(2):
        check_scene(side, kind=kind, seed=seed, size=size, spare=seed, count=side // 2)


@pytest.mark.parametrize("kind", BoxKind)
def test_an_object_that_no_window_sees_whole_is_joined(kind: BoxKind):
    polygon = (
        rect_to_polygon(30, 40, 530, 60) if kind is BoxKind.HBB
        else rotated_to_polygon(cx=280, cy=150, w=480, h=20, angle=0.3)
    )  # fmt: skip
    truth = SceneObject(label="bridge", kind=kind, polygon=np.float64(polygon).reshape(4, 2), confidence=0.5,
                        window=Window(0, 0, 0, 0))  # fmt: skip
    found = [item for window in grid(600, 300, size=200, overlap=50) for item in Oracle([truth]).look(window)]
    (joined,) = merge(found, width=600, height=300)
    assert len(found) > 3 and joined.confidence == pytest.approx(0.5)
    assert np.abs(joined.polygon - truth.polygon).max() < (0.01 if kind is BoxKind.HBB else 3)


def at(x: float, *, window: Window, confidence: float = 0.5, label: str = "car", wide: float = 20) -> SceneObject:
    return SceneObject(
        label=label, kind=BoxKind.HBB, polygon=np.float64(rect_to_polygon(x, 50, x + wide, 60)).reshape(4, 2),
        confidence=confidence, window=window,
    )  # fmt: skip


LEFT, RIGHT = Window(0, 0, 100, 100), Window(0, 50, 100, 100)


def test_the_confident_look_stands_for_an_object():
    first, second = at(60, window=LEFT, confidence=0.4), at(62, window=RIGHT, confidence=0.9)
    assert merge([first, second], width=150, height=100) == [second]


def test_a_whole_look_replaces_a_cut_one_of_higher_confidence():
    cut, whole = at(85, window=LEFT, confidence=0.9, wide=15), at(85, window=RIGHT, confidence=0.3)
    assert merge([cut, whole], width=150, height=100) == [whole]


def test_detections_of_one_window_and_of_different_classes_stay():
    same = [at(60, window=LEFT), at(61, window=LEFT)]
    assert merge(same, width=150, height=100) == same
    classes = [at(60, window=LEFT), at(60, window=RIGHT, label="truck")]
    assert merge(classes, width=150, height=100) == classes


def test_a_box_that_a_window_repeats_is_left_out():
    first, second = at(60, window=LEFT), at(60.2, window=LEFT)
    assert merge([first, second, first], width=150, height=100) == [first]
    assert len(merge([first, second], width=150, height=100, rule=MergeRule(repeat=1))) == 2


def test_looks_that_do_not_agree_stay():
    apart = [at(55, window=LEFT), at(72, window=RIGHT)]
    assert merge(apart, width=150, height=100) == apart
    assert len(merge(apart, width=150, height=100, rule=MergeRule(iou=0.05))) == 1


def test_merging_does_not_depend_on_the_order_of_the_windows():
    rng = np.random.default_rng(1)
    truth = random_objects(rng, 60, width=900, height=900, largest=60, kind=BoxKind.OBB)
    found = [item for window in grid(900, 900, size=300, overlap=80) for item in Oracle(truth).look(window)]

    def outcome(items: list[SceneObject]) -> set[bytes]:
        return {item.polygon.tobytes() for item in merge(items, width=900, height=900)}

    assert outcome(found) == outcome([found[i] for i in rng.permutation(len(found))])


def test_the_oracle_clips_as_training_tiles_are_clipped():
    item = at(90, window=LEFT)
    (seen,) = Oracle([item]).look(LEFT)
    expected, share = clip(item.polygon.reshape(8), *LEFT.bounds)
    assert share == 0.5 and np.allclose(seen.polygon.reshape(8), expected)
    assert shapely.box(*LEFT.bounds).covers(shapely.Polygon(seen.polygon))
