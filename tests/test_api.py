"""The front door: loading, answering, detecting and chatting say what the engine says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import earthgpt_jax as eg
from earthgpt_jax.boxes import Square, parse
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.convert.exporter import export_hf
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.prompts.templates import default_question
from earthgpt_jax.input.sequences import open_turn_ids, turn_ids
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource
from tests.support.rasters import raster_file

QUESTIONS = ["What is the category of this remote sensing image?", "Describe this image in one sentence."]


@pytest.fixture(scope="module")
def model() -> eg.Model:
    return eg.load("tiny", batch_size=2)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = SyntheticSource("test", 8)
    record = next(source[i] for i in range(8) if len(source[i].objects) > 1)
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    path.write_bytes(record.image)
    return path


def test_answers_are_those_of_the_engine(model: eg.Model, scene: Path) -> None:
    square = load_square(scene.read_bytes(), model.engine.image_size)
    expected = model.engine.answer([(square, question) for question in QUESTIONS], max_new_tokens=64)
    assert model.answer(scene, QUESTIONS, max_new_tokens=64) == expected
    assert all(expected)


def test_an_image_is_the_same_in_every_form(model: eg.Model, scene: Path) -> None:
    data = scene.read_bytes()
    forms = [str(scene), scene, data, Image.open(io.BytesIO(data)), decode(data)]
    assert len({model.answer(form, QUESTIONS[0], max_new_tokens=64) for form in forms}) == 1


@pytest.mark.parametrize("boxes", ["hbb", "obb"])
def test_detections_are_the_boxes_of_the_answer_in_pixels(model: eg.Model, scene: Path, boxes) -> None:
    wide = Image.new("RGB", (300, 200))
    wide.paste(Image.open(scene).resize((200, 200)), (50, 0))
    result = model.detect(wide, boxes=boxes)
    parsed = parse(result.answer)
    assert (result.width, result.height) == (300, 200) and len(result) == len(parsed.boxes) > 0
    for detection, box in zip(result, parsed.boxes, strict=True):
        expected = box.pixels(Square(300, 200)).reshape(4, 2)
        np.testing.assert_array_equal(detection.polygon, expected)
        assert detection.kind is box.kind and detection.label == box.label
        assert detection.confidence is not None and 0 < detection.confidence <= 1
        x0, y0, x1, y1 = detection.box
        assert (x0, y0, x1, y1) == (*expected.min(axis=0), *expected.max(axis=0))


def test_a_question_of_ones_own_replaces_the_default_one(model: eg.Model, scene: Path) -> None:
    default = model.detect(scene)
    assert model.detect(scene, question=default_question(Task.HBB)).answer == default.answer


def test_a_dialogue_remembers_its_turns(model: eg.Model, scene: Path) -> None:
    dialogue = model.chat(scene, max_new_tokens=32)
    first = dialogue.ask(QUESTIONS[0])
    second = dialogue.ask(QUESTIONS[1])
    assert dialogue.turns == [(QUESTIONS[0], first), (QUESTIONS[1], second)]
    assert first == model.answer(scene, QUESTIONS[0], max_new_tokens=32)

    engine = model.engine
    seen = open_turn_ids(engine.tokenizer, engine.chat_template, QUESTIONS[1], history=[(QUESTIONS[0], first)])
    earlier = turn_ids(engine.tokenizer, engine.chat_template, QUESTIONS[0], first)[0]
    assert seen == [*earlier, *open_turn_ids(engine.tokenizer, engine.chat_template, QUESTIONS[1])]
    dialogue.reset()
    assert dialogue.ask(QUESTIONS[1]) == model.answer(scene, QUESTIONS[1], max_new_tokens=32)


def test_an_exported_folder_answers_as_its_model(model: eg.Model, scene: Path, tmp_path: Path) -> None:
    export_hf("tiny", tmp_path / "exported")
    exported = eg.load(tmp_path / "exported", batch_size=2)
    assert exported.answer(scene, QUESTIONS[0], max_new_tokens=64) == model.answer(
        scene, QUESTIONS[0], max_new_tokens=64
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, scene: model.answer("missing.png", "What?"), r"image missing\.png: no such file"),
        (lambda model, scene: model.answer(scene, "  "), r"question: expected text"),
        (lambda model, scene: model.answer(scene, "What?", max_new_tokens=0), r"max_new_tokens: expected at least 1"),
        (lambda model, scene: model.answer(np.zeros((2, 3, 4), np.float32), "What?"), r"u8\[h, w, 3\].*float32"),
        (lambda model, scene: model.answer(3, "What?"), r"image: expected a path, bytes.*got int"),
        (lambda model, scene: model.detect(scene, boxes="round"), r"expected 'hbb' or 'obb', got 'round'"),
        (lambda model, scene: eg.load("tinny"), r"model 'tinny'"),
    ],
)
def test_wrong_input_is_one_clear_error(model: eg.Model, scene: Path, call, message: str) -> None:
    with pytest.raises(EarthGPTError, match=message):
        call(model, scene)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        eg.laod  # noqa: B018


def test_a_part_of_an_image_is_answered_like_the_part_alone(model: eg.Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    (tmp_path / "scene.tif").write_bytes(raster_file(np.moveaxis(pixels, -1, 0)))
    window = (20, 10, 64, 48)
    expected = model.answer(pixels[10:58, 20:84], "What is this?", max_new_tokens=4)
    for image in (tmp_path / "scene.png", tmp_path / "scene.tif", pixels):
        assert model.answer(image, "What is this?", max_new_tokens=4, window=window) == expected
        assert model.chat(image, max_new_tokens=4, window=window).ask("What is this?") == expected
        with pytest.raises(EarthGPTError, match="expected a window inside its 120 x 90 pixels"):
            model.answer(image, "What is this?", window=(100, 10, 64, 48))
    assert model.detect(pixels, window=window, max_new_tokens=4).width == 64


def test_a_scene_is_detected_in_windows_and_written(model: eg.Model, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 200, 150), np.uint8)
    (tmp_path / "scene.tif").write_bytes(raster_file(values))
    options = {"window_size": 100, "overlap": 20, "max_new_tokens": 8}
    result = model.detect_scene(tmp_path / "scene.tif", **options, out=tmp_path / "boxes.geojson")
    written = json.loads((tmp_path / "boxes.geojson").read_text())
    assert len(result.windows) == 6 and written["earthgpt"]["window_side"] == 100
    with pytest.raises(EarthGPTError, match="expected 'hbb' or 'obb'"):
        model.detect_scene(tmp_path / "scene.tif", boxes="round")  # type: ignore[arg-type]
