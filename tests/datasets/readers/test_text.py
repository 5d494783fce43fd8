"""Readers of classes, captions and questions.

No real sample of these formats is at hand: the files are written here from their documented formats, with the
traps that are known of them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind, Square, format_boxes, format_detection, polygon_to_rect, rect_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import Card, SplitRule, UnannotatedImages, load_cards
from earthgpt_jax.datasets.readers import read
from earthgpt_jax.records import Record, Task
from tests.support.native_datasets import Native, card, png, why


@pytest.fixture
def native(tmp_path: Path) -> Native:
    return Native(tmp_path)


# ---------------------------------------------------------------------------------------------- captions
def test_nwpu_captions(native: Native) -> None:
    for name in ("airplane/airplane_001.jpg", "sea_ice/sea_ice_001.jpg", "airplane/airplane_003.jpg"):
        native.put(f"i/{name}", png())
    five = {"raw": "a plane .", "raw_1": " two planes .", "raw_2": "b", "raw_3": "c", "raw_4": "b"}
    rows = {
        "airplane": [
            {"filename": "airplane_001.jpg", "imgid": 0, "split": "train", **five},
            {"filename": "airplane_111.jpg", "imgid": 1, "split": "train", **five},  # some copies lack this image
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


def test_rsitmd_and_ucm_are_karpathy(native: Native) -> None:
    """RSITMD has keywords beside the captions; UCM numbers its TIFF files."""
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


def test_wrong_encoding_is_quarantined_text_by_text(native: Native) -> None:
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


# --------------------------------------------------------------------------------------------- questions
def test_rows_of_questions(native: Native) -> None:
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
            "annotation: the id 1 occurs twice",  # named once with and once without its suffix
            "question: its image or annotation was rejected: the id 1 occurs twice",
        ],
    }
    native.put("a.json", {"a": [], "b": []})
    with pytest.raises(EarthGPTError, match="got 2 lists"):
        native.read(found)
    with pytest.raises(EarthGPTError, match="`fields` takes image, question, answer, type"):
        native.read(card("qa_rows", part, tasks=(Task.VQA,), fields={"picture": "img"}))


def test_lines_of_questions(tmp_path: Path) -> None:
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


def test_rsivqa_as_released(tmp_path: Path) -> None:
    found = load_cards()["rsivqa"].variant("release")
    native = Native(tmp_path)
    native.folder = found.folder
    native.put("HRRSD/OPT2017/JPEGImages/05530.jpg", png())
    native.put("RSIVQA/HRRSD/opt_val_vqa.txt", "05530: does this picture contain bridge?no\n")
    records, _, _ = native.read(found)
    (turn,) = records["HRRSD/05530"].turns
    assert (turn.question, turn.answer) == ("does this picture contain bridge?", "no")


# ----------------------------------------------------------------------------------------------- classes
def _tiff(bands: int) -> bytes:
    """A little-endian TIFF of 2x2 pixels of 16 bits with so many bands, as the multispectral EuroSAT has 13."""
    pixels = np.arange(4 * bands, dtype="<u2").tobytes()
    after = 8 + 2 + 10 * 12 + 4
    bits = struct.pack(f"<{bands}H", *[16] * bands)
    entries = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, bands, after), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, after + len(bits)), (277, 3, 1, bands), (278, 3, 1, 2), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + tags + struct.pack("<I", 0) + bits + pixels


def test_multispectral_images_are_no_rgb(native: Native) -> None:
    """EuroSAT comes as RGB JPEG and as TIFF of 13 bands, in the same class folders."""
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
    assert reason.endswith("cannot be decoded: no format that Pillow knows, or more bands than it reads")


def test_classes_that_no_card_lists(native: Native) -> None:
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


# --------------------------------------------------------------------------- dialogues: LLaVA's and MMRS-1M's
def _row(image: str, *texts: str) -> dict:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"image": image, "conversations": turns}


def test_dialogues(native: Native) -> None:
    native.put("i/x.png", png())
    native.put("i/y.png", png())
    rows = [
        {"id": "1", **_row("x.png", "<image>\nIs it a port?", "Yes", "How many ships?", "")},
        {"id": "2", **_row("x.png", "Where?\n<image>", "left")},
        {"id": "3", **_row("y.png", "Where?", "left", "When?")},
        {"id": "4", "conversations": []},
        {"id": "5", "image_path": "z.png", "conversations": [{"from": "gpt", "value": "a"}]},
        7,
    ]
    native.put("a.json", rows)
    part = {"annotations": "a.json", "images": "i"}
    records, rejected, _ = native.read(card("llava", part, tasks=(Task.VQA,)))
    assert [(t.question, t.answer) for t in records["x"].turns] == [("Is it a port?", "Yes"), ("Where?", "left")]
    assert why(rejected) == {
        "row 3": ["annotation: no image"],
        "row 5": ["annotation: no image"],
        "x": ["question: no answer"],
        "y": ["annotation: row 2: expected alternating human and gpt messages, got human, gpt, human"],
        "z": ["annotation: row 4: expected alternating human and gpt messages, got gpt"],
    }
    native.put("a.json", {})
    with pytest.raises(EarthGPTError, match="expected a list, got dict"):
        native.read(card("llava", part, tasks=(Task.VQA,)))


def test_paths_of_another_machine(native: Native) -> None:
    for name in ("i/one/x.png", "i/two/x.png", "i/z.png"):
        native.put(name, png())
    paths = ("/home/someone/i/one/x.png", "C:\\data\\i\\two\\x.png", "share/z.png", "share/x.png")
    native.put("a.json", [_row(path, "Where?", "left") for path in paths])
    part = {"annotations": "a.json", "images": "i"}
    records, rejected, _ = native.read(card("llava", part, tasks=(Task.VQA,)))
    assert set(records) == {"one/x", "two/x", "share/z"}
    assert why(rejected)["share/x"][0] == "image: several images are called 'share/x.png'"


class Released(Native):
    """A tree as of the released MMRS-1M: data/json/<task>/ beside the tasks' images."""

    def task(self, task: str, *rows: dict, images: tuple[str, ...] = (), file: str = "a.json") -> None:
        self.put(f"data/json/{task}/{file}", list(rows))
        for image in images:
            self.put(f"data/{task}/{image}", png())

    def card(self, task: str, *tasks: Task, **kwargs):
        part = {"annotations": f"data/json/{task}", "images": f"data/{task}", "split": "train"}
        only = {"only": kwargs.pop("only")} if "only" in kwargs else {}
        values = {
            "split_rule": SplitRule.NATIVE,
            "unannotated_images": UnannotatedImages.DROP,
            "open_classes": True,
            **kwargs,
        }
        return card("llava", {**part, **only}, tasks=tasks, **values)


