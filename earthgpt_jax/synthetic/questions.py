"""Questions and answers about an image, balanced so that the answer cannot be guessed from the question.

Yes/no questions have both answers equally often for each class that they name. A class is asked about in images without
it as often as in images with it; all classes are equally common (`scenes.CLASS_PROBABILITIES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from earthgpt_jax.records import Turn
from earthgpt_jax.synthetic.language import SceneContents, area, article, may_be_in, region
from earthgpt_jax.synthetic.objects import OBJECTS
from earthgpt_jax.synthetic.scenes import SCENES, AreaType

_T = TypeVar("_T")

_MAX_QUESTIONS = 6
# In images without objects, the answer to every presence question is no; other images compensate for it.
_YES_SHARE = 0.55
_ABSENT_COUNT_SHARE = 0.14
# Eight of the fourteen scene classes are rural and six are urban; asking less often about rural ones balances this.
_RURAL_SHARE = 0.75


def scene_questions(contents: SceneContents, rng: np.random.Generator) -> tuple[Turn, ...]:
    """Return four to six questions of different types."""
    questions = [_presence(contents, rng), _count(contents, rng), _sensor(contents, rng)]
    extra = [
        _comparison(contents, rng),
        _position(contents, rng),
        _object_class(contents, rng),
        _area_type(contents, rng),
    ]
    possible = [question for question in extra if question is not None]
    for index in rng.permutation(len(possible)):
        if len(questions) < _MAX_QUESTIONS:
            questions.append(possible[index])
    if len(questions) < 4 and contents.objects:
        questions.append(_presence(contents, rng, exclude=questions[0].question))
    return tuple(questions)


def all_questions(contents: SceneContents, rng: np.random.Generator) -> tuple[Turn, ...]:
    """Return every possible question about an image in random order, for training models to read images.

    The number of absent classes equals that of present ones, and each comparison is made in both directions.
    """
    present = list(contents.counts)
    absent = [str(n) for n in rng.permutation([name for name in OBJECTS if name not in contents.counts])]
    questions = [_presence_question(name, present=True, rng=rng) for name in present]
    questions += [_presence_question(name, present=False, rng=rng) for name in absent[: max(1, len(present))]]
    questions += [_count_question(name, contents.counts.get(name, 0), rng) for name in [*present, absent[-1]]]
    pairs = [(name, absent[i]) for i, name in enumerate(present)]
    if len(present) == 2 and contents.counts[present[0]] != contents.counts[present[1]]:
        pairs.append((present[0], present[1]))
    for a, b in pairs:
        questions += [_comparison_question(contents, a, b), _comparison_question(contents, b, a)]
    optional = (_sensor(contents, rng), _position(contents, rng), _object_class(contents, rng))
    questions += [question for question in optional if question]
    return tuple(questions[i] for i in rng.permutation(len(questions)))


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _absent_class(contents: SceneContents, rng: np.random.Generator) -> str:
    return _pick(rng, [name for name in OBJECTS if name not in contents.counts])


def _presence(contents: SceneContents, rng: np.random.Generator, *, exclude: str = "") -> Turn:
    while True:
        present = bool(contents.objects) and rng.random() < _YES_SHARE
        name = _pick(rng, list(contents.counts)) if present else _absent_class(contents, rng)
        turn = _presence_question(name, present=present, rng=rng)
        if turn.question != exclude:
            return turn


def _presence_question(name: str, *, present: bool, rng: np.random.Generator) -> Turn:
    templates = (
        f"Is there {article(name)} in the image?",
        f"Are there any {OBJECTS[name].plural} in the image?",
        f"Does the image show {article(name)}?",
    )
    return Turn(question=_pick(rng, templates), answer="yes" if present else "no", question_type="presence")


def _count(contents: SceneContents, rng: np.random.Generator) -> Turn:
    absent = not contents.objects or rng.random() < _ABSENT_COUNT_SHARE
    name = _absent_class(contents, rng) if absent else _pick(rng, list(contents.counts))
    return _count_question(name, contents.counts.get(name, 0), rng)


def _count_question(name: str, count: int, rng: np.random.Generator) -> Turn:
    plural = OBJECTS[name].plural
    templates = (f"How many {plural} are there in the image?", f"What is the number of {plural} in the image?")
    return Turn(question=_pick(rng, templates), answer=str(count), question_type="count")


def _comparison(contents: SceneContents, rng: np.random.Generator) -> Turn | None:
    if not contents.objects:
        return None
    names = list(contents.counts)
    if len(names) == 2 and contents.counts[names[0]] != contents.counts[names[1]] and rng.random() < 0.7:
        pair = names
    else:
        pair = [_pick(rng, names), _absent_class(contents, rng)]
    more, fewer = sorted(pair, key=lambda name: -contents.counts.get(name, 0))
    yes = rng.random() < 0.5
    return _comparison_question(contents, *((more, fewer) if yes else (fewer, more)))


def _comparison_question(contents: SceneContents, first: str, second: str) -> Turn:
    return Turn(
        question=f"Are there more {OBJECTS[first].plural} than {OBJECTS[second].plural} in the image?",
        answer="yes" if contents.counts.get(first, 0) > contents.counts.get(second, 0) else "no",
        question_type="comparison",
    )


def _sensor(contents: SceneContents, rng: np.random.Generator) -> Turn:
    question = _pick(
        rng,
        (
            "Which sensor took this image: optical, SAR or infrared?",
            "What kind of sensor was this image taken with?",
        ),
    )
    return Turn(question=question, answer=contents.sensor.value, question_type="sensor")


def _position(contents: SceneContents, rng: np.random.Generator) -> Turn | None:
    candidates = []
    for name, count in contents.counts.items():
        items = sorted((o for o in contents.objects if o.object_class.name == name), key=area, reverse=True)
        if not region(items[0]):
            continue
        if count == 1:
            candidates.append((f"Where is the {name} in the image?", region(items[0])))
        elif area(items[0]) > 1.3 * area(items[1]):
            candidates.append((f"Where is the largest {name} in the image?", region(items[0])))
    if not candidates:
        return None
    question, answer = _pick(rng, candidates)
    return Turn(question=question, answer=answer, question_type="position")


def _object_class(contents: SceneContents, rng: np.random.Generator) -> Turn | None:
    if len(contents.counts) == 1:
        question = _pick(rng, ("What kind of object is in the image?", "Which class of objects does the image show?"))
        return Turn(question=question, answer=next(iter(contents.counts)), question_type="object_class")
    alone = []
    for item in contents.objects:
        others = [o for o in contents.objects if o is not item]
        if region(item) and not any(may_be_in(o, region(item)) for o in others):
            alone.append(item)
    if not alone:
        return None
    item = _pick(rng, alone)
    return Turn(
        question=f"What kind of object is in the {region(item)}?",
        answer=item.object_class.name,
        question_type="object_class",
    )


def _area_type(contents: SceneContents, rng: np.random.Generator) -> Turn | None:
    area_type = SCENES[contents.scene].area_type
    if contents.objects and area_type is AreaType.RURAL and rng.random() > _RURAL_SHARE:
        return None
    question = _pick(rng, ("Is it a rural or an urban area?", "Is the area in the image rural or urban?"))
    return Turn(question=question, answer=area_type.value, question_type="rural_urban")
