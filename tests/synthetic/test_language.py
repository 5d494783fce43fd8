"""Texts about synthetic images are true, and answers cannot be guessed from the questions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from earthgpt_jax.records import Object, Record, Sensor
from earthgpt_jax.synthetic import OBJECTS, SCENES, AreaType, scene_record
from earthgpt_jax.synthetic.language import format_counts

NUMBERS = ("no", "one", "two", "three", "four", "five")
SIZE = 64


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [scene_record(split="train", index=i, size=SIZE) for i in range(500)]


def _centre(item: Object) -> np.ndarray:
    return item.polygon.reshape(4, 2).mean(axis=0)


def _area(item: Object) -> float:
    a, b, _, d = item.polygon.reshape(4, 2).astype(np.float64)
    return float(np.linalg.norm(b - a) * np.linalg.norm(d - a))


def _could_be_in(item: Object, place: str) -> bool:
    """Return whether an object could be considered to be in this region; a permissive criterion."""
    x, y = (_centre(item) / SIZE - 0.5).tolist()
    if place == "center":
        return max(abs(x), abs(y)) < 0.13
    vertical, horizontal = place.split()
    if max(abs(x), abs(y)) < 0.05:
        return False
    return (y < 0.02 if vertical == "upper" else y > -0.02) and (x < 0.02 if horizontal == "left" else x > -0.02)


def _referents(phrase: str, objects: tuple[Object, ...]) -> list[Object]:
    """Return all objects that a phrase may refer to."""
    match = re.fullmatch(
        r"the (?:(large|small|only|leftmost|rightmost|topmost|bottommost|largest|smallest) )?(.*)", phrase
    )
    assert match
    word, rest = match.group(1), match.group(2)
    name, _, place = rest.partition(" in the ")
    same = [o for o in objects if o.label == name]
    if word in ("leftmost", "rightmost", "topmost", "bottommost"):
        axis, sign = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}[word]
        best = min(sign * _centre(o)[axis] for o in same)
        return [o for o in same if sign * _centre(o)[axis] < best + 0.04 * SIZE]
    if word in ("largest", "smallest"):
        sign = 1 if word == "smallest" else -1
        best = min(sign * np.log(_area(o)) for o in same)
        return [o for o in same if sign * np.log(_area(o)) < best + 0.2]
    return [o for o in same if not place or _could_be_in(o, place)]


def test_phrase_is_true_of_exactly_one_object(records: list[Record]) -> None:
    seen = Counter()
    for record in records:
        for item in record.objects:
            seen[bool(item.phrase)] += 1
            if item.phrase:
                referents = _referents(item.phrase, record.objects)
                assert len(referents) == 1, (record.id, item.phrase)
                assert referents[0] is item
    assert seen[True] / seen.total() > 0.8


def test_captions_name_scene_sensor_and_counts(records: list[Record]) -> None:
    cameras = {
        Sensor.OPTICAL: ("optical",),
        Sensor.SAR: ("SAR", "radar"),
        Sensor.INFRARED: ("infrared", "thermal"),
    }
    for record in records:
        counts = Counter(o.label for o in record.objects)
        for caption in record.references:
            low = caption.lower()
            assert SCENES[record.label].noun in low
            assert any(word in caption for word in cameras[record.sensor])
            assert not any(word in caption for s, words in cameras.items() if s is not record.sensor for word in words)
            stated = {
                name: NUMBERS.index(number)
                for name, object_class in OBJECTS.items()
                for number in re.findall(
                    rf"\b({'|'.join(NUMBERS)}) (?:{object_class.plural}|{object_class.name})\b", low
                )
            }
            assert stated == dict(counts), caption
            for side, axis, sign in (
                ("left side", 0, -1),
                ("right side", 0, 1),
                ("upper half", 1, -1),
                ("lower half", 1, 1),
            ):
                if side in caption:
                    assert all(sign * (_centre(o)[axis] - SIZE / 2) > 0 for o in record.objects)
            place = re.search(r"in the ((?:upper|lower) (?:left|right)|center)", caption)
            if place:
                assert len(record.objects) == 1
                assert _could_be_in(record.objects[0], place.group(1))


def test_answers_are_true(records: list[Record]) -> None:
    names = {o.plural: o.name for o in OBJECTS.values()} | {name: name for name in OBJECTS}
    words = "|".join(sorted(names, key=len, reverse=True))
    for record in records:
        counts = Counter(o.label for o in record.objects)
        for turn in record.turns:
            named = [names[word] for word in re.findall(rf"\b({words})\b", turn.question)]
            match turn.question_type:
                case "presence":
                    truth = "yes" if counts[named[0]] else "no"
                case "count":
                    truth = str(counts[named[0]])
                case "comparison":
                    assert counts[named[0]] != counts[named[1]]
                    truth = "yes" if counts[named[0]] > counts[named[1]] else "no"
                case "sensor":
                    truth = record.sensor.value
                case "rural_urban":
                    truth = SCENES[record.label].area_type.value
                case "position":
                    item = max((o for o in record.objects if o.label == named[0]), key=_area)
                    assert _could_be_in(item, turn.answer)
                    truth = turn.answer
                case "object_class":
                    place = re.search(r"in the (?!image)(.*)\?", turn.question)
                    items = [o for o in record.objects if place is None or _could_be_in(o, place.group(1))]
                    assert {o.label for o in items} == {turn.answer}
                    truth = turn.answer
                case _:
                    pytest.fail(f"unknown type {turn.question_type}")
            assert turn.answer == truth, (record.id, turn)


def test_four_to_six_different_questions(records: list[Record]) -> None:
    for record in records:
        assert 4 <= len(record.turns) <= 6
        assert len({turn.question for turn in record.turns}) == len(record.turns)


def test_a_blind_model_is_at_chance(records: list[Record]) -> None:
    """Limit the share of the most frequent answer per question type and per template (object names removed)."""
    words = "|".join(sorted((w for k in OBJECTS.values() for w in (k.plural, k.name)), key=len, reverse=True))
    by_type, by_template, by_class = defaultdict(Counter), defaultdict(Counter), defaultdict(Counter)
    for record in records:
        for turn in record.turns:
            by_type[turn.question_type][turn.answer] += 1
            by_template[re.sub(rf"\b(an? )?({words})\b", "X", turn.question)][turn.answer] += 1
            if turn.question_type == "presence":
                by_class[turn.question][turn.answer] += 1
    limits = {"count": 0.4, "sensor": 0.42, "position": 0.4, "object_class": 0.2}
    for question_type, answers in by_type.items():
        assert max(answers.values()) / answers.total() <= limits.get(question_type, 0.6), (question_type, answers)
    for template, answers in by_template.items():
        if set(answers) <= {"yes", "no", "rural", "urban"}:
            assert max(answers.values()) / answers.total() <= 0.6, (template, answers)
    # Knowing the class in the question does not help much either.
    right = sum(max(answers.values()) for answers in by_class.values())
    assert right / sum(answers.total() for answers in by_class.values()) < 0.68


def test_every_area_type_has_scene_classes() -> None:
    assert {scene.area_type for scene in SCENES.values()} == set(AreaType)


def test_format_counts() -> None:
    assert format_counts({"ship": 2, "bridge": 1}) == "two ships and one bridge"
    assert format_counts({}) == "no objects"
