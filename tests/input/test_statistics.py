"""`earthgpt data stats`: the statistics in text, JSON and page agree; the report of --packing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.boxes import rect_to_polygon, rotated_to_polygon
from earthgpt_jax.cli.main import main
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.input.packing.efficiency import padded_lengths
from earthgpt_jax.input.statistics import DatasetStatistics, compute_statistics
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import Object, Record, Sensor, Task, Turn
from tests.support import nano

TOKENIZER = assets_path("tiny", "tokenizer.model")


def _record(name: str, *tasks: Task, sensor: Sensor = Sensor.SAR, **truth) -> Record:
    source, split, _ = name.split("/")
    values = {"image": b"x", "height": 60, "width": 80, **truth}
    return Record(id=name, sensor=sensor, source=source, split=split, tasks=tasks, **values)


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    """Boxes of 20 x 10, 32 x 32 and 96 x 96 px and a tilted one of 200 x 50; two questions; two captions."""
    rectangles = [rect_to_polygon(0, 0, w, h) for w, h in ((20, 10), (32, 32), (96, 96))]
    tilted = rotated_to_polygon(cx=300, cy=300, w=200, h=50, angle=0.7)
    ships = [Object(label="ship", polygon=polygon) for polygon in (*rectangles, tilted)]
    size = {"height": 600, "width": 600}
    boxes = [_record("a/train/1", Task.HBB, objects=tuple(ships), **size), _record("a/train/2", Task.HBB, **size)]
    turns = (
        Turn(question="How many ships?", answer="3", question_type="count"),
        Turn(question="Is it a port?", answer="yes"),
    )
    texts = [_record("b/test/1", Task.VQA, sensor=Sensor.OPTICAL, turns=turns)]
    captions = [_record("b/val/1", Task.CAPTION, image=b"", references=("a port with ships .", "ships ."))]
    native = {"object": {"native": 7, "kept": 4, "quarantined": 2, "dropped": 1}}
    write_dataset(
        {"train": boxes}, out=tmp_path / "a", name="a", manifest={"native": native, "dropped": {"class dot: rule": 1}}
    )
    write_dataset({"test": texts, "val": captions}, out=tmp_path / "b", name="b")
    return tmp_path


def _measured(datasets: Path) -> dict[str, DatasetStatistics]:
    found = compute_statistics([datasets / "a", datasets / "b"], tokenizer=Tokenizer(TOKENIZER))
    return {each.name: each for each in found}


def test_boxes_are_measured_at_any_orientation(datasets: Path) -> None:
    found = _measured(datasets)["a"]
    assert found.coco == {"small": 1, "medium": 1, "large": 2}
    side, aspect, objects, longer = found.distributions
    assert (side.count, aspect.count, objects.count, longer.count) == (4, 4, 2, 2)
    np.testing.assert_allclose([side.quantiles["min"], side.quantiles["max"]], [200**0.5, 100], rtol=1e-5)
    np.testing.assert_allclose([aspect.quantiles["min"], aspect.quantiles["max"]], [1, 4], rtol=1e-5)
    assert (objects.quantiles["min"], objects.quantiles["mean"], objects.quantiles["max"]) == (0, 2, 4)
    assert dict(zip(side.edges, side.counts, strict=True)) == {
        12: 1, 16: 0, 24: 0, 32: 1, 48: 0, 64: 0, 96: 2
    }  # fmt: skip


def test_texts_are_counted_in_tokens_by_task(datasets: Path) -> None:
    found, tokenizer = _measured(datasets)["b"], Tokenizer(TOKENIZER)
    assert set(found.texts) == {"caption", "vqa", "vqa: count"}
    question, answer = found.texts["vqa: count"]
    assert (question.count, answer.quantiles["max"]) == (1, len(tokenizer.encode("3")))
    assert question.quantiles["max"] >= len(tokenizer.encode("How many ships?"))
    question, answer = found.texts["caption"]
    assert (question.count, answer.count) == (1, 2)
    lengths = [len(tokenizer.encode(text)) for text in ("ships .", "a port with ships .")]
    assert [answer.quantiles["min"], answer.quantiles["max"]] == lengths
    assert found.distributions[0].count == 0
    assert found.distributions[3].count == 1  # not the one without an image


def test_several_datasets_together(datasets: Path) -> None:
    found = _measured(datasets)
    together = found["all together"]
    assert together.splits == ("train", "test", "val")
    assert together.counts["sensor"] == {"optical": {"test": 1}, "sar": {"train": 2, "val": 1}}
    assert together.counts["total"]["records"] == {"train": 2, "test": 1, "val": 1}
    assert (together.coco, together.texts) == (found["a"].coco, {**found["a"].texts, **found["b"].texts})
    assert together.native == {}


def test_text_json_and_page_agree(datasets: Path, tmp_path: Path, capsys) -> None:
    files = {name: tmp_path / f"stats.{name}" for name in ("json", "html")}
    words = ["data", "stats", str(datasets), "--json", str(files["json"]), "--html", str(files["html"])]
    assert main(words) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["objects", "7", "4", "2", "1"] in printed
    assert ["large", "2", "50.0", "%"] in printed
    assert ["class", "dot:", "rule", "1"] in printed
    read = json.loads(files["json"].read_text())
    assert [each["name"] for each in read] == ["a", "b", "all together"]
    assert read[0]["coco"] == {"small": 1, "medium": 1, "large": 2}
    text = files["html"].read_text()
    assert "<td>large</td><td>2</td><td>50.0 %</td>" in text
    assert "embedded tokenizer (1024 pieces)" in text
    assert not re.search(r'(src|href)="(?!data:|#)|<script', text)
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"[^>]*><title>from 96: 2', text)]
    assert heights
    assert max(heights) == 150  # the fullest bar is as high as the plot
    assert main(["data", "stats", str(datasets / "b"), "--tokenizer", str(TOKENIZER)]) == 0
    assert "all together" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--html", "no/where.html"], "--html no/where.html: expected the name of a file"),
        (["--json", "."], "--json .: expected the name of a file"),
        (["--tokenizer", "none.model"], "expected a SentencePiece model file"),
    ],
)
def test_user_errors_are_explained(datasets: Path, tmp_path: Path, monkeypatch, capsys, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "stats", str(datasets), *words]) == 2
    assert message in capsys.readouterr().err


def _stats(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["data", "stats", *map(str, words)])
    return status, *capsys.readouterr()


def test_packing_is_compared_with_padding(tmp_path: Path, capsys) -> None:
    nano.dataset(tmp_path / "synthetic", train=40, test=0)
    words = (tmp_path, "--packing", "--seq-len", 1280, "--max-images", 9, "--workers", 1)
    status, text, _ = _stats(capsys, *words)
    assert status == 0
    assert "The packing schedule compared with padding" in text
    rows = {line[4:].split("  ")[0]: line.split() for line in text.splitlines()}
    fixed, batch, buckets, packed = (
        rows[name] for name in ("padded to T", "padded to the longest of 16", "8 length buckets", "packed")
    )
    samples = float(fixed[-5])
    # Means over the epochs of a cycle, with one decimal.
    assert float(fixed[-4]) == pytest.approx(1280 * samples, abs=64)
    assert float(packed[-4]) == pytest.approx(1280 * float(packed[-5]), abs=64)
    assert float(fixed[-3]) < float(batch[-3]) <= float(buckets[-3]) < float(packed[-3]) <= 1
    lines = text.split("images per packed sequence")[1].split("samples: one image")[0].splitlines()
    counts = [(int(row[0]), float(row[1])) for row in map(str.split, lines) if len(row) == 4]
    rounding = 0.05 * sum(images for images, _ in counts)  # numbers of sequences have one decimal
    assert sum(images * sequences for images, sequences in counts) == pytest.approx(samples, abs=rounding)
    assert _stats(capsys, *words)[1] == text  # from the cached lengths
    (tmp_path / "m.yaml").write_text("rule: explicit\nweights: {synthetic: 0.5}\nsensors: {sar: 4.0}\n")
    text = _stats(capsys, *words, "--mixture", tmp_path / "m.yaml")[1]
    sources = {line.split()[0]: line.split() for line in text.split("  sources\n")[1].splitlines() if line.strip()}
    assert sources["synthetic/sar"][2:4] == ["2", "2"] and sources["synthetic/infrared"][2:4] == ["0.5", "0.5"]


def test_padding_by_hand() -> None:
    tokens = np.array([10, 30, 79, 80])
    fixed, batch, buckets = padded_lengths(tokens, seq_len=80, batch_size=4).values()
    assert (fixed.tolist(), batch.tolist(), buckets.tolist()) == ([80] * 4, [80] * 4, [10, 30, 80, 80])
    single = padded_lengths(tokens, seq_len=80, batch_size=1)["padded to the longest of 1"]
    assert sorted(single.tolist()) == tokens.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--workers applies to --packing only"),
        (["--mixture", "mmrs"], "--mixture applies to --packing only"),
        (["--packing", "--mixture", "mrs"], "did you mean 'mmrs'"),
        (["--packing", "--json", "x.json"], "--json and --html do not apply to --packing"),
        (["--packing", "--max-images", "0"], "--max-images: expected at least 1"),
        (["--packing", "--seq-len", "20"], "data.seq_len: expected space for"),
        (["--plan"], "unknown option --plan; did you mean '--packing'?"),
        (["--packing", "--tokens-per-row", "20"], "did you mean '--seq-len'?"),
        (["--packing", "--config", "tiny:instruct"], "expected a dataset with images"),
    ],
)
def test_user_errors_of_packing_are_explained(tmp_path: Path, capsys, words, message) -> None:
    write_dataset({"val": [_record("b/val/1", Task.CAPTION, references=("ships .",))]}, out=tmp_path / "b", name="b")
    status, _, wrong = _stats(capsys, tmp_path, *words)
    assert status == 2 and message in wrong
