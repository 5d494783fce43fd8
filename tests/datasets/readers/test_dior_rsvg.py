"""DIOR-RSVG: phrases for regions, and splits that list object indices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.boxes import (
    polygon_to_rect,
)
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.records import Task
from tests.support.native_datasets import BOX, CardFolder, png, region_object


def _described(*objects: str) -> str:
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    return f"<annotation><filename>C:\\other\\name.jpg</filename>{size}{''.join(objects)}</annotation>"


class Regions(CardFolder):
    """Four images with 2, 1, 3 and 1 objects, numbered 0 to 6 in the split lists."""

    COUNTS = (2, 1, 3, 1)

    def __init__(self, root: Path):
        super().__init__(root, load_cards()["dior_rsvg"])
        for image, count in enumerate(self.COUNTS, start=1):
            self.put(f"JPEGImages/{image:05d}.jpg", png())
            phrases = [f"phrase {image}.{i}" for i in range(count)]
            self.put(
                f"Annotations/{image:05d}.xml", _described(*(region_object("golffield", p, *BOX) for p in phrases))
            )
        self.lists(train=(0, 2, 3), val=(4, 6), test=(1, 5))

    def lists(self, **indices: tuple[object, ...]) -> None:
        for split, numbers in indices.items():
            self.put(f"{split}.txt", "".join(f"{number}\n" for number in numbers))


@pytest.fixture
def regions(tmp_path: Path) -> Regions:
    return Regions(tmp_path)


def test_an_image_in_several_splits_goes_to_the_strictest(regions: Regions) -> None:
    records, rejected, dropped = regions.records()
    assert {name: record.split for name, record in records.items()} == {
        "00001": "test",  # objects 0 train, 1 test
        "00002": "train",  # 2 train
        "00003": "test",  # 3 train, 4 val, 5 test
        "00004": "val",  # 6 val
    }
    assert {item.phrase: name for name, record in records.items() for item in record.objects} == {
        "phrase 1.1": "00001",
        "phrase 2.0": "00002",
        "phrase 3.2": "00003",
        "phrase 4.0": "00004",
    }
    assert rejected == {}
    assert sorted(dropped) == [
        "of train, but its image is of test",
        "of train, but its image is of test",
        "of val, but its image is of test",
    ]
    record = records["00002"]
    assert record.tasks == (Task.GROUNDING, Task.REGION_CAPTION)
    assert record.objects[0].label == "golf field"
    np.testing.assert_array_equal(polygon_to_rect(record.objects[0].polygon), BOX)


def test_every_test_object_stays_and_no_image_is_in_two_splits(regions: Regions) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(sum(regions.COUNTS))
        lists = dict(zip(("train", "val", "test"), np.split(order, [4, 5]), strict=True))
        regions.lists(**{split: tuple(numbers) for split, numbers in lists.items()})
        records, rejected, dropped = regions.read(regions.card)
        kept = [item for record in records.values() if record.split == "test" for item in record.objects]
        assert len(kept) == len(lists["test"])
        assert (len(records), rejected) == (len(regions.COUNTS), [])
        left_out = sum(event.count for event in dropped)
        assert sum(len(record.objects) for record in records.values()) + left_out == sum(regions.COUNTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "expected the 7 objects of the split lists, numbered 0 to 6; got 5 in 3 files"),
        ("extra", "expected the 7 objects of the split lists, numbered 0 to 6; got 8 in 5 files"),
        ("broken", r"Annotations/00002.xml: not XML: .*; the number of its objects is unknown"),
        ("empty", r"Annotations/00002.xml: not XML: no element found"),
        ("other", r"expected <annotation>, got <HRSC_Image>: another format"),
    ],
)
def test_an_extra_or_missing_file_is_refused(regions: Regions, change: str, message: str) -> None:
    if change == "missing":
        (regions.root / regions.folder / "Annotations" / "00001.xml").unlink()
    contents = {
        "extra": ("00000.xml", _described(region_object("ship", "a ship", *BOX))),
        "broken": ("00002.xml", _described(region_object("ship", "a ship", *BOX))[:-30]),
        "empty": ("00002.xml", ""),
        "other": ("00002.xml", "<HRSC_Image/>"),
    }
    if change in contents:
        name, text = contents[change]
        regions.put(f"Annotations/{name}", text)
    with pytest.raises(EarthGPTError, match=message):
        regions.records()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"val": (4, 6, 0)}, "val.txt: 0 is also in train"),
        ({"val": (4, 6, 6)}, "val.txt: 6 is also in val"),
        ({"val": (4, "6.0")}, "expected one object index per line, got '6.0'"),
        ({"val": (4,)}, "expected the 6 objects of the split lists, numbered 0 to 5; got 7"),
        ({"train": (7, 2, 3)}, "expected the 7 objects of the split lists, numbered 0 to 7; got 7"),
        ({"train": (), "val": (), "test": ()}, "expected the 0 objects of the split lists; got 7"),
    ],
)
def test_split_lists_must_number_each_object_once(regions: Regions, lists: dict, message: str) -> None:
    regions.lists(**lists)
    with pytest.raises(EarthGPTError, match=message):
        regions.records()


def test_invalid_objects_are_numbered_and_quarantined(regions: Regions) -> None:
    regions.put(
        "Annotations/00003.xml",
        _described(
            region_object("ship", "", *BOX),
            region_object("ship", "a ship", 1, 2, "nan", 12),
            region_object("ship", " the  ship\n of the port ", *BOX),
        ),
    )
    regions.put("Annotations/00004.xml", _described(region_object("balloon", "a balloon", *BOX)))
    regions.lists(train=(0, 1, 2, 3, 4, 5, 6), val=(), test=())
    (regions.root / regions.folder / "JPEGImages" / "00002.jpg").write_bytes(b"not an image")
    records, rejected, _ = regions.records()
    assert [item.phrase for item in records["00003"].objects] == ["the ship of the port"]
    assert rejected["00003"] == ["object: no <description>", "object: bad number 'nan'"]
    assert rejected["00004"][0] == "object: unknown class 'balloon'"
    assert "cannot be decoded" in rejected["00002"][0]


def test_a_description_in_another_encoding_is_quarantined(regions: Regions) -> None:
    text = _described(region_object("ship", "a caf\xe9", *BOX), region_object("ship", "a ship", *BOX))
    regions.put("Annotations/00001.xml", text.encode("latin-1"))
    records, rejected, _ = regions.records()
    assert [item.phrase for item in records["00001"].objects] == ["a ship"]
    regions.lists(train=(1, 2, 3), val=(4, 6), test=(0, 5))
    records, rejected, _ = regions.records()
    assert rejected["00001"][0] == "object: wrong encoding: expected UTF-8"


def test_an_image_without_objects_has_no_split(regions: Regions) -> None:
    regions.put("Annotations/00009.xml", _described())
    regions.put("JPEGImages/00009.jpg", png())
    records, rejected, _ = regions.records()
    assert len(records) == 4
    assert rejected == {"00009": ["annotation: no objects, so no split"]}
