"""`earthgpt data preview`: the page, the sheet, and the records that they show."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from earthgpt_jax.boxes import rect_to_polygon, rotated_to_polygon
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.config import Config, load
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.inspect.selection import RecordFilter, select_records
from earthgpt_jax.input.preview import model_views, render_page
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.input.transcript import decode_transcript
from earthgpt_jax.records import Object, Record, Sensor, Task, Turn
from tests.support.in_memory import packed_sequences

TILTED = rotated_to_polygon(cx=40, cy=30, w=30, h=10, angle=0.5)


def _png(width: int = 80, height: int = 60) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _record(name: str, *tasks: Task, split: str = "train", sensor: Sensor = Sensor.SAR, **truth) -> Record:
    values = {"image": _png(), "height": 60, "width": 80, **truth}
    return Record(id=f"d/{split}/{name}", sensor=sensor, source="d", split=split, tasks=tasks, **values)


def _ships() -> Record:
    objects = (
        Object(label="ship", polygon=TILTED, phrase="the only ship"),
        Object(label="harbor", polygon=rect_to_polygon(0, 0, 20, 12), difficult=True),
        Object(label="bridge", polygon=rect_to_polygon(60, 40, 80, 60), visible=0.45),
    )
    return _record("ships", Task.HBB, Task.OBB, Task.GROUNDING, objects=objects)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(assets_path("tiny", "tokenizer.model"))


def _config(weights: dict, **changes) -> Config:
    data = {"seq_len": 400, "decimals": 2, "chat_template": "plain", "task_weights": weights, **changes}
    model = ["model.image_size=32", "model.vit.image_size=32"]  # five visual tokens
    overrides = [*model, *(f"data.{name}={value}" for name, value in data.items())]
    return load("tiny:instruct", [f"--config.{override}" for override in overrides])


def _page(record: Record, tokenizer: Tokenizer, weights: dict | None = None, **changes) -> str:
    config = _config(weights or {task.value: 1.0 for task in Task}, **changes)
    return render_page([record], title="t", recipe="r", config=config, tokenizer=tokenizer)


def test_a_transcript_is_the_dialogue(tokenizer: Tokenizer) -> None:
    turns = (Turn(question="How many ships are there?", answer="3"), Turn(question="Is it a port?", answer="yes"))
    for name, end in (("plain", "\n###"), ("v1", "\n###"), ("plain_eos", "")):
        record = _record("q", Task.VQA, turns=turns)
        batch = packed_sequences([record], tokenizer, weights={"vqa": 1.0}, chat=name, visual_tokens=5)[0]
        read = decode_transcript(batch, 0, tokenizer=tokenizer)
        template = chat_template(name)
        assert read.shared == template.prefix
        assert read.visual == 5
        assert read.tokens == int((batch.segments[0] > 0).sum())
        texts = {"".join(span.text for span in spans) for spans in read.questions}
        assert len(texts) == 2
        assert {text.partition("Assistant: ")[2] for text in texts} == {f"3{end}", f"yes{end}"}
        for spans in read.questions:
            assert [span.supervised for span in spans] == [False, True]
            assert spans[0].text.endswith("Assistant:")
            assert spans[1].text in (f" 3{end}", f" yes{end}")


def test_boxes_in_json_are_drawn_where_those_in_mmrs_format_are(tokenizer: Tokenizer) -> None:
    drawn = []
    for share in (0.0, 1.0):
        page = _page(_ships(), tokenizer, {"hbb": 1.0}, json_share=share, seq_len=900)
        assert ("JSON" in page) == bool(share)
        shapes = re.findall(r'<polygon [^>]*points="([^"]+)"', page)
        drawn.append(sorted([float(n) for n in re.split("[ ,]", shape)] for shape in shapes))
    assert len(drawn[0]) == len(drawn[1]) == 18  # three objects, horizontal, oriented and in the square, with outlines
    np.testing.assert_allclose(*drawn, atol=1.5)


def test_horizontal_and_oriented_boxes_difficult_and_cut_ones(tokenizer: Tokenizer) -> None:
    text = _page(_ships(), tokenizer)
    tilted = " ".join(f"{x:.1f},{y:.1f}" for x, y in TILTED.reshape(4, 2))
    assert text.count(f'points="{tilted}" stroke=') == 1
    x0, y0, x1, y1 = TILTED[0::2].min(), TILTED[1::2].min(), TILTED[0::2].max(), TILTED[1::2].max()
    horizontal = f"{x0:.1f},{y0:.1f} {x1:.1f},{y0:.1f} {x1:.1f},{y1:.1f} {x0:.1f},{y1:.1f}"
    assert text.count(f'points="{horizontal}" stroke=') == 1
    assert text.count('<polygon class="difficult"') == text.count('<polygon class="cut"') == 2
    assert "harbor, difficult" in text
    assert "bridge, cut: 45% visible" in text
    assert "1 difficult; 1 cut" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text


def test_the_square_shows_the_boxes_of_the_answers(tokenizer: Tokenizer) -> None:
    """Pixel 60, 40 of 80x60 is at (0.75, 0.625) of the padded square: at (24, 20) of its 32 pixels."""
    config = _config({"hbb": 1.0}, decimals=3)
    view = model_views([_ships()], config=config, tokenizer=tokenizer, annotated={})["d/train/ships"]
    assert (view.square.width, view.square.height, view.visual) == (32, 32, 5)
    bridge = next(box for box in view.square.boxes if box.title == "bridge")
    assert bridge.points == "24.0,20.0 32.0,20.0 32.0,28.0 24.0,28.0"
    assert len(view.questions) == 1
    assert view.questions[0].boxes == len(view.square.boxes)


def test_questions_that_do_not_fit_and_records_without_questions(tokenizer: Tokenizer) -> None:
    narrow = _page(_ships(), tokenizer, weights={"hbb": 1.0}, seq_len=22)
    assert "1 longer than a sequence, never asked" in narrow
    assert "No question fits into a sequence." in narrow
    assert "The recipe r asks nothing about it." in _page(_ships(), tokenizer, weights={"vqa": 1.0})
    no_image = _page(_record("a", Task.HBB, image=b"", height=0, width=0, objects=_ships().objects), tokenizer)
    assert "No image ships" in no_image
    assert "horizontal boxes; no image ships" in no_image
    turns = (Turn(question="Is it flooded?", answer="yes"),)
    texts_only = _page(_record("a", Task.VQA, image=b"", height=0, width=0, turns=turns), tokenizer)
    assert "Is it flooded? → yes" in texts_only
    assert "<svg" not in texts_only


def test_texts_of_datasets_are_escaped(tokenizer: Tokenizer) -> None:
    odd = _record("<b>&", Task.CAPTION, references=("<script>alert(1)</script>",))
    text = _page(odd, tokenizer)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    def numbered(split: str, count: int, label: str) -> list[Record]:
        return [_record(str(i), Task.CLASSIFICATION, split=split, label=label, image=_png()) for i in range(count)]

    write_dataset(
        {"train": numbered("train", 30, "sea"), "test": numbered("test", 3, "port")}, out=tmp_path / "a", name="a"
    )
    write_dataset({"train": [_ships()]}, out=tmp_path / "b", name="b")
    return tmp_path


def test_records_are_chosen_by_seed_spread_over_datasets_and_filtered(datasets: Path) -> None:
    folders = [datasets / "a", datasets / "b"]

    def ids(**wanted) -> list[str]:
        count, seed = wanted.pop("count", 9), wanted.pop("seed", 0)
        return [record.id for record in select_records(folders, count=count, seed=seed, wanted=RecordFilter(**wanted))]

    assert ids() == ids() != ids(seed=1)
    assert [sum(name.startswith(p) for name in ids()) for p in ("d/train/", "d/test/")] == [6, 3]
    assert ids()[-1] == "d/train/ships"
    assert len(ids(count=100)) == 34
    assert ids(split="test") == ["d/test/0", "d/test/1", "d/test/2"]
    assert ids(label="harbor") == ids(task=Task.OBB) == ["d/train/ships"]
    assert len(ids(label="sea", count=4)) == 4
    with pytest.raises(EarthGPTError, match=r"records with split val; there are splits test, train; sensors sar"):
        ids(split="val")
    with pytest.raises(EarthGPTError, match=r"split test, label sea; .*labels bridge, harbor, port, sea, ship"):
        ids(split="test", label="sea")


def test_the_command(datasets: Path, tmp_path: Path, capsys) -> None:
    def run(*words: object) -> int:
        return main(["data", "preview", str(datasets), *map(str, words)])

    assert run("--out", tmp_path / "look.html", "--count", 2) == 0
    text = (tmp_path / "look.html").read_text()
    assert text.count('<section class="record">') == 2
    config = load("tiny:instruct")
    assert f"of {config.data.seq_len} tokens, {config.model.visual_tokens} of them visual" in text
    assert run("--out", tmp_path / "folder", "--label", "ship", "--config", "tiny:align") == 0
    assert "the recipe tiny:align" in (tmp_path / "folder" / "index.html").read_text()
    assert run("--out", tmp_path / "sheet.png", "--task", "obb") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (400, 492)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.jpg"], "expected the name of a page"),
        (["--out", "no/where/a.html"], "in an existing folder"),
        (["--out", "a.html", "--task", "boxes"], "--task boxes: expected one of classification, caption"),
        (["--out", "a.html", "--sensor", "radar"], "expected one of optical, sar, infrared"),
        (["--out", "a.html", "--split", "dev"], "there are splits test, train"),
        (["--out", "a.html", "--count", "0"], "expected at least 1, got 0"),
        (["--out", "a.html", "--config", "tinny"], "tinny"),
        (["--out", "a.html", "--tokenizer", "none.model"], "expected a SentencePiece model file"),
    ],
)
def test_user_errors_are_explained(datasets: Path, tmp_path: Path, monkeypatch, capsys, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["data", "preview", str(datasets), *words]) == 2
    wrong = capsys.readouterr().err
    assert message in wrong
    assert sorted(tmp_path.rglob("*")) == before
