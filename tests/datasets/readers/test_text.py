"""Readers of scene classes, captions and questions.

Files are written by hand from the documented formats, with the irregularities known from the releases.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Images, SplitRule, load_cards
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.raster.policy import Stretch, StretchPolicy
from earthgpt_jax.records import Task
from tests.support.native_datasets import Native, card, png, read_records, why


def test_captions(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("i/mute.png", png())
    rows = [
        {"filename": "x.png", "split": "restval", "sentences": [{"raw": " a ship . "}, {"raw": ""}, "b"]},
        {"filename": "gone.tif", "split": "test", "sentences": [{"raw": "b"}]},
        {"filename": "mute.png", "split": "test", "sentences": "b"},
        {"split": "test"},
    ]
    native.put("a.json", {"images": rows})
    found = card(
        "captions", {"annotations": "a.json", "images": "i"}, tasks=(Task.CAPTION,), split_rule=SplitRule.NATIVE
    )
    records, rejected, _ = native.read(found)
    assert records["x"].references == ("a ship .",)
    assert records["x"].split == "train"
    reasons = why(rejected)
    assert reasons["x"] == ["caption: empty", "caption: empty"]
    assert reasons["gone"][0] == "image: missing image 'gone.tif'"
    assert reasons[""] == ["annotation: no filename"]
    assert reasons["mute"] == ["image: nothing valid is left for caption"]


def test_caption_lines(native: Native) -> None:
    for name in ("x", "y"):
        native.put(f"i/{name}.png", png())
    native.put("caps.txt", "a\nb\nc\nd\n")
    layout = {"annotations": "caps.txt", "names": "names.txt", "images": "i", "split": "test"}
    found = card("caption_lines", layout, tasks=(Task.CAPTION,), split_rule=SplitRule.NATIVE)
    for names in ("x.png\ny.png\n", "x.png\nx.png\ny.png\ny.png\n"):  # per image, and per caption
        native.put("names.txt", names)
        records, rejected, _ = native.read(found)
        assert {name: record.references for name, record in records.items()} == {"x": ("a", "b"), "y": ("c", "d")}
        assert not rejected and records["x"].split == "test"
    native.put("names.txt", "x.png\nx.png\ny.png\n")
    with pytest.raises(EarthGPTError, match=r"expected a divisor of the 4 lines of caps\.txt, got 3 lines"):
        native.read(found)


def test_nwpu_captions(native: Native) -> None:
    for name in ("airplane/airplane_001.jpg", "sea_ice/sea_ice_001.jpg", "airplane/airplane_003.jpg"):
        native.put(f"i/{name}", png())
    five = {"raw": "a plane .", "raw_1": " two planes .", "raw_2": "b", "raw_3": "c", "raw_4": "b"}
    rows = {
        "airplane": [
            {"filename": "airplane_001.jpg", "imgid": 0, "split": "train", **five},
            {
                "filename": "airplane_111.jpg",
                "imgid": 1,
                "split": "train",
                **five,
            },  # missing in some copies
            {"filename": "airplane_003.jpg", "imgid": 2, "split": "val", "raw": "a", "raw_1": "", "raw_2": None},
            {"imgid": 3, "split": "test", **five},
            "airplane_004.jpg",
        ],
        "sea_ice": [{"filename": "sea_ice_001.jpg", "imgid": 4, "split": "test", **five}],
    }
    native.put("dataset_nwpu.json", rows)
    found = card(
        "nwpu_captions",
        {"annotations": "dataset_nwpu.json", "images": "i"},
        tasks=(Task.CAPTION,),
        split_rule=SplitRule.NATIVE,
    )
    records, rejected, _ = native.read(found)
    assert {name: record.split for name, record in records.items()} == {
        "airplane/airplane_001": "train",
        "airplane/airplane_003": "val",
        "sea_ice/sea_ice_001": "test",
    }
    assert records["sea_ice/sea_ice_001"].references == ("a plane .", "two planes .", "b", "c", "b")
    assert records["airplane/airplane_003"].references == ("a",)
    reasons = why(rejected)
    assert reasons["airplane/airplane_111"][0] == "image: missing image 'airplane/airplane_111.jpg'"
    assert reasons["airplane/airplane_003"] == ["caption: empty", "caption: empty"]
    assert [reason.split(":")[1] for reason in reasons["airplane/"] if "annotation:" in reason] == [" no filename"] * 2
    native.put("dataset_nwpu.json", {"images": {}})
    with pytest.raises(EarthGPTError, match="expected a list of images under 'images', got dict"):
        native.read(found)


def test_rsitmd_and_ucm_use_the_karpathy_layout(native: Native) -> None:
    """RSITMD also has keywords; UCM numbers its TIFF files."""
    native.put("images/airport_1.tif", png())
    native.put("images/7.tif", png())
    sentences = [{"raw": f"sentence {i}", "tokens": [], "sentid": i} for i in range(5)]
    rows = [
        {"filename": "airport_1.tif", "split": "train", "keywords": ["plane"], "sentences": sentences},
        {"filename": "7.tif", "split": "test", "sentences": sentences},
    ]
    native.put("a.json", {"images": rows, "dataset": "RSITMD"})
    part = {"annotations": "a.json", "images": "images"}
    records, rejected, _ = native.read(card("captions", part, tasks=(Task.CAPTION,), split_rule=SplitRule.NATIVE))
    assert rejected == []
    assert {name: (record.split, len(record.references)) for name, record in records.items()} == {
        "airport_1": ("train", 5),
        "7": ("test", 5),
    }


def test_only_the_texts_with_a_wrong_encoding_are_quarantined(native: Native) -> None:
    native.put("i/x.png", png())
    rows = {"images": [{"filename": "x.png", "sentences": [{"raw": "a café"}, {"raw": "a ship"}]}]}
    native.put("a.json", json.dumps(rows, ensure_ascii=False).encode("latin-1"))
    part = {"annotations": "a.json", "images": "i"}
    records, rejected, _ = native.read(card("captions", part, tasks=(Task.CAPTION,)))
    assert records["x"].references == ("a ship",)
    assert why(rejected) == {"x": ["caption: wrong encoding: expected UTF-8"]}
    native.put("a.json", b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False).encode())  # a byte order mark
    records, rejected, _ = native.read(card("captions", part, tasks=(Task.CAPTION,)))
    assert (records["x"].references, rejected) == (("a café", "a ship"), [])
    native.put("a.txt", "x.png:a caf\xe9?yes\nx.png:a ship?yes\n".encode("latin-1"))
    part = {"annotations": "a.txt", "images": "i"}
    records, rejected, _ = native.read(card("rsivqa", part, tasks=(Task.VQA,)))
    assert [turn.question for turn in records["x"].turns] == ["a ship?"]
    assert why(rejected) == {"x": ["question: wrong encoding: expected UTF-8"]}


def test_rsvqa(native: Native) -> None:
    native.put("i/3.png", png())
    ask = {"active": True, "type": "count", "question": "How many?"}
    native.put("im.json", {"images": [{"id": 3, "active": True}, {"id": 4, "active": False}]})
    questions = [
        {"id": 0, "img_id": 3, "answers_ids": [5], **ask},
        {"id": 1, "img_id": 3, "answers_ids": [6], **ask},  # its answer is inactive
        {"id": 2, "active": False},
        {"id": 3, "img_id": 4, "answers_ids": [5], **ask},  # its image is inactive
    ]
    native.put("q.json", {"questions": questions})
    native.put("an.json", {"answers": [{"id": 5, "active": True, "answer": 12}, {"id": 6, "active": False}]})
    part = {"index": "im.json", "questions": "q.json", "answers": "an.json", "images": "i", "split": "val"}
    records, rejected, dropped = native.read(card("rsvqa", part, tasks=(Task.VQA,), split_rule=SplitRule.NATIVE))
    (turn,) = records["3"].turns
    assert (turn.question, turn.answer, turn.question_type) == ("How many?", "12", "count")
    assert records["3"].id == "s/val/3"
    reasons = why(rejected)
    assert reasons["3"] == ["question: question 1 has no active answer (answers_ids [6])"]
    assert reasons["4"] == ["question: missing pair: no active image has the id 4"]
    assert sorted(event.item_type for event in dropped) == ["image", "question"]


def test_rsivqa(native: Native) -> None:
    native.put("i/P1.png", png())
    native.put("a.txt", "P1: is it 9:30? or later?yes \n\nP1:no mark\nnonsense\nP2:a?b\nP1:what?\n")
    records, rejected, _ = native.read(card("rsivqa", {"annotations": "a.txt", "images": "i", "prefix": "D/"}))
    (turn,) = records["D/P1"].turns
    assert (turn.question, turn.answer) == ("is it 9:30? or later?", "yes")
    reasons = why(rejected)
    assert len(reasons["D/P1"]) == 2
    assert reasons["line 4"] == ["question: expected image:question?answer, got 'nonsense'"]
    assert reasons["D/P2"][0] == "image: missing image 'P2'"


def test_floodnet(native: Native) -> None:
    row = {"Image_ID": "7.JPG", "Question": "How many?", "Ground_Truth": 0, "Question_Type": "Simple_Counting"}
    odd = {"1": {**row, "Ground_Truth": None}, "2": {"Question": "?"}, "3": 4, "5": {**row, "Question": ["?"]}}
    native.put("a.json", {"0": row, **odd})
    records, rejected, _ = native.read(card("floodnet", {"annotations": "a.json"}, images=Images.NONE))
    (turn,) = records["7"].turns
    assert (turn.answer, turn.question_type) == ("0", "simple_counting")
    assert {name: len(reasons) for name, reasons in why(rejected).items()} == {"2": 1, "3": 1, "7": 2}


def test_qa_rows(native: Native) -> None:
    native.put("i/1.jpg", png())
    rows = [
        {"img": "1.jpg", "q": "Is it a port?", "a": "Yes", "kind": "Presence"},
        {"img": "1", "q": "How many ships?", "a": 3},
        {"img": "1.jpg", "q": "", "a": "no"},
        {"img": "1.jpg", "q": "Where?", "a": ["left"]},
        {"image": "1.jpg", "q": "Where?", "a": "left"},
        "1.jpg",
    ]
    native.put("a.json", {"info": {}, "questions": rows})
    fields = {"image": "img", "question": "q", "answer": "a", "type": "kind"}
    part = {"annotations": "a.json", "images": "i", "split": "test"}
    found = card("qa_rows", part, tasks=(Task.VQA,), fields=fields, split_rule=SplitRule.NATIVE)
    records, rejected, _ = native.read(found)
    (turn,) = records["1"].turns
    assert (turn.question, turn.answer, turn.question_type) == ("Is it a port?", "Yes", "presence")
    assert why(rejected) == {
        "row 4": ["question: no image in the field 'img'; found the fields image, q, a"],
        "row 5": ["question: no image in the field 'img'; found the fields none"],
        "1": [
            "question: row 2: the field 'q' is empty",
            "question: row 3: the field 'a' is empty",
            "annotation: the id 1 occurs twice",  # once with and once without the suffix
            "question: its image or annotation was rejected: the id 1 occurs twice",
        ],
    }
    native.put("a.json", {"a": [], "b": []})
    with pytest.raises(EarthGPTError, match="got 2 lists"):
        native.read(found)
    with pytest.raises(EarthGPTError, match="`fields` takes image, question, answer, type"):
        native.read(card("qa_rows", part, tasks=(Task.VQA,), fields={"picture": "img"}))


def test_qa_lines(tmp_path: Path) -> None:
    found = load_cards()["crsvqa"].variant("text")
    native = Native(tmp_path)
    native.folder = found.folder
    for name in ("1", "2", "3"):
        native.put(f"data/image/{name}.png", png())
    native.put("data/text/1.txt", "What is the theme of this scene\uff1f\r\nport\r\nhow many ships?\r\n3\r\n\r\n")
    native.put("data/text/2.txt", "what is left of the ship?\nwater\nwhere?\n")
    native.put("data/text/3.txt", "")
    native.put("data/text/4.txt", "a?\nb\n")
    records, rejected, _ = native.read(found)
    assert [(turn.question, turn.answer) for turn in records["1"].turns] == [
        ("What is the theme of this scene?", "port"),
        ("how many ships?", "3"),
    ]
    assert [turn.answer for turn in records["2"].turns] == ["water"]
    assert why(rejected) == {
        "2": ["question: line 3: no answer"],
        "3": ["image: nothing valid is left for vqa"],
        "4": ["image: missing image '4'", "question: its image or annotation was rejected: missing image '4'"],
    }


def test_rsivqa_in_its_released_layout(tmp_path: Path) -> None:
    found = load_cards()["rsivqa"].variant("release")
    native = Native(tmp_path)
    native.folder = found.folder
    native.put("HRRSD/OPT2017/JPEGImages/05530.jpg", png())
    native.put("RSIVQA/HRRSD/opt_val_vqa.txt", "05530: does this picture contain bridge?no\n")
    records, _, _ = native.read(found)
    (turn,) = records["HRRSD/05530"].turns
    assert (turn.question, turn.answer) == ("does this picture contain bridge?", "no")


def test_rsvqa_hr_second_test_set(tmp_path: Path) -> None:
    """Rows of other splits have only an id, and the position of a row in the list is not its id."""
    found = load_cards()["rsvqa_hr"].variant("phili")
    (part,) = found.parts
    folder = tmp_path / found.folder
    (folder / part["images"]).mkdir(parents=True)
    (folder / part["images"] / "9.tif").write_bytes(png())
    ask = {"id": 4, "img_id": 9, "type": "presence", "question": "Is a road present?", "answers_ids": [4]}
    rows = {
        "index": ("images", {"id": 9, "questions_ids": [4]}),
        "questions": ("questions", ask),
        "answers": ("answers", {"id": 4, "question_id": 4, "answer": "yes"}),
    }
    for role, (key, row) in rows.items():
        inactive = {"id": 0, "active": False}
        (folder / part[role]).write_text(json.dumps({key: [inactive, {**row, "active": True}]}))
    (record,) = read_records(tmp_path, found)
    assert (record.id, record.turns[0].answer) == ("rsvqa_hr/test/9", "yes")


def test_cards_of_captions_and_questions(tmp_path: Path) -> None:
    sentences = {"images": [{"filename": "1.tif", "split": "val", "sentences": [{"raw": "a"}]}]}
    written = {
        "ucm_captions": sentences,
        "rsitmd": sentences,
        "nwpu_captions": {"port": [{"filename": "1.tif", "split": "val", "raw": "a"}]},
        "crsvqa": [{"image": "1.tif", "question": "Where?", "answer": "left"}],
    }
    for name, content in written.items():
        found = load_cards()[name]
        (part,) = found.parts
        for path in (tmp_path / found.folder / part["annotations"], tmp_path / found.folder / part["images"] / "1.tif"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(json.dumps(content).encode() if path.suffix == ".json" else png())
        (record,) = read_records(tmp_path, found)
        assert (record.split, record.tasks) == ("train" if name == "crsvqa" else "val", found.tasks)


def test_folders(native: Native) -> None:
    native.put("i/aShip/1.png", png())
    native.put("i/small_vehicle/1.png", png())  # same file name in another class
    native.put("i/fog/2.png", png())
    native.put("i/aShip/2.png", b"")
    found = card("folders", {"images": "i"}, tasks=(Task.CLASSIFICATION,), synonyms={"aShip": "ship"})
    records, rejected, _ = native.read(found)
    assert {name: r.label for name, r in records.items()} == {"aShip/1": "ship", "small_vehicle/1": "small vehicle"}
    reasons = why(rejected)
    assert reasons["fog/2"] == ["annotation: unknown class 'fog'"]
    assert "cannot be decoded" in reasons["aShip/2"][0]


def _tiff(bands: int) -> bytes:
    """Return a little-endian TIFF of 2x2 pixels with 16-bit bands; the multispectral EuroSAT has 13 bands."""
    pixels = np.arange(4 * bands, dtype="<u2").tobytes()
    after = 8 + 2 + 10 * 12 + 4
    bits = struct.pack(f"<{bands}H", *[16] * bands)
    entries = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, bands, after), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, after + len(bits)), (277, 3, 1, bands), (278, 3, 1, 2), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + struct.pack("<I", 0) + bits + pixels


def test_multispectral_images_are_not_read_as_rgb(native: Native) -> None:
    """EuroSAT is published as RGB JPEG and as TIFF with 13 bands, in the same class folders."""
    native.put("i/SeaLake/SeaLake_1.jpg", png())
    native.put("i/SeaLake/SeaLake_2.tif", _tiff(13))
    found = card(
        "folders",
        {"images": "i"},
        tasks=(Task.CLASSIFICATION,),
        classes=("sea or lake",),
        synonyms={"SeaLake": "sea or lake"},
    )
    records, rejected, _ = native.read(found)
    assert {name: record.label for name, record in records.items()} == {"SeaLake/SeaLake_1": "sea or lake"}
    reason = why(rejected)["SeaLake/SeaLake_2"][0]
    assert "cannot be decoded: the file has 13 bands and does not say which are red, green and blue" in reason
    chosen = dataclasses.replace(found, stretch=StretchPolicy(bands=(4, 3, 2)))
    records, rejected, _ = native.read(chosen)
    assert "expected one band 4" in why(rejected)["SeaLake/SeaLake_1"][0]
    assert Stretch.from_text(records["SeaLake/SeaLake_2"].stretch).bands == (4, 3, 2)
    bands = np.arange(4 * 13).reshape(4, 13)[:, [3, 2, 1]]  # of the four pixels
    low, high = np.percentile(bands, (2, 98), axis=0)
    expected = np.clip((bands - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(record_pixels(records["SeaLake/SeaLake_2"]).reshape(4, 3), expected)


def test_open_classes(native: Native) -> None:
    native.put("i/train/Nimitz_Class/1.png", png())
    native.put("i/test/Nimitz_Class/1.png", png())
    parts = ({"images": f"i/{split}", "split": split, "prefix": f"{split}/"} for split in ("train", "test"))
    found = card("folders", *parts, tasks=(Task.CLASSIFICATION,), open_classes=True, split_rule=SplitRule.NATIVE)
    records, rejected, _ = native.read(found)
    assert {(record.split, record.label) for record in records.values()} == {
        ("train", "nimitz class"),
        ("test", "nimitz class"),
    }
    assert rejected == []


FOLDERS = {  # card -> class folders of the release and their labels
    "nwpu_resisc45": {"thermal_power_station": "thermal power station", "airplane": "airplane"},
    "eurosat": {"AnnualCrop": "annual crop", "SeaLake": "sea or lake", "River": "river"},
    "ucmerced": {"storagetanks": "storage tanks", "mobilehomepark": "mobile home park", "river": "river"},
    "whu_rs19": {"footballField": "football field", "railwayStation": "railway station", "Airport": "airport"},
    "clrs": {"bare-land": "bare land", "railway-station": "railway station", "park": "park"},
    "nasc_tg2": {"beach": "beach", "rectangularfarmland": "rectangular farmland"},
    "dscr": {"0": "0"},
    "fgscr42": {"Ro-Ro_Ship": "ro ro ship"},
}


CLASSES = {"nwpu_resisc45": 45, "eurosat": 10, "ucmerced": 21, "whu_rs19": 19, "clrs": 25, "nasc_tg2": 10}


@pytest.mark.parametrize("name", FOLDERS)
def test_cards_of_class_folders(name: str, tmp_path: Path) -> None:
    found = load_cards()[name]
    assert len(set(found.classes)) == CLASSES.get(name, 0)
    for variant in (found, *map(found.variant, found.variants)):
        images = tmp_path / variant.folder / variant.parts[0]["images"]
        for folder in FOLDERS[name]:
            (images / folder).mkdir(parents=True)
            (images / folder / "1.png").write_bytes(png())
        records = read_records(tmp_path, variant)
        assert {r.id.split("/")[2]: r.label for r in records} == FOLDERS[name]
        if name in ("clrs", "nasc_tg2"):
            assert {record.split for record in records} == {"test"}
