"""Readers on real samples: exact counts, and different formats of a dataset agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.boxes import (
    polygon_to_rect,
)
from earthgpt_jax.datasets.build.counts import BuildCounts
from earthgpt_jax.datasets.cards import Card, load_cards
from earthgpt_jax.datasets.readers import missing_paths, read
from earthgpt_jax.records import Record, Task

# (card, variant) -> native and kept counts (images, objects, questions, captions), from the README of the samples
COUNTS = {
    ("hit_uav", ""): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("hit_uav", "normal_xml"): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("hit_uav", "normal_json"): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("hit_uav", "rotate_json"): ((90, 916, 0, 0), (90, 909, 0, 0)),
    ("ssdd_yolo", ""): ((100, 221, 0, 0), (100, 221, 0, 0)),
    ("ssdd", ""): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("ssdd", "voc"): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("ssdd", "segments"): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("ssdd", "coco"): ((4, 8, 0, 0), (4, 8, 0, 0)),
    ("dota", ""): ((4, 587, 0, 0), (4, 585, 0, 0)),  # two boxes of a tile have zero width
    ("rsicd", ""): ((130, 0, 0, 650), (130, 0, 0, 650)),
    ("rsscn7", ""): ((42, 0, 0, 0), (42, 0, 0, 0)),
    ("rsvqa_lr", ""): ((10, 0, 600, 0), (6, 0, 600, 0)),  # four rows are inactive
    ("rsvqa_hr", ""): ((9, 0, 901, 0), (9, 0, 901, 0)),
    ("sydney_captions", ""): ((4, 0, 0, 20), (4, 0, 0, 20)),
    ("rsivqa", ""): ((142, 0, 161, 0), (141, 0, 161, 0)),  # UCM 4, Sydney 4, RSICD 130, DOTA 3 of 4
    ("hrrsd", ""): ((30, 145, 0, 0), (30, 145, 0, 0)),
    ("nwpu_vhr10", ""): ((30, 284, 0, 0), (30, 284, 0, 0)),
    ("floodnet_vqa", ""): ((68, 0, 200, 0), (68, 0, 200, 0)),
}


def _real(root: Path, name: str, variant: str = "") -> list:
    found = load_cards()[name]
    return list(read(root, found.variant(variant) if variant else found))


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "variant"), COUNTS)
def test_counts_of_real_samples(realdata: Path, name: str, variant: str) -> None:
    counts = BuildCounts()
    for event in _real(realdata, name, variant):
        counts.add(event)
    counts.check(name)
    native, kept = COUNTS[name, variant]
    assert tuple(row["native"] for row in counts.items.values()) == native
    assert tuple(row["kept"] for row in counts.items.values()) == kept


@pytest.mark.realdata
def test_every_card_with_samples_has_counts(realdata: Path) -> None:
    expected = {
        (name, variant)
        for name, found in load_cards().items()
        for variant in ("", *found.variants)
        if _has_samples(realdata, found.variant(variant) if variant else found)
    }
    assert expected == set(COUNTS)


def _has_samples(root: Path, found: Card) -> bool:
    """Return whether there are samples of this dataset."""
    lists = [set(part.values()) for part in found.parts]
    absent = set(missing_paths(root / found.folder, found))
    return (root / found.folder).is_dir() and any(not paths & absent for paths in lists)


@pytest.mark.realdata
def test_hit_uav_dialects_agree(realdata: Path) -> None:
    sets = {
        variant: {r.id: r for r in _real(realdata, "hit_uav", variant) if isinstance(r, Record)}
        for variant in ("", "normal_xml", "normal_json", "rotate_json")
    }
    assert len({frozenset(records) for records in sets.values()}) == 1
    boxes = 0
    for name, rotated in sets[""].items():
        others = {variant: records[name] for variant, records in sets.items() if variant}
        for other in others.values():
            assert [o.label for o in other.objects] == [o.label for o in rotated.objects]
            assert other.image == rotated.image
        for i, item in enumerate(rotated.objects):
            np.testing.assert_allclose(others["rotate_json"].objects[i].polygon, item.polygon, atol=0.01)
            xml, js = (others[v].objects[i].polygon for v in ("normal_xml", "normal_json"))
            np.testing.assert_array_equal(xml, js)
            horizontal = np.clip(polygon_to_rect(item.polygon), 0, (640, 512, 640, 512))
            np.testing.assert_allclose(polygon_to_rect(xml), horizontal, atol=2.0)
            boxes += 1
        assert rotated.tasks[:2] == (Task.HBB, Task.OBB)
        assert others["normal_xml"].tasks[0] is Task.HBB
        assert Task.OBB not in others["normal_xml"].tasks
    assert boxes == 909


@pytest.mark.realdata
def test_ssdd_formats_agree(realdata: Path) -> None:
    sets = [
        {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "ssdd", v) if isinstance(r, Record)}
        for v in ("", "voc", "segments", "coco")
    ]
    for name, rotated in sets[0].items():
        for other in sets[1:]:
            for a, b in zip(rotated.objects, other[name].objects, strict=True):
                np.testing.assert_allclose(polygon_to_rect(a.polygon), polygon_to_rect(b.polygon), atol=9)
        for a, b in zip(sets[2][name].objects, sets[3][name].objects, strict=True):
            np.testing.assert_allclose(a.polygon, b.polygon, atol=6)
    assert sets[0]["000001"].split == "test"  # 1 and 9 are the official test set
    assert {sets[0][n].split for n in ("000002", "000006", "000015")} <= {"train", "val"}


@pytest.mark.realdata
def test_details_of_real_samples(realdata: Path) -> None:
    vhr = {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "nwpu_vhr10") if isinstance(r, Record)}
    np.testing.assert_array_equal(vhr["009"].objects[2].polygon, [652, 73, 694, 73, 694, 123, 652, 123])
    assert (vhr["009"].image, vhr["009"].height) == (b"", 0)
    hrrsd = {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "hrrsd") if isinstance(r, Record)}
    assert (hrrsd["00019"].width, hrrsd["00019"].height) == (1597, 1837)
    dota = {r.id.rsplit("/", 1)[1]: r for r in _real(realdata, "dota") if isinstance(r, Record)}
    assert sum(o.difficult for r in dota.values() for o in r.objects) == 71 + 5 - 2
    assert dota["P0003"].objects[0].label == "small vehicle"
    scenes = Counter(r.label for r in _real(realdata, "rsscn7") if isinstance(r, Record))
    assert set(scenes.values()) == {6}
    assert len(scenes) == 7
    flood = [t for r in _real(realdata, "floodnet_vqa") if isinstance(r, Record) for t in r.turns]
    assert sum(turn.answer.isdigit() for turn in flood) == 28
    rsvqa = [r for r in _real(realdata, "rsvqa_lr") if isinstance(r, Record)]
    assert {r.id for r in rsvqa} == {f"rsvqa_lr/train/{i}" for i in (72, 102, 465)} | {
        f"rsvqa_lr/val/{i}" for i in (491, 530, 543)
    }
    assert rsvqa[0].turns[1].question == "What is the number of roads?"
    assert (rsvqa[0].turns[1].answer, rsvqa[0].turns[1].question_type) == ("69", "count")
