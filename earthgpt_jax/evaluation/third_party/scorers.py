"""Third-party scorers: the published scoring rules of other projects, to show how much of a result is due to the rule.

Each rule is reproduced from the evaluation code of its project, with its defects; `Rule.file` names the code. A rule
sees the same answers as our metrics: an answer in another box format than the project's is converted to that format
first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.box_rules import (
    earthdial_detection,
    falcon_detection,
    falcon_grounding,
    lhrs_grounding,
    vrsbench_grounding,
)
from earthgpt_jax.evaluation.third_party.text_rules import (
    earthdial_recall,
    falcon_captions,
    geochat_exact,
    geochat_vqa,
    lhrs_classification,
    lhrs_vqa,
    vrsbench_vqa,
)
from earthgpt_jax.records import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One project's rule for one task.

    Attributes:
        compute: predictions -> the value that the project reports, in [0, 1].
        our_metric: our metric that the project's value is usually compared with.
        file: where the rule is in the project's repository.
        description: how it differs from our metric.
    """

    compute: Callable[[Sequence[Prediction]], float]
    our_metric: str
    file: str
    description: str


_SELECTED_TYPES = "equality of lower-case texts; only presence, comparison and rural/urban questions count"
_PLUS_ONE = "IoU with 1 added to each side"
SCORERS: Mapping[str, Mapping[Task, Rule]] = {
    "geochat": {
        Task.CLASSIFICATION: Rule(
            compute=geochat_exact, our_metric="top1", file="geochat/eval/batch_geochat_scene.py",
            description="equality of lower-case texts without spaces and full stops"),
        Task.VQA: Rule(
            compute=geochat_vqa, our_metric="accuracy", file="GeoChat#32 (the repository has no VQA scorer)",
            description=_SELECTED_TYPES),
    },
    "vhm": {
        Task.VQA: Rule(
            compute=geochat_vqa, our_metric="accuracy", file="docs/Data.md", description=_SELECTED_TYPES),
    },
    "lhrs": {
        Task.CLASSIFICATION: Rule(
            compute=lhrs_classification, our_metric="top1", file="main_cls.py",
            description="the class with the longest common substring is taken, so every answer is some class; "
                        "the value is the mean of the classes' recalls"),
        Task.VQA: Rule(
            compute=lhrs_vqa, our_metric="accuracy", file="main_vqa.py",
            description="any substring of the true answer is correct, so an empty answer always is; "
                        "no questions of counts and areas"),
        Task.GROUNDING: Rule(
            compute=lhrs_grounding, our_metric="pr50", file="main_vg.py",
            description=f"{_PLUS_ONE}, of fractions of the image; answers that cannot be parsed are left out"),
    },
    "vrsbench": {
        Task.GROUNDING: Rule(
            compute=vrsbench_grounding, our_metric="pr50", file="eval_fianl/eval_utils.py",
            description=f"{_PLUS_ONE}, on a grid of 100; the box is the first four integers of the answer"),
        Task.VQA: Rule(
            compute=vrsbench_vqa, our_metric="accuracy", file="eval_fianl/eval_vqa_gpt.ipynb",
            description="an answer is correct if the truth is a substring of it "
                        "(the second step, a judgement by a language model, is left out)"),
    },
    "earthdial": {
        task: Rule(compute=earthdial_recall, our_metric=metric, file=f"src/earthdial/eval/{folder}",
                   description="fraction of the truth's tokens, commas included, that the answer contains")
        for task, metric, folder in ((Task.CLASSIFICATION, "top1", "rs_classification/eval.py"),
                                     (Task.VQA, "accuracy", "rs_vqa/eval.py"))
    } | {
        Task(kind.value): Rule(
            compute=earthdial_detection(kind), our_metric="f1", file="src/earthdial/eval/rs_detection/eval.py",
            description="precision, called mAP: a box is correct if its IoU with any object is 0.5, even of another "
                        "class and however many boxes there are on it; missed objects cost nothing")
        for kind in BoxKind
    },
    "falcon": {
        Task.GROUNDING: Rule(
            compute=falcon_grounding, our_metric="pr50", file="eval/src/detection_obb.py",
            description="a box with the wrong number of coordinates has IoU 1"),
        Task.CAPTION: Rule(
            compute=falcon_captions, our_metric="bleu1", file="eval/src",
            description="answer and truth are exchanged; one reference"),
    } | {
        Task(kind.value): Rule(
            compute=falcon_detection(kind), our_metric="ap50", file="eval/evaluation.py",
            description="AP in which the confidence of a box is its IoU with the truth; classes are ignored")
        for kind in BoxKind
    },
}  # fmt: skip


def rules_of(project: str) -> Mapping[Task, Rule]:
    """Return the rules of a project by task.

    Raises:
        EarthGPTError: no rules of this project are known.
    """
    if project not in SCORERS:
        raise EarthGPTError(
            f"no third-party scorer {project!r}{did_you_mean(project, SCORERS)} Scorers: {', '.join(SCORERS)}"
        )
    return SCORERS[project]


def apply_rules(project: str, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return task -> the project's value, for the tasks that it has a rule for."""
    return {
        str(task): rule.compute(rows)
        for task, rule in rules_of(project).items()
        if (rows := [p for p in predictions if p.task == task])
    }
