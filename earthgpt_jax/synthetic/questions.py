"""Questions and answers about an image, balanced so that the question's text alone does not tell the answer.

Every yes/no question is as often yes as no for each class it can name; a class that is absent is drawn as
often as it is present elsewhere (all classes are equally common, see `scenes.CHANCES`).
"""

from __future__ import annotations

import numpy as np

from earthgpt_jax.records import Turn
from earthgpt_jax.synthetic.language import SceneContents, area, arguable, article, region
from earthgpt_jax.synthetic.objects import OBJECTS
from earthgpt_jax.synthetic.scenes import SCENES, AreaType

_MOST = 6
# Images without objects answer every presence question with no; the others make up for it.
_YES_SHARE = 0.55
_ABSENT_COUNT_SHARE = 0.14
# Eight of the fourteen scenes are rural, six urban.
_RURAL_SHARE = 0.75


def scene_questions(view: SceneContents, rng: np.random.Generator) -> tuple[Turn, ...]:
    """Four to six questions of different types."""
    found = [_presence(view, rng), _count(view, rng), _sensor(view, rng)]
    extra = [_comparison(view, rng), _position(view, rng), _object_class(view, rng), _setting(view, rng)]
    wanted = [turn for turn in extra if turn is not None]
    for index in rng.permutation(len(wanted)):
        if len(found) < _MOST:
            found.append(wanted[index])
    if len(found) < 4 and view.objects:
        found.append(_presence(view, rng, besides=found[0].question))
    return tuple(found)


def all_questions(view: SceneContents, rng: np.random.Generator) -> tuple[Turn, ...]:
    """Every question that there is about the view, in random order, for learning to read such images.

    As many absent classes as present ones are asked for, and each comparison goes both ways.
    """
    present = list(view.counts)
    absent = [str(n) for n in rng.permutation([name for name in OBJECTS if name not in view.counts])]
    found = [_is_there(name, present=True, rng=rng) for name in present]
    found += [_is_there(name, present=False, rng=rng) for name in absent[: max(1, len(present))]]
    found += [_how_many(name, view.counts.get(name, 0), rng) for name in [*present, absent[-1]]]
    pairs = [(name, absent[i]) for i, name in enumerate(present)]
    if len(present) == 2 and view.counts[present[0]] != view.counts[present[1]]:
        pairs.append((present[0], present[1]))
    for a, b in pairs:
        found += [_more_than(view, a, b), _more_than(view, b, a)]
    found += [turn for turn in (_sensor(view, rng), _position(view, rng), _object_class(view, rng)) if turn]
    return tuple(found[i] for i in rng.permutation(len(found)))


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _absent(view: SceneContents, rng: np.random.Generator) -> str:
    return _pick(rng, [name for name in OBJECTS if name not in view.counts])


def _presence(view: SceneContents, rng: np.random.Generator, *, besides: str = "") -> Turn:
    while True:
        present = bool(view.objects) and rng.random() < _YES_SHARE
        name = _pick(rng, list(view.counts)) if present else _absent(view, rng)
        turn = _is_there(name, present=present, rng=rng)
        if turn.question != besides:
            return turn


def _is_there(name: str, *, present: bool, rng: np.random.Generator) -> Turn:
    wordings = (
        f"Is there {article(name)} in the image?",
        f"Are there any {OBJECTS[name].plural} in the image?",
        f"Does the image show {article(name)}?",
    )
    return Turn(question=_pick(rng, wordings), answer="yes" if present else "no", question_type="presence")


def _count(view: SceneContents, rng: np.random.Generator) -> Turn:
    absent = not view.objects or rng.random() < _ABSENT_COUNT_SHARE
    name = _absent(view, rng) if absent else _pick(rng, list(view.counts))
    return _how_many(name, view.counts.get(name, 0), rng)


def _how_many(name: str, count: int, rng: np.random.Generator) -> Turn:
    plural = OBJECTS[name].plural
    wordings = (f"How many {plural} are there in the image?", f"What is the number of {plural} in the image?")
    return Turn(question=_pick(rng, wordings), answer=str(count), question_type="count")


def _comparison(view: SceneContents, rng: np.random.Generator) -> Turn | None:
    if not view.objects:
        return None
    names = list(view.counts)
    if len(names) == 2 and view.counts[names[0]] != view.counts[names[1]] and rng.random() < 0.7:
        pair = names
    else:
        pair = [_pick(rng, names), _absent(view, rng)]
    more, fewer = sorted(pair, key=lambda name: -view.counts.get(name, 0))
    yes = rng.random() < 0.5
    return _more_than(view, *((more, fewer) if yes else (fewer, more)))


def _more_than(view: SceneContents, first: str, second: str) -> Turn:
    return Turn(
        question=f"Are there more {OBJECTS[first].plural} than {OBJECTS[second].plural} in the image?",
        answer="yes" if view.counts.get(first, 0) > view.counts.get(second, 0) else "no",
        question_type="comparison",
    )


def _sensor(view: SceneContents, rng: np.random.Generator) -> Turn:
    wording = _pick(
        rng,
        (
            "Which sensor took this image: optical, SAR or infrared?",
            "What kind of sensor was this image taken with?",
        ),
    )
    return Turn(question=wording, answer=view.sensor.value, question_type="sensor")


def _position(view: SceneContents, rng: np.random.Generator) -> Turn | None:
    candidates = []
    for name, count in view.counts.items():
        items = sorted((o for o in view.objects if o.kind.name == name), key=area, reverse=True)
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


def _object_class(view: SceneContents, rng: np.random.Generator) -> Turn | None:
    if len(view.counts) == 1:
        wording = _pick(rng, ("What kind of object is in the image?", "Which class of objects does the image show?"))
        return Turn(question=wording, answer=next(iter(view.counts)), question_type="object_class")
    alone = []
    for item in view.objects:
        others = [o for o in view.objects if o is not item]
        if region(item) and not any(arguable(o, region(item)) for o in others):
            alone.append(item)
    if not alone:
        return None
    item = _pick(rng, alone)
    return Turn(
        question=f"What kind of object is in the {region(item)}?", answer=item.kind.name, question_type="object_class"
    )


def _setting(view: SceneContents, rng: np.random.Generator) -> Turn | None:
    setting = SCENES[view.scene].setting
    if view.objects and setting is AreaType.RURAL and rng.random() > _RURAL_SHARE:
        return None
    wording = _pick(rng, ("Is it a rural or an urban area?", "Is the area in the image rural or urban?"))
    return Turn(question=wording, answer=setting.value, question_type="rural_urban")
