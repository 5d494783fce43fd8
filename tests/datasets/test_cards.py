"""Test cards: those of the package load, labels and splits follow the card, mistakes in a card are reported."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SPLITS, Card, Role, SplitRule, load_card, load_cards, select_cards
from earthgpt_jax.datasets.readers import FORMATS
from earthgpt_jax.records import Task

CARD = """
name: x
title: X
sensor: sar
tasks: [hbb]
format: voc
folder: sar/X
layout: {annotations: a, images: i}
classes: [ship, t junction]
synonyms: {Boat: ship}
licence: none
"""


def _load(tmp_path: Path, text: str) -> Card:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_card(path)


def test_every_card_and_variant_is_complete() -> None:
    found = load_cards()
    assert "hit_uav" in found
    for name, card in found.items():
        for each in (card, *(card.variant(variant) for variant in card.variants)):
            assert each.name == name
            assert each.format in FORMATS
            assert each.parts
            assert each.licence
            assert each.obtain
            assert each.notes
            assert all(label == label.lower() for label in each.classes)
            named = bool(each.classes) or each.open_classes
            assert named == bool(set(each.tasks) - {Task.CAPTION, Task.VQA})
            # Counts of official splits do not apply to splits by hash.
            assert each.split_rule is SplitRule.NATIVE or not set(SPLITS) & set(each.expected)
    assert found["hit_uav"].parts[0]["annotations"] == "rotate_xml"


SOURCES = {  # of MMRS-1M: 5 for captions, 4 for VQA, 7 for classification, 17 for detection, 1 for grounding
    "nwpu_captions", "rsicd", "rsitmd", "sydney_captions", "ucm_captions",
    "floodnet_vqa", "rsvqa_lr", "rsivqa", "crsvqa",
    "nwpu_resisc45", "eurosat", "ucmerced", "whu_rs19", "rsscn7", "dscr", "fgscr42",
    "dota", "dior", "fair1m", "nwpu_vhr10", "hrrsd", "rsod", "ucas_aod", "visdrone", "air_sarship", "ssdd", "hrsid",
    "hit_uav", "sea_shipping", "infrared_security", "aerial_mancar", "double_light_vehicle", "oceanic_ship",
    "dior_rsvg",
}  # fmt: skip
ZERO_SHOT = {"clrs", "nasc_tg2", "rsvqa_hr", "mar20", "hrsc2016"}


def test_roles_follow_the_paper() -> None:
    found = load_cards()
    assert len(SOURCES) == 34
    assert {name for name, card in found.items() if card.role is Role.TRAINED} == SOURCES
    assert {name for name, card in found.items() if card.role is Role.ZERO_SHOT} == ZERO_SHOT
    assert Counter(found[name].sensor.value for name in SOURCES) == {"optical": 25, "sar": 3, "infrared": 6}


def test_uncertain_entries_are_listed_under_unverified_only() -> None:
    for name, card in load_cards().items():
        prose = " ".join((card.title, card.licence, card.obtain, *card.notes)).lower()
        assert "unverified" not in prose, name
        assert "to be had" not in prose, name
        for entry in card.unverified:
            kind = entry.partition(".")[2]
            assert not kind or kind in card.expected, (name, entry)


def test_canonical_labels(tmp_path: Path) -> None:
    card = _load(tmp_path, CARD)
    assert [card.label(n) for n in ("Ship", "Boat", "T junction", "T_Junction", "boat", "")] == [
        "ship", "ship", "t junction", "t junction", "", "",
    ]  # fmt: skip


def test_hash_splits_have_their_fractions_and_are_stable(tmp_path: Path) -> None:
    card = _load(tmp_path, CARD)
    counts = Counter(card.split(str(i), "") for i in range(5000))
    assert [counts[split] / 5000 for split in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    assert [card.split(n, "") for n in ("1", "2", "3")] == [card.split(n, "val") for n in ("1", "2", "3")]


def test_native_and_name_splits(tmp_path: Path) -> None:
    native = _load(tmp_path, CARD + "split: {rule: native}")
    assert native.split_rule is SplitRule.NATIVE
    assert [native.split("1", s) for s in ("train", "restval", "val", "test")] == ["train", "train", "val", "test"]
    with pytest.raises(EarthGPTError, match="got 'dev'"):
        native.split("1", "dev")
    named = _load(tmp_path, CARD + "split: {rule: name, test: '[19]$'}")
    splits = {i: named.split(f"{i:06d}", "") for i in range(2000)}
    assert {i for i, split in splits.items() if split == "test"} == {i for i in splits if i % 10 in (1, 9)}
    assert Counter(splits.values())["val"] / 1600 == pytest.approx(1 / 8, abs=0.03)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "expected a group of fields"),
        ("a: [", "cannot be read as YAML"),
        (CARD + "colour: red", "colour: unknown field"),
        (CARD.replace("sensor: sar", "sensor: sonar"), "sensor: expected one of optical, sar, infrared, got 'sonar'"),
        (CARD.replace("title: X\n", ""), "title: missing"),
        (CARD.replace("Boat: ship", "Boat: boat"), "synonyms lead to boat"),
        (CARD + "split: {rule: name, test: '['}", "split.test: expected a regular expression"),
        (CARD.replace("name: x", "name: ../x"), "expected a name or a path below the folder of all datasets"),
        (CARD.replace("folder: sar/X", "folder: /etc"), "expected a name or a path below"),
        (CARD.replace("{Boat: ship}", "[boat]"), "synonyms: expected dict"),
        (CARD + "tile: {size: 1.5}", "tile"),
        ("a: &a [1]\nb: [*a, *a]", "aliases"),
        (CARD + "notes: [a trap: here]", r"notes\[0\]: expected str, got .*quote a text that contains a colon"),
    ],
)
def test_mistakes_in_a_card_are_reported(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(EarthGPTError, match=message):
        _load(tmp_path, text)


def test_unknown_cards_and_variants() -> None:
    assert [card.name for card in select_cards(["dota", "hit_uav"])] == ["dota", "hit_uav"]
    with pytest.raises(EarthGPTError, match=r"no card for nonsense\. Cards: .*dota"):
        select_cards(["nonsense"])
    with pytest.raises(EarthGPTError, match="no variant 'z'; it has official, normal_xml"):
        load_cards()["hit_uav"].variant("z")
    with pytest.raises(EarthGPTError, match="no card for nonsense:z"):
        select_cards(["nonsense:z"])


def test_a_variant_is_selected_after_a_colon() -> None:
    (rotated,) = select_cards(["dior:rotated"])
    assert (rotated.name, rotated.format) == ("dior", "rotated_voc")
    with pytest.raises(EarthGPTError, match="no variant 'z'"):
        select_cards(["dior:z"])


def test_a_card_of_your_own_is_selected_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(CARD)
    assert [card.name for card in select_cards(["dota", str(path)])] == ["dota", "x"]
    path.write_text(CARD.replace("name: x", "name: dota"))
    with pytest.raises(EarthGPTError, match="expected a new name, got 'dota'"):
        select_cards([str(path)])
    with pytest.raises(EarthGPTError, match=r"absent\.yaml: cannot be read: No such file"):
        select_cards([str(tmp_path / "absent.yaml")])


def test_open_classes_accept_unlisted_names(tmp_path: Path) -> None:
    card = _load(tmp_path, CARD + "open_classes: true")
    assert [card.label(name) for name in ("Boat", "Fishing_Boat", " ")] == ["ship", "fishing boat", ""]
