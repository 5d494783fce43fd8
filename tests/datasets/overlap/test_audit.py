"""Train/test overlap: `earthgpt data audit`, and how training uses its result."""

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
    """Return a random image with coarse and fine structure."""
    rng = np.random.default_rng(seed)
    coarse, fine = rng.random((6, 6, 3)), rng.random((24, 24, 3))
    pixels = 0.8 * zoom(coarse, (side / 6, side / 6, 1), order=1) + 0.2 * zoom(fine, (side / 24, side / 24, 1), order=1)
    return Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _write(out: Path, name: str, **splits: list[bytes]) -> None:
    def record(split: str, number: int, image: bytes) -> Record:
        side = 64 if image[:2] == b"\xff\xd8" and number == 2 else 96  # the resized image of the fixture
        return Record(
            id=f"{name}/{split}/{number}", image=image, height=side, width=side, sensor=Sensor.OPTICAL, source=name,
            split=split, tasks=(Task.CAPTION,), references=("a",),
        )  # fmt: skip

    write_dataset(
        {s: [record(s, i, image) for i, image in enumerate(x)] for s, x in splits.items()}, out=out / name, name=name
    )


def _audit(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    """Run `earthgpt data audit`; return (exit status, lines of stdout, stderr)."""
    capsys.readouterr()
    status = main(["data", "audit", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out.splitlines(), output.err


def _ids(folder: Path) -> list[str]:
    return [record.id for record in open_records(folder, "train")]


@pytest.fixture
def contaminated(tmp_path: Path) -> Path:
    """A benchmark of five images, and a training dataset with three of them, one per type of match."""
    scenes = [_scene(seed) for seed in range(9)]
    test = [_encode(scene) for scene in scenes[:5]]
    train = [
        test[0],
        _encode(scenes[1], "TIFF"),
        _encode(scenes[2].resize((64, 64), Image.Resampling.BICUBIC), "JPEG", quality=75),
        *(_encode(scene) for scene in scenes[5:]),
    ]
    _write(tmp_path, "benchmark", test=test, train=[_encode(_scene(20)), _encode(scenes[3], "JPEG", quality=80)])
    _write(tmp_path, "collected", train=train)
    return tmp_path


def test_overlap_is_printed_stored_and_excluded_from_training(
    contaminated: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: read_manifest(contaminated / name) for name in ("benchmark", "collected")}
    assert len(_ids(contaminated)) == 2 + 7 - 1  # without an audit, only identical files are excluded

    status, lines, _ = _audit(capsys, contaminated)
    assert status == 0
    assert lines[0].split()[:3] == ["benchmark", "split", "training"]
    rows = [line.split() for line in lines[1:3]]
    assert rows[0] == ["benchmark", "test", "collected", "5", "1", "1", "1", "60.0", "%", "3"]
    assert rows[1] == ["benchmark", "test", "benchmark", "5", "0", "0", "1", "20.0", "%", "1"]
    assert lines[3] == (
        "benchmark/test is contaminated: 4 of its 5 images (80.0 %) are in the training splits of benchmark, collected"
    )
    assert len(lines) == 4

    after = read_manifest(contaminated / "collected")
    overlap = after.pop("overlap")
    assert after == before["collected"]
    assert overlap["datasets"] == {name: values["fingerprint"] for name, values in before.items()}
    assert [(pair["benchmark"], pair["matched_images"]) for pair in overlap["split_overlaps"]] == [
        ("benchmark", {"file": 1, "pixels": 1, "near_duplicate": 1})
    ]
    rows = [json.loads(line) for line in (contaminated / "collected" / matches.FILE).read_text().splitlines()]
    assert [(row["id"], row["match_type"], row["other_id"]) for row in rows] == [
        ("collected/train/0", "file", "benchmark/test/0"),
        ("collected/train/1", "pixels", "benchmark/test/1"),
        ("collected/train/2", "near_duplicate", "benchmark/test/2"),
    ]
    rows = [json.loads(line) for line in (contaminated / "benchmark" / matches.FILE).read_text().splitlines()]
    assert {(row["id"], row["other_id"]) for row in rows if row["split"] == "test"} == {
        *((f"benchmark/test/{i}", f"collected/train/{i}") for i in range(3)), ("benchmark/test/3", "benchmark/train/1")
    }  # fmt: skip

    with caplog.at_level(logging.WARNING):
        assert _ids(contaminated) == [  # near-duplicates within one dataset stay
            "benchmark/train/0", "benchmark/train/1", *(f"collected/train/{i}" for i in range(3, 7))
        ]  # fmt: skip
    assert "collected 3 of 7" in caplog.text
    assert len(open_records(contaminated / "collected", "train")) == 7
    assert len(open_records(contaminated, "test")) == 5
    assert _audit(capsys, contaminated, "--strict")[0] == 1


def test_a_second_audit_uses_the_cached_hashes(
    contaminated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _audit(capsys, contaminated)
    cached = (contaminated / "collected" / perceptual_hashes.FILE).read_bytes()
    monkeypatch.setattr(perceptual_hashes, "hash_image", lambda image: pytest.fail("computed again"))
    assert _audit(capsys, contaminated)[:2] == first[:2]
    assert (contaminated / "collected" / perceptual_hashes.FILE).read_bytes() == cached
    assert find_problems(contaminated / "collected") == []


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", "other records"])
def test_a_damaged_cache_is_computed_again(
    contaminated: Path, capsys: pytest.CaptureFixture[str], damage: bytes | str
) -> None:
    first = _audit(capsys, contaminated)
    path = contaminated / "collected" / perceptual_hashes.FILE
    intact = path.read_bytes()
    path.write_bytes(
        damage if isinstance(damage, bytes) else (contaminated / "benchmark" / perceptual_hashes.FILE).read_bytes()
    )
    assert _audit(capsys, contaminated)[:2] == first[:2]
    assert path.read_bytes() == intact


def test_an_audit_is_valid_only_for_the_datasets_that_it_compared(
    contaminated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _audit(capsys, contaminated)
    (contaminated / "benchmark").rename(tmp_path.parent / f"{tmp_path.name}-away")
    _write(contaminated, "unrelated", test=[_encode(_scene(30))])
    assert len(_ids(contaminated)) == 7  # the benchmark is gone
    _write(contaminated, "benchmark", test=[_encode(_scene(31))])
    assert len(_ids(contaminated)) == 7  # another build with the same name


def test_a_damaged_list_of_matches_is_reported(contaminated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _audit(capsys, contaminated)
    path = contaminated / "collected" / matches.FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(EarthGPTError, match=r"damaged.*run `earthgpt data audit` again"):
        open_records(contaminated, "train")
    assert "damaged" in find_problems(contaminated / "collected")[0]
    path.unlink()
    with pytest.raises(EarthGPTError, match=r"cannot be read.*audit` again"):
        open_records(contaminated, "train")


def test_images_without_contrast_or_that_cannot_be_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two images of open sea are not near-duplicates; undecodable images are compared as files."""
    sea = [_encode(Image.new("L", (64, 64), grey)) for grey in (30, 31)]
    _write(tmp_path, "a", train=[sea[0], b"torn", b""])
    _write(tmp_path, "b", test=[sea[1], b"torn", b""])
    _, lines, _ = _audit(capsys, tmp_path)
    assert lines[1].split() == ["b", "test", "a", "2", "1", "0", "0", "50.0", "%", "1"]
    assert "a: 1 images cannot be decoded" in lines[3]
    assert "b: 1 images have too little contrast" in lines[-1]


def test_datasets_without_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, "a", train=[_encode(_scene(1))], val=[_encode(_scene(2))])
    _write(tmp_path, "b", train=[_encode(_scene(3))])
    assert _audit(capsys, tmp_path, "--strict")[:2] == (0, ["clean: a/val"])
    assert _audit(capsys, tmp_path / "a")[:2] == (0, ["clean: a/val"])
    assert _audit(capsys, tmp_path / "b")[:2] == (0, ["no evaluation split to compare with"])


def test_hashes_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    _write(tmp_path, "a", train=[_encode(_scene(seed, side=48)) for seed in range(20)] * 30)
    one = perceptual_hashes.dataset_hashes(tmp_path / "a", workers=1)["train"]
    (tmp_path / "a" / perceptual_hashes.FILE).unlink()
    two = perceptual_hashes.dataset_hashes(tmp_path / "a", workers=2)["train"]
    for name in ("pixels", "phash", "dhash"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert len(set(two.pixels.tolist())) == 20


def test_user_errors(contaminated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such folder" in _audit(capsys, contaminated / "nowhere")[2]
    assert "expected at least 1, got 0" in _audit(capsys, contaminated, "--workers", "0")[2]
    (contaminated / "copy").mkdir()
    for path in (contaminated / "collected").iterdir():
        (contaminated / "copy" / path.name).write_bytes(path.read_bytes())
    status, _, error = _audit(capsys, contaminated)
    assert (status, "several datasets are called collected" in error) == (2, True)


def test_the_released_mmrs_1m_contains_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MMRS-1M contains test images of RSICD, UCM-Captions and Sydney-Captions; files laid out as in the releases."""
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
            image = _encode(_scene(10 * number + index), "JPEG" if suffix == "jpg" else "TIFF")
            (native / folder / images / name).write_bytes(image)
            rows.append({"filename": name, "split": split, "sentences": [{"raw": "a scene ."}]})
            released = data / "caption" / Path(folder).name / name
            released.parent.mkdir(parents=True, exist_ok=True)
            released.write_bytes(image)
            messages = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": "a scene ."}]
            dialogues.append({"image": released.relative_to(data / "caption").as_posix(), "conversations": messages})
        (native / folder / annotations).write_text(json.dumps({"images": rows}))
    (data / "json" / "caption").mkdir(parents=True)
    (data / "json" / "caption" / "caption.json").write_text(json.dumps(dialogues))
    names = ["rsicd", "ucm_captions", "sydney_captions", "mmrs1m_caption"]
    out = tmp_path / "out"
    assert main(["data", "build", *names, "--root", str(native), "--out", str(out)]) == 0
    status, lines, _ = _audit(capsys, out, "--strict")
    assert status == 1
    expected = [
        f"{name}/test is contaminated: 1 of its 1 images (100.0 %) are in the training splits of mmrs1m_caption"
        for name in ("rsicd", "sydney_captions", "ucm_captions")
    ]
    assert sorted(line for line in lines if "contaminated" in line) == expected
    kept = [record.id for record in open_records(out, "train")]
    assert not [name for name in kept if name.startswith("mmrs1m") and name.endswith("_2")]
    assert len(kept) == 6 + 6
