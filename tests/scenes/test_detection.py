"""Detecting in scenes: every window answered once, after any interruption and by any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind, Square, count_phrase
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.inference.requests import Answer, ImageRequests
from earthgpt_jax.raster.scene_file import SceneFile
from earthgpt_jax.scenes import layers
from earthgpt_jax.scenes.detection import SceneDetector, SceneQuestion, SceneResult, WindowSizes
from earthgpt_jax.scenes.prompts import question
from earthgpt_jax.scenes.windows import grid
from earthgpt_jax.scenes.zoom import zoomed
from tests.support.oracle import Oracle, random_objects
from tests.support.rasters import raster_file

SIDE, SIZES = 700, WindowSizes(side=200, overlap=60)
WINDOWS = grid(SIDE, SIDE, size=200, overlap=60)


class OracleEngine:
    """Answers like the engine, with the truth; stops after `limit` answers."""

    image_size, batch_size = 32, 4

    def __init__(self, oracle: Oracle, *, limit: int = 10**9):
        self._oracle, self._limit = oracle, limit
        self.asked: list[str] = []

    def describe(self) -> dict[str, Any]:
        return {"model": "oracle"}

    def state_shape(self, work: Iterable[ImageRequests]) -> Any:
        return "a shape"

    def stream(self, work: Iterable[ImageRequests], *, state_shape: Any) -> Iterator[Answer]:
        assert state_shape == "a shape"
        waiting: list[ImageRequests] = []
        for item in work:
            assert item.image().shape == (32, 32, 3)
            waiting.append(item)
            if len(waiting) == 3:
                yield from self._answers(waiting)
        yield from self._answers(waiting)

    def _answers(self, waiting: list[ImageRequests]) -> Iterator[Answer]:
        while waiting:
            (request,) = waiting.pop().requests  # in another order
            if len(self.asked) == self._limit:
                raise KeyboardInterrupt
            self.asked.append(request.id)
            window = WINDOWS[int(request.id.split(":")[1])]
            square = Square(window.width, window.height)
            objects: dict[str, list[Any]] = {}
            for seen in self._oracle.look(window):
                corners = seen.polygon - (window.x, window.y)
                box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
                objects.setdefault(seen.label, []).append(square.to_fractions(box))
            text = " ".join(
                f"<p>{count_phrase(label, len(boxes))}</p>["
                + ";".join(",".join(f"{v:.4f}" for v in box) for box in boxes)
                + "]"
                for label, boxes in objects.items()
            )
            yield Answer(id=request.id, text=text, tokens=np.zeros(0), logprobs=np.zeros(0))


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(5)
    objects = random_objects(rng, 60, width=SIDE, height=SIDE, largest=50, kind=BoxKind.HBB)
    return [item for item in objects if item.polygon.max(axis=0).min() < 500]  # where the scene has data


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    values = np.full((1, SIDE, SIDE), 9, np.uint8)
    values[0, 500:, 500:] = 0  # no data: the last window and no other
    path = tmp_path / "scene.tif"
    path.write_bytes(raster_file(values, nodata=0, tiled=True, blockxsize=64, blockysize=64))
    return path


def detector(engine: Any, *, index: int = 0, count: int = 1, **options: Any) -> SceneDetector:
    process = Process(index=index, count=count)
    options = {"question": SceneQuestion(text="What is there?"), "sizes": SIZES, **options}
    return SceneDetector(engine, process=process, **options)


def polygons(result: SceneResult) -> list[tuple[str, list[float]]]:
    return [(item.label, item.polygon.tolist()) for item in result.objects]


def test_objects_are_found_once_and_windows_without_data_are_not_asked_about(truth, scene: Path):
    engine = OracleEngine(Oracle(truth))
    (result,) = detector(engine).detect([scene])
    assert len(result.windows) == len(WINDOWS) == 25 and result.answers[-1].text is None
    assert sorted(engine.asked) == sorted(f"0:{i}" for i in range(24))
    assert len(result.objects) == len(truth) > 40
    for item in truth:
        same = [found.polygon for found in result.objects if found.label == item.label]
        assert min(np.abs(polygon - item.polygon).max() for polygon in same) < 0.03  # four decimals of 200 px


def test_an_interrupted_run_continues_and_ends_the_same(truth, scene: Path, tmp_path: Path):
    whole = OracleEngine(Oracle(truth))
    (expected,) = detector(whole).detect([scene], out=tmp_path / "whole.json")
    asked: list[str] = []
    for limit in (5, 0, 7, 100):
        engine = OracleEngine(Oracle(truth), limit=limit)
        try:
            results = list(detector(engine).detect([scene], out=tmp_path / "boxes.json"))
        except KeyboardInterrupt:
            log = tmp_path / "boxes.json.windows.jsonl"
            log.write_bytes(log.read_bytes()[:-9])  # killed in the middle of a line
            asked = asked[:-1]
        asked += engine.asked
    assert polygons(results[0]) == polygons(expected)
    assert len(set(asked)) == len(whole.asked)
    engine = OracleEngine(Oracle(truth))
    (again,) = detector(engine).detect([scene], out=tmp_path / "boxes.json")
    assert not engine.asked and polygons(again) == polygons(expected)


def test_processes_share_the_windows_and_each_is_answered_once(truth, scene: Path, tmp_path: Path):
    other = scene.with_name("other.tif")
    other.write_bytes(scene.read_bytes())
    paths = [scene, other]
    whole = OracleEngine(Oracle(truth))
    expected = [polygons(result) for result in detector(whole).detect(paths)]
    engines = [OracleEngine(Oracle(truth)) for _ in range(3)]
    for index in (2, 1):
        assert not list(detector(engines[index], index=index, count=3).detect(paths, out=tmp_path / "b.gpkg"))
    found = list(detector(engines[0], count=3).detect(paths, out=tmp_path / "b.gpkg"))
    assert [polygons(result) for result in found] == expected
    shares = [engine.asked for engine in engines]
    assert sorted(itertools.chain(*shares)) == sorted(whole.asked) and all(
        abs(len(share) - 16) <= 1 for share in shares
    )


def test_answers_of_another_run_and_of_a_changed_scene_are_refused(truth, scene: Path, tmp_path: Path):
    out = tmp_path / "boxes.json"
    list(detector(OracleEngine(Oracle(truth))).detect([scene], out=out))
    with pytest.raises(EarthGPTError, match=r"another run: question was 'What is there\?', is 'Where\?'"):
        list(detector(OracleEngine(Oracle(truth)), question=SceneQuestion(text="Where?")).detect([scene], out=out))
    scene.write_bytes(raster_file(np.full((1, SIDE, SIDE), 8, np.uint8)))
    with pytest.raises(EarthGPTError, match=r"its bytes was \d+ when .*boxes.json was begun, and is"):
        list(detector(OracleEngine(Oracle(truth))).detect([scene], out=out))


def test_a_scene_that_cannot_be_read_is_reported_and_the_others_are_answered(truth, scene: Path):
    missing, errors = scene.with_name("missing.tif"), []
    results = list(detector(OracleEngine(Oracle(truth))).detect([missing, scene], on_error=errors.append))
    assert [result.path for result in results] == [scene] and "missing.tif: no such file" in str(errors[0])
    with pytest.raises(EarthGPTError, match="no such file"):
        list(detector(OracleEngine(Oracle(truth))).detect([missing, scene]))


def test_large_windows_are_read_reduced(truth, scene: Path, monkeypatch: pytest.MonkeyPatch):
    reduced = []
    read = SceneFile.read
    monkeypatch.setattr(SceneFile, "read", lambda *args, **options: reduced.append(options) or read(*args, **options))
    list(detector(OracleEngine(Oracle(truth)), sizes=WindowSizes(side=SIDE, overlap=0)).detect([scene]))
    assert reduced == [{"reduce": SIDE // 64}]


def test_a_prompt_is_a_class_or_a_question():
    assert question("hbb").text == "Please detect all objects in this image."
    asked = question("obb", prompt="Ships")
    assert asked.text == "Please detect all ships in this image with oriented bounding boxes." and asked.label == "ship"
    assert question("hbb", prompt="Where is the pier?").text == "Where is the pier?"
    with pytest.raises(EarthGPTError, match="got nothing"):
        question("hbb", prompt=" ")


@pytest.mark.parametrize("options", [{"side": 0}, {"side": 10, "overlap": 10}, {"side": 100, "largest": 99}])
def test_impossible_windows_are_refused(options: dict[str, Any]):
    with pytest.raises(EarthGPTError, match="expected"):
        WindowSizes.choose(image_size=64, **options)
    assert WindowSizes.choose(image_size=64) == WindowSizes(side=128, overlap=32)
    assert WindowSizes.choose(image_size=64, largest=20.5) == WindowSizes(side=128, overlap=24)


def test_a_zoom_looks_closely_only_where_the_coarse_look_found_something(scene: Path, tmp_path: Path):
    rng = np.random.default_rng(1)
    near = random_objects(rng, 3, width=150, height=150, largest=50, kind=BoxKind.HBB)

    class Coarse(OracleEngine):
        def _answers(self, waiting: list[ImageRequests]) -> Iterator[Answer]:
            while waiting:
                (request,) = waiting.pop(0).requests
                text = "" if self.asked else "<p>one ship</p>[0.05,0.05,0.1,0.1]"
                self.asked.append(request.id)
                yield Answer(id=request.id, text=text, tokens=np.zeros(0), logprobs=np.zeros(0))

    coarse, close = Coarse(Oracle(near)), OracleEngine(Oracle(near))
    options: dict[str, Any] = {"question": SceneQuestion(text="What is there?")}
    chosen = zoomed(coarse, [scene], factor=3, sizes=SIZES, out=tmp_path / "b.json", **options)
    assert len(coarse.asked) == 4 and (tmp_path / "b.json.zoom.windows.jsonl").exists()
    chosen._engine = close
    (result,) = chosen.detect([scene])
    assert result.windows == (WINDOWS[0],) and close.asked == ["0:0"] and chosen.header()["zoom"] == 3
    with pytest.raises(EarthGPTError, match="--zoom: expected at least 2"):
        zoomed(coarse, [scene], factor=1, sizes=SIZES, **options)


def test_a_run_whose_results_go_to_a_bucket_continues_there(truth, scene: Path, bucket: BucketPath):
    engine = OracleEngine(Oracle(truth), limit=5)
    with pytest.raises(KeyboardInterrupt):
        list(detector(engine).detect([scene], out=bucket / "boxes.gpkg"))
    rest = OracleEngine(Oracle(truth))
    (result,) = detector(rest).detect([scene], out=bucket / "boxes.gpkg")
    assert len(engine.asked) == 5 and len(rest.asked) == 19 and len(result.objects) == len(truth)
    layers.write(bucket / "boxes.gpkg", [result], provenance={})
    assert (bucket / "boxes.gpkg").read_bytes().startswith(b"SQLite format 3")
