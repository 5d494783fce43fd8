"""Run the commands as a user types them, on a nano model: their output, and their errors for wrong input."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.io import MemoryFile

from earthgpt_jax.cli.main import main
from earthgpt_jax.evaluation import predictions_file
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano
from tests.support.rasters import raster_file


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    """Disable cluster detection, which must happen before JAX is used; in this process it has been used."""
    monkeypatch.setenv("EARTHGPT_PROCESSES", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    image = root / "scene.png"
    image.write_bytes(SyntheticSource("test", 3)[2].image)
    return {
        "root": root, "image": image, "model": nano.model_dir(root / "model", nano.config("align").model),
        "data": nano.dataset(root / "data", train=6, test=3),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(world):
    """Three images, a damaged one and a text file."""
    folder = world["root"] / "scenes"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(SyntheticSource("test", 3)[i].image)
    (folder / "damaged.png").write_bytes(b"damaged")
    (folder / "notes.txt").write_text("notes")
    return folder


def _fails(capsys, *argv: str) -> str:
    assert main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]  # after a progress bar, if there is one
    assert errors == lines[-1:], lines
    return errors[0]


def test_chat_answers_each_question(world, capsys):
    argv = ["chat", world["image"], "--model", world["model"], "--max-new-tokens", "4"]
    assert main([*map(str, argv), "--question", "One?", "--question", "Two?"]) == 0
    out = capsys.readouterr().out
    assert out.count("A: ") == 2
    assert "Q: One?" in out


def test_chat_asks_about_each_image_of_a_folder(world, folder, capsys):
    out = world["root"] / "answers.csv"
    argv = ["chat", folder, "--model", world["model"], "--max-new-tokens", "4", "--question", "One?", "--out", out]
    assert main([*map(str, argv), "--question", "Two?"]) == 2  # one image is damaged
    assert "1 of 4 images could not be read" in capsys.readouterr().err.splitlines()[-1]
    rows = list(csv.DictReader(out.open()))
    asked = [(Path(row["image"]).name, row["question"]) for row in rows]
    assert asked == [(name, question) for name in ("0.png", "1.png", "2.png") for question in ("One?", "Two?")]


def test_detect_prints_json_and_draws_boxes(world, capsys):
    drawn = world["root"] / "drawn.png"
    argv = ["detect", world["image"], "--model", world["model"], "--max-new-tokens", "4", "--draw", drawn]
    assert main([str(word) for word in argv]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["width"], result["height"]) == (128, 128)
    assert isinstance(result["boxes"], list)
    assert drawn.stat().st_size > 100
    assert f"{world['image']}: {len(result['boxes'])} box" in err


def test_detect_takes_a_folder_and_answers_as_for_each_image_alone(world, folder, capsys):
    drawn, out = world["root"] / "drawings", world["root"] / "boxes.json"
    shared = ["--model", str(world["model"]), "--max-new-tokens", "6"]
    assert main(["detect", str(folder), *shared, "--draw", str(drawn), "--out", str(out), "--quiet"]) == 2
    stdout, err = capsys.readouterr()
    assert stdout == ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "error"]  # the damaged image, and the sum
    results = json.loads(out.read_text())
    assert sorted(path.name for path in drawn.rglob("*.png")) == ["0.png", "1.png", "2.png"]
    pattern = str(folder / "**" / "[01].png")
    assert main(["detect", pattern, *shared]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == results[:2]
    assert main(["detect", str(folder / "2.png"), *shared]) == 0
    assert json.loads(capsys.readouterr().out) == results[2]


def test_drawings_of_images_of_one_name_and_of_relative_and_absolute_paths_are_different(tmp_path, monkeypatch):
    from earthgpt_jax.cli.detect import _names_below

    monkeypatch.chdir(tmp_path)
    images = [Path("a/x.png"), Path("a/x.jpg"), tmp_path / "b" / "x.png", Path("y.png")]
    assert list(_names_below(images).values()) == ["a/x.png.png", "a/x.jpg.png", "b/x.png", "y.png"]
    assert list(_names_below([tmp_path / "b" / "x.png", tmp_path / "b" / "y.png"]).values()) == ["x.png", "y.png"]


def test_what_a_model_cannot_see_is_said(world, capsys):
    scene = world["root"] / "large.png"
    Image.new("RGB", (2000, 1500)).save(scene)
    detect = ["detect", str(scene), "--model", str(world["model"]), "--max-new-tokens", "2", "--window-size"]
    assert main([*detect, "1500"]) == 0
    err = capsys.readouterr().err
    assert "warning: " in err and "1500 x 1500 pixels" in err and "choose a smaller --window-size" in err
    assert "in 2 windows" in err
    assert main([*detect, "480"]) == 0
    assert "warning" not in capsys.readouterr().err
    asked = ["chat", str(scene), "--model", str(world["model"]), "--max-new-tokens", "2", "--question", "?"]
    assert main(asked) == 0
    assert "2000 x 1500 pixels" in capsys.readouterr().err
    assert main([*asked, "--quiet"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_chat_about_a_part_of_a_scene(world, capsys):
    argv = ["chat", str(world["image"]), "--model", str(world["model"]), "--max-new-tokens", "2", "--question", "?"]
    assert main([*argv, "--window", "10,10,64,64"]) == 0
    assert "A: " in capsys.readouterr().out
    assert "inside its 128 x 128 pixels, got 100,0,64,64" in _fails(capsys, *argv, "--window", "100,0,64,64")
    assert "expected X,Y,WIDTH,HEIGHT in pixels" in _fails(capsys, *argv, "--window", "1,2")


def test_detect_reads_vrt_and_stac_and_writes_layers(world, capsys, tmp_path):
    import pyogrio

    scene = tmp_path / "scene.tif"
    scene.write_bytes(raster_file(np.full((3, 90, 150), 77, np.uint8)))
    shared = ["--model", str(world["model"]), "--max-new-tokens", "4", "--window-size", "64", "--overlap", "16"]
    with MemoryFile(scene.read_bytes()) as file, file.open() as raster:
        rasterio.shutil.copy(raster, tmp_path / "scene.vrt", driver="VRT")
    vrt = (tmp_path / "scene.vrt").read_text()
    name = f"<SourceFilename>{scene}</SourceFilename>"
    (tmp_path / "scene.vrt").write_text(re.sub(r"<SourceFilename.*</SourceFilename>", name, vrt))
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "x", "geometry": None, "links": [],
        "properties": {"datetime": "2026-01-01T00:00:00Z"},
        "assets": {"data": {"href": "./scene.tif"}, "preview": {"href": "p.png", "roles": ["thumbnail"]}},
    }  # fmt: skip
    (tmp_path / "item.json").write_text(json.dumps(item))
    found = {}
    for name in ("scene.tif", "scene.vrt", "item.json"):
        assert main(["detect", str(tmp_path / name), *shared]) == 0
        result = json.loads(capsys.readouterr().out)
        found[name] = [result["windows"], result["boxes"], result["affine"]]
    assert found["scene.tif"] == found["scene.vrt"] == found["item.json"] and found["scene.tif"][0] == 6
    out, page = tmp_path / "boxes.gpkg", tmp_path / "map.html"
    argv = ["detect", str(scene), *shared, "--out", str(out), "--draw", str(page), "--draw", str(tmp_path / "look.tif")]
    assert main([*argv, "--class", "ships", "--min-confidence", "0.99"]) == 0
    assert "confidence: lowest" in capsys.readouterr().err
    assert pyogrio.read_info(out)["crs"] == "EPSG:32633" and (tmp_path / "boxes.gpkg.windows.jsonl").exists()
    assert "{{" not in page.read_text() and page.read_text().count("http") == 0
    with rasterio.open(tmp_path / "look.tif") as look:
        assert look.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and look.crs == "EPSG:32633"
    assert "no asset 'red'; its assets are data, preview" in _fails(
        capsys, "detect", tmp_path / "item.json", "--asset", "red"
    )
    (tmp_path / "other.json").write_text("{}")
    assert "expected a STAC item" in _fails(capsys, "detect", tmp_path / "other.json")
    both = ["--overlap", "3", "--largest-object", "4"]
    assert "expected one of them, got both" in _fails(capsys, "detect", scene, *both)
    assert "because GeoJSON is in WGS 84" in _fails(capsys, "detect", world["image"], "--out", tmp_path / "a.geojson")
    assert "--zoom: expected at least 2" in _fails(capsys, *argv[:-6], "--zoom", "1", "--quiet")
    assert "holds answers of another run: question was" in _fails(capsys, *argv, "--prompt", "ships", "--quiet")


def test_eval_writes_scores_a_report_and_predictions_that_score_identically(world, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")  # hides Java, which is slow
    out = world["root"] / "eval"
    argv = [
        "eval", "--model", world["model"], "--data", world["data"], "--out", out, "--per-image", "1",
        "--false-premises", "--chained", "mmrs", "--batch-size", "8",
    ]  # fmt: skip
    assert main([str(word) for word in argv]) == 0
    first = capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    assert scores["classification"]["all"]["n"] == 3
    assert {"constant", "random", "blind", "top1"} <= scores["classification"]["all"].keys()
    assert scores["absent_grounding"]["all"]["n"] > 0
    assert scores["presence"]["all"]["n"] > 0 and scores["presence"]["all"]["constant"]["accuracy"] > 0
    assert scores["chained_obb"]["all"]["n"] == 3 and "f1" in scores["chained_hbb"]["all"]["blind"]
    _, answered = predictions_file.read(out / "predictions_image.jsonl")
    assert all(len(p.logprobs) == len(p.token_lengths) > 0 for p in answered if p.task in ("hbb", "grounding"))
    assert all(len(p.steps) > 3 for p in predictions_file.read(out / "predictions_chained_image.jsonl")[1])
    assert (out / "report.html").exists()
    # Once more: all predictions exist already, and the scores are identical without running the model.
    assert main([str(word) for word in argv]) == 0
    assert capsys.readouterr().out == first
    again = world["root"] / "again.json"
    assert main(["score", str(out / "predictions_image.jsonl"), "--json", str(again)]) == 0
    found = json.loads(again.read_text())
    chain = out / "predictions_chained_image.jsonl"
    assert main(["score", str(chain), "--json", str(again)]) == 0
    found |= json.loads(again.read_text())
    for task, groups in scores.items():
        for group, values in groups.items():
            expected = {k: v for k, v in values.items() if k not in ("constant", "random", "blind")}
            assert expected == {k: v for k, v in found[task][group].items() if k in expected}


def test_wrong_input_is_reported_in_one_line(world, capsys):
    image, model, root = world["image"], world["model"], world["root"]
    assert "no such file" in _fails(capsys, "chat", root / "none.png", "--question", "?")
    truncated = root / "truncated.png"
    truncated.write_bytes(image.read_bytes()[:500])
    assert f"image {truncated}: image of 500 bytes cannot be decoded" in _fails(
        capsys, "detect", truncated, "--model", model
    )
    assert "an embedded model: tiny-base, tiny" in _fails(
        capsys, "chat", image, "--model", root / "nowhere", "--question", "?"
    )
    assert "expected a folder for several images, got a file" in _fails(
        capsys, "detect", image, root / "b.png", "--draw", image
    )
    assert "--draw d.txt: expected a file name that ends in" in _fails(capsys, "detect", image, "--draw", "d.txt")
    assert "did you mean '.csv'" in _fails(capsys, "detect", image, "--out", "boxes.cvs")
    assert "got a web address" in _fails(capsys, "detect", "https://example.org/a.png")
    assert "found none" in _fails(capsys, "detect", root / "*.jpg")
    assert "unknown option --image; did you mean 'IMAGE'" in _fails(capsys, "detect", "--image", image)
    assert "expected --question TEXT" in _fails(capsys, "chat", image, root / "b.png")
    assert "did you mean 'peak_lr'" in _fails(
        capsys, "train", "--config", "tiny:align", "--workdir", root / "w", "--config.optim.peak_lrr=1"
    )
    assert "did you mean 'tiny'" in _fails(capsys, "train", "--config", "tinny:align", "--workdir", root / "w")
    assert "there is no such folder" in _fails(
        capsys, "train", "--workdir", root / "w",
        *nano.arguments("align", f"init={model}", f"data.source={root / 'empty'}"),
    )  # fmt: skip
    assert not (root / "w").exists()  # a run that fails before it starts creates no folder
    assert "cannot be read" in _fails(capsys, "score", root / "none.jsonl")
    assert "expected at least 1" in _fails(capsys, "quickstart", "--workdir", root / "q", "--steps", "0")


def test_a_bad_image_in_the_training_data_is_named(world, capsys):
    from earthgpt_jax.datasets.build.writer import write_dataset

    records = [SyntheticSource("train", 4)[i] for i in range(4)]
    records[2] = dataclasses.replace(records[2], image=records[2].image[:300])
    write_dataset({"train": records}, out=world["root"] / "truncated_data", name="synthetic")
    error = _fails(
        capsys, "train", "--workdir", world["root"] / "truncated_run",
        *nano.arguments("align", f"init={world['model']}", f"data.source={world['root'] / 'truncated_data'}"),
    )  # fmt: skip
    assert "synthetic/train/2" in error
    assert "data check" in error