@pytest.fixture
def released(tmp_path: Path) -> Released:
    return Released(tmp_path)


def test_released_captions_leave_the_dialogue(released: Released) -> None:
    ask = "Describe the image."
    released.task("caption", _row("data/caption/UCM/1.tif", *(t for i in range(5) for t in (ask, f"caption {i}"))),
                  images=("UCM/1.tif", "Sydney/1.tif"), file="caption_ucm.json")  # fmt: skip
    released.task("caption", _row("data/caption/Sydney/1.tif", ask, "a bay"), file="caption_syndney.json")
    records, rejected, _ = released.read(released.card("caption", Task.CAPTION))
    assert set(records) == {"UCM/1", "Sydney/1"}  # the same name in two folders
    record = records["UCM/1"]
    assert record.references == tuple(f"caption {i}" for i in range(5))
    assert (record.turns, record.tasks, record.split) == ((), (Task.CAPTION,), "train")
    assert rejected == []


def test_released_classes(released: Released) -> None:
    ask = "What is the category?"
    released.task(
        "classification",
        _row("data/classification/WHU-RS19_split/train/Port/1.jpg", ask, "football_field."),
        _row("data/classification/WHU-RS19_split/test/Port/2.jpg", ask, "port"),
        _row("data/classification/WHU-RS19_split/train/Port/3.jpg", ask, "port", ask, "pond"),
        images=tuple(f"WHU-RS19_split/{path}" for path in ("train/Port/1.jpg", "test/Port/2.jpg", "train/Port/3.jpg")),
    )
    records, rejected, _ = released.read(released.card("classification", Task.CLASSIFICATION))
    assert {record.split: record.label for record in records.values()} == {"train": "football field", "test": "port"}
    assert list(why(rejected).values()) == [["annotation: expected one class, got 'pond', 'port'"]]


