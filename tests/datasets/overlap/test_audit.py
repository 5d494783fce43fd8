"""Which benchmark is trained on, and by what: `earthgpt data audit` and what training makes of it."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import zoom

from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.inspect.validate import find_problems
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.overlap import matches, perceptual_hashes
from earthgpt_jax.records import Record, Sensor, Task


def _scene(seed: int, side: int = 96) -> Image.Image:
    """A picture with coarse and fine structure of its own."""
    rng = np.random.default_rng(seed)
    coarse, fine = rng.random((6, 6, 3)), rng.random((24, 24, 3))
    pixels = 0.8 * zoom(coarse, (side / 6, side / 6, 1), order=1) + 0.2 * zoom(fine, (side / 24, side / 24, 1), order=1)
    return Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8))


def _file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _write(out: Path, name: str, **splits: list[bytes]) -> None:
    def record(split: str, number: int, image: bytes) -> Record:
        side = 64 if image[:2] == b"\xff\xd8" and number == 2 else 96  # the fixtures' one resized picture
        return Record(
            id=f"{name}/{split}/{number}", image=image, height=side, width=side, sensor=Sensor.OPTICAL, source=name,
            split=split, tasks=(Task.CAPTION,), references=("a",),
        )  # fmt: skip

    write_dataset(
        {s: [record(s, i, image) for i, image in enumerate(x)] for s, x in splits.items()}, out=out / name, name=name
    )


def _audit(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str], str]:
    capsys.readouterr()
    status = main(["data", "audit", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def _ids(folder: Path) -> list[str]:
    return [record.id for record in open_records(folder, "train")]


@pytest.fixture
def contaminated(tmp_path: Path) -> Path:
    """A benchmark of five images, and a set that trains on three of them, each in another way."""
    scenes = [_scene(seed) for seed in range(9)]
    test = [_file(scene) for scene in scenes[:5]]
    train = [
        test[0],
        _file(scenes[1], "TIFF"),
        _file(scenes[2].resize((64, 64), Image.Resampling.BICUBIC), "JPEG", quality=75),
        *(_file(scene) for scene in scenes[5:]),
    ]
    _write(tmp_path, "benchmark", test=test, train=[_file(_scene(20)), _file(scenes[3], "JPEG", quality=80)])
    _write(tmp_path, "gathered", train=train)
    return tmp_path


def test_the_verdict_is_told_written_and_obeyed(contaminated: Path, capsys, caplog) -> None:
    before = {name: read_manifest(contaminated / name) for name in ("benchmark", "gathered")}
    assert len(_ids(contaminated)) == 2 + 7 - 1  # without an audit: the same file only

    status, said, _ = _audit(capsys, contaminated)
    assert status == 0
    assert said[0].split()[:3] == ["benchmark", "split", "in"]
    rows = [line.split() for line in said[1:3]]
    assert rows[0] == ["benchmark", "test", "gathered", "5", "1", "1", "1", "60.0", "%", "3"]
    assert rows[1] == ["benchmark", "test", "benchmark", "5", "0", "0", "1", "20.0", "%", "1"]
    assert said[3] == (
        "benchmark/test is contaminated: 4 of its 5 images (80.0 %) are trained on by benchmark, gathered"
    )
    assert len(said) == 4

    after = read_manifest(contaminated / "gathered")
    verdict = after.pop("leaks")
    assert after == before["gathered"]
    assert verdict["datasets"] == {name: values["fingerprint"] for name, values in before.items()}
    assert [(pair["benchmark"], pair["found"]) for pair in verdict["pairs"]] == [
        ("benchmark", {"file": 1, "pixels": 1, "near": 1})
    ]
    lines = [json.loads(line) for line in (contaminated / "gathered" / matches.FILE).read_text().splitlines()]
    assert [(line["id"], line["kind"], line["other"]) for line in lines] == [
        ("gathered/train/0", "file", "benchmark/test/0"),
        ("gathered/train/1", "pixels", "benchmark/test/1"),
        ("gathered/train/2", "near", "benchmark/test/2"),
    ]
    asked = [json.loads(line) for line in (contaminated / "benchmark" / matches.FILE).read_text().splitlines()]
    assert {(line["id"], line["other"]) for line in asked if line["split"] == "test"} == {
        *((f"benchmark/test/{i}", f"gathered/train/{i}") for i in range(3)), ("benchmark/test/3", "benchmark/train/1")
    }  # fmt: skip

    with caplog.at_level(logging.WARNING):
        assert _ids(contaminated) == [  # near copies inside one dataset are its own affair
            "benchmark/train/0", "benchmark/train/1", *(f"gathered/train/{i}" for i in range(3, 7))
        ]  # fmt: skip
    assert "gathered 3 of 7" in caplog.text
    assert len(open_records(contaminated / "gathered", "train")) == 7
    assert len(open_records(contaminated, "test")) == 5
    assert _audit(capsys, contaminated, "--strict")[0] == 1


def test_a_second_audit_computes_nothing_anew(contaminated: Path, capsys, monkeypatch) -> None:
    first = _audit(capsys, contaminated)
    kept = (contaminated / "gathered" / perceptual_hashes.FILE).read_bytes()
    monkeypatch.setattr(perceptual_hashes, "hash_image", lambda image: pytest.fail("computed anew"))
    assert _audit(capsys, contaminated)[:2] == first[:2]
    assert (contaminated / "gathered" / perceptual_hashes.FILE).read_bytes() == kept
    assert find_problems(contaminated / "gathered") == []


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", "other records"])
def test_a_damaged_cache_is_computed_anew(contaminated: Path, capsys, damage: bytes | str) -> None:
    first = _audit(capsys, contaminated)
    path = contaminated / "gathered" / perceptual_hashes.FILE
    whole = path.read_bytes()
    path.write_bytes(
        damage if isinstance(damage, bytes) else (contaminated / "benchmark" / perceptual_hashes.FILE).read_bytes()
    )
    assert _audit(capsys, contaminated)[:2] == first[:2]
    assert path.read_bytes() == whole


def test_a_verdict_counts_only_for_the_datasets_it_is_about(contaminated: Path, tmp_path: Path, capsys) -> None:
    _audit(capsys, contaminated)
    (contaminated / "benchmark").rename(tmp_path.parent / f"{tmp_path.name}-away")
    _write(contaminated, "unrelated", test=[_file(_scene(30))])
    assert len(_ids(contaminated)) == 7  # the benchmark is not there
    _write(contaminated, "benchmark", test=[_file(_scene(31))])
    assert len(_ids(contaminated)) == 7  # another build under its name


def test_a_list_that_is_torn_is_said(contaminated: Path, capsys) -> None:
    _audit(capsys, contaminated)
    path = contaminated / "gathered" / matches.FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(EarthGPTError, match=r"damaged.*run `earthgpt data audit` again"):
        open_records(contaminated, "train")
    assert "damaged" in find_problems(contaminated / "gathered")[0]
    path.unlink()
    with pytest.raises(EarthGPTError, match=r"cannot be read.*audit` again"):
        open_records(contaminated, "train")


def test_pictures_that_show_nothing_or_do_not_decode(tmp_path: Path, capsys) -> None:
    """Two stretches of open sea are not one image; what is no image is compared as a file."""
    sea = [_file(Image.new("L", (64, 64), grey)) for grey in (30, 31)]
    _write(tmp_path, "a", train=[sea[0], b"torn", b""])
    _write(tmp_path, "b", test=[sea[1], b"torn", b""])
    _, said, _ = _audit(capsys, tmp_path)
    assert said[1].split() == ["b", "test", "a", "2", "1", "0", "0", "50.0", "%", "1"]
    assert "a: 1 images do not decode" in said[3]
    assert "b: 1 images show too little" in said[-1]


def test_clean_datasets_and_one_alone(tmp_path: Path, capsys) -> None:
    _write(tmp_path, "a", train=[_file(_scene(1))], val=[_file(_scene(2))])
    _write(tmp_path, "b", train=[_file(_scene(3))])
    assert _audit(capsys, tmp_path, "--strict")[:2] == (0, ["clean: a/val"])
    assert _audit(capsys, tmp_path / "a")[:2] == (0, ["clean: a/val"])
    assert _audit(capsys, tmp_path / "b")[:2] == (0, ["no evaluation split to compare with"])


def test_worker_processes_see_the_same(tmp_path: Path) -> None:
    _write(tmp_path, "a", train=[_file(_scene(seed, side=48)) for seed in range(20)] * 30)
    alone = perceptual_hashes.dataset_hashes(tmp_path / "a", workers=1)["train"]
    (tmp_path / "a" / perceptual_hashes.FILE).unlink()
    together = perceptual_hashes.dataset_hashes(tmp_path / "a", workers=2)["train"]
    for name in ("pixels", "phash", "dhash"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))
    assert len(set(together.pixels.tolist())) == 20


def test_what_the_user_can_mend(contaminated: Path, capsys) -> None:
    assert "there is no such folder" in _audit(capsys, contaminated / "nowhere")[2]
    assert "expected at least 1, got 0" in _audit(capsys, contaminated, "--workers", "0")[2]
    (contaminated / "copy").mkdir()
    for path in (contaminated / "gathered").iterdir():
        (contaminated / "copy" / path.name).write_bytes(path.read_bytes())
    status, _, wrong = _audit(capsys, contaminated)
    assert (status, "several datasets are called gathered" in wrong) == (2, True)


def test_the_released_mmrs_1m_trains_on_test_images(tmp_path: Path, capsys) -> None:
    """The known case: images of the test sets of RSICD, UCM-Captions and Sydney-Captions, here as it was packed."""
    native, data = tmp_path / "native", tmp_path / "native" / "MMRS-1M" / "data"
    dialogues = []
    for number, (folder, suffix) in enumerate(
        {"optical/RSICD": "jpg", "optical/UCM": "tif", "optical/Sydney": "tif"}.items()
    ):
        rows = []
        card = {"optical/RSICD": ("dataset_rsicd.json", "RSICD_images")}.get(folder)
        annotations, images = card or ("dataset.json", "imgs")
        (native / folder / images).mkdir(parents=True)
        for index, split in enumerate(("train", "train", "test")):
            name = f"{Path(folder).name}_{index}.{suffix}"
            image = _file(_scene(10 * number + index), "JPEG" if suffix == "jpg" else "TIFF")
            (native / folder / images / name).write_bytes(image)
            rows.append({"filename": name, "split": split, "sentences": [{"raw": "a scene ."}]})
            released = data / "caption" / Path(folder).name / name
            released.parent.mkdir(parents=True, exist_ok=True)
            released.write_bytes(image)
            said = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": "a scene ."}]
            dialogues.append({"image": released.relative_to(data / "caption").as_posix(), "conversations": said})
        (native / folder / annotations).write_text(json.dumps({"images": rows}))
    (data / "json" / "caption").mkdir(parents=True)
    (data / "json" / "caption" / "caption.json").write_text(json.dumps(dialogues))
    names = ["rsicd", "ucm_captions", "sydney_captions", "mmrs1m_caption"]
    out = tmp_path / "out"
    assert main(["data", "build", *names, "--root", str(native), "--out", str(out)]) == 0
    status, said, _ = _audit(capsys, out, "--strict")
    assert status == 1
    words = [f"{name}/test is contaminated: 1 of its 1 images (100.0 %) are trained on by mmrs1m_caption"
             for name in ("rsicd", "sydney_captions", "ucm_captions")]  # fmt: skip
    assert sorted(line for line in said if "contaminated" in line) == words
    kept = [record.id for record in open_records(out, "train")]
    assert not [name for name in kept if name.startswith("mmrs1m") and name.endswith("_2")]
    assert len(kept) == 6 + 6