def test_released_boxes_come_back_to_pixels(released: Released) -> None:
    """Images are 40x30: the square pads 5 pixels above and below."""
    boxes = {"ship": [(4, 3, 20, 15), (24, 10, 36, 28)], "small vehicle": [(1, 20, 9, 27)]}
    polygons = {name: [rect_to_polygon(*box) for box in found] for name, found in boxes.items()}
    answer = format_detection(polygons, square=Square(40, 30), decimals=2, kind=BoxKind.HBB)
    assert answer.startswith("There are <p>two ships</p>[0.10,0.20,0.50,0.50;")
    ask = "Please detect all objects in this image."
    released.task(
        "detection",
        _row("data/detection/SSDD/1.png", ask, answer),
        _row("data/detection/SSDD/2.png", ask, "There are <p>2 ships</p>[0.10,0.20,0.50,0.50;0.30,0.40,0.30,0.90]."),
        _row("data/detection/SSDD/3.png", ask, "There are no objects in the image."),
        _row("data/detection/SSDD/4.png", ask, "I see a ship."),
        _row("data/detection/SSDD/5.png", ask, "There are <p>2 ships</p>[0.10,0.20,0.50,0.50;0.30,0.4"),
        _row("data/detection/dior/1.png", ask, answer),
        images=tuple(f"SSDD/{i}.png" for i in range(1, 6)),
        file="SSDD/ship.json",
    )
    records, rejected, dropped = released.read(released.card("detection", Task.HBB, only="/(SSDD|SARV2)/"))
    first = records["SSDD/1"]
    assert [item.label for item in first.objects] == ["ship", "ship", "small vehicle"]
    for item, box in zip(first.objects, [*boxes["ship"], *boxes["small vehicle"]], strict=True):
        np.testing.assert_allclose(polygon_to_rect(item.polygon), box, atol=0.2 + 1e-4)  # half of a step
    assert len(records["SSDD/2"].objects) == 1  # a box without width in two decimals
    assert records["SSDD/3"].objects == ()
    reasons = why(rejected)
    assert set(reasons) == {f"SSDD/{i}" for i in (2, 4, 5)}
    assert "no area" in reasons["SSDD/2"][0]
    assert reasons["SSDD/4"][0] == "object: no box in the answer 'I see a ship.'"
    assert "the bracket is not closed" in reasons["SSDD/5"][0]
    assert [event.reason for event in dropped] == ["its path does not match /(SSDD|SARV2)/"]


def test_released_regions(released: Released) -> None:
    def box(*numbers: float) -> str:
        return format_boxes([rect_to_polygon(*numbers)], square=Square(40, 30), decimals=2, kind=BoxKind.HBB)

    def describe(text: str) -> str:
        return f"Please provide a short description for this region in this remote sensing image :{text}"

    def find(phrase: str) -> str:
        return (
            "Please provide the horizontal bounding box coordinate of the region which is described as:"
            f"{phrase} in this remote sensing image"
        )

    one, two, three = box(4, 3, 20, 15), box(24, 10, 36, 28), box(1, 20, 9, 27)
    image = "data/RSVG/1.png"
    released.task(
        "RSVG",  # one record a direction
        _row(image, describe(one), "The tiny ship", describe(two), "A ship in the port", describe(three), "A car"),
        _row(image, find("The tiny ship"), one, find("A car"), three, find("A car"), two),
        _row(image, find("A pier"), "[0.1,0.2,1.3,0.4]", find("A pier"), "I cannot see one [", "Where?", one),
        images=("1.png",),
    )
    found = released.card("RSVG", Task.GROUNDING, Task.REGION_CAPTION)
    records, rejected, _ = released.read(found)
    (item,) = records["1"].objects
    assert (item.label, item.phrase) == ("object", "The tiny ship")
    np.testing.assert_allclose(polygon_to_rect(item.polygon), (4, 3, 20, 15), atol=0.2 + 1e-4)
    assert records["1"].tasks == (Task.GROUNDING, Task.REGION_CAPTION)
    assert [reason.removeprefix("object: ") for reason in why(rejected)["1"]] == [
        "asked in one direction only: box to phrase",
        "ambiguous phrase 'A car': it describes 2 boxes",
        "ambiguous phrase 'A car': it describes 2 boxes",
        "'0.1,0.2,1.3,0.4': 1.3 exceeds the square, whose side is 1",
        "'[': the bracket is not closed",
        "no phrase in 'Where?'",
    ]


# ------------------------------------------------------------------------------------------ the cards themselves
FOLDERS = {  # how the release writes some classes, and what they are called here
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


def _read(root: Path, found: Card) -> list[Record]:
    return [event for event in read(root, found) if isinstance(event, Record)]


@pytest.mark.parametrize("name", FOLDERS)
def test_cards_of_class_folders(name: str, tmp_path: Path) -> None:
    found = load_cards()[name]
    assert len(set(found.classes)) == CLASSES.get(name, 0)
    for variant in (found, *map(found.variant, found.variants)):
        images = tmp_path / variant.folder / variant.parts[0]["images"]
        for folder in FOLDERS[name]:
            (images / folder).mkdir(parents=True)
            (images / folder / "1.png").write_bytes(png())
        records = _read(tmp_path, variant)
        assert {r.id.split("/")[2]: r.label for r in records} == FOLDERS[name]
        if name in ("clrs", "nasc_tg2"):
            assert {record.split for record in records} == {"test"}


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
        (record,) = _read(tmp_path, found)
        assert (record.split, record.tasks) == ("train" if name == "crsvqa" else "val", found.tasks)


def test_card_of_the_second_test_set_of_rsvqa_hr(tmp_path: Path) -> None:
    """Rows of other splits hold only an id; the place of a row in the list is not its id."""
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
    (record,) = _read(tmp_path, found)
    assert (record.id, record.turns[0].answer) == ("rsvqa_hr/test/9", "yes")


def test_cards_of_the_release_share_its_detection_folders_among_them(tmp_path: Path) -> None:
    folders = {
        "optical": ("dior", "dotav2", "FAR1M", "HRRSD", "NWPUVHR10", "RSOD", "UCAS", "VisDrone"),
        "sar": ("HRSID_HBB", "HRSID_OBB", "SARV2", "SSDD"),
        "infrared": (
            "HIT-UAV", "infrared_ship_fusion", "infrared_ship_lwir", "infrared_ship_swir", "IR_peoplecar",
            "IR_security", "IR_ship", "IR_streetscene",
        ),
    }  # fmt: skip
    answer = "There is <p>one ship</p>[0.25,0.25,0.50,0.50] in the image."
    data = tmp_path / "MMRS-1M" / "data"
    for folder in (name for names in folders.values() for name in names):
        image = data / "detection" / folder / "train" / "1.png"
        annotation = data / "json" / "detection" / f"{folder}_detection" / "a.json"
        for path in (image, annotation):
            path.parent.mkdir(parents=True)
        image.write_bytes(png())
        annotation.write_text(json.dumps([_row(f"data/detection/{folder}/train/1.png", "?", answer)]))
    for sensor, names in folders.items():
        records = _read(tmp_path, load_cards()[f"mmrs1m_{sensor}"])
        assert {record.id.split("/")[2] for record in records} == set(names)
        assert {record.sensor.value for record in records} == {sensor}
        assert all(record.objects[0].label == "ship" for record in records)
