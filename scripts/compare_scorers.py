"""Compare our copies of other projects' scoring rules with the projects' own code.

Generates answers, clean and adversarial, as files in the format of each project; scores them with the code of a
checkout of the project and with `earthgpt score --as`; prints the largest difference of any figure as a Markdown table.

    python scripts/compare_scorers.py CHECKOUTS [--count 1000] [--project NAME]

CHECKOUTS has one folder per project, as `git clone` names it: VRSBench, RSEvalKit, LHRS-Bot, GeoChat, EarthDial,
Falcon; for RSCoVLM mmrotate (branch 1.x), mmdetection and mllm-mmrotate. Their code needs scikit-learn,
imbalanced-learn, scikit-image, nltk, rouge-score, rouge, pandas, matplotlib, seaborn and torch. Functions are taken
from their files without running the rest, which would load models. Their code is executed: read it before.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scorer_comparison.answers import Figures
from scorer_comparison.earthdial import earthdial_captions, earthdial_classification, earthdial_detection, earthdial_vqa
from scorer_comparison.falcon import (
    falcon_captions,
    falcon_classification,
    falcon_grounding,
    falcon_horizontal,
    falcon_multi_label,
    falcon_oriented,
    falcon_vqa,
)
from scorer_comparison.geochat import geochat_scene
from scorer_comparison.lhrs import lhrs_classification, lhrs_grounding, lhrs_vqa
from scorer_comparison.rscovlm import rscovlm_detection
from scorer_comparison.vhm import vhm_boxes, vhm_count, vhm_multi_label, vhm_presence, vhm_text
from scorer_comparison.vrsbench import vrsbench_grounding, vrsbench_vqa

from earthgpt_jax.evaluation.third_party import formats, scorers

Generator = Callable[[Path, random.Random, int, bool], tuple[Any, Figures, str]]

COMPARISONS: Mapping[str, Sequence[Generator]] = {
    "vrsbench": (vrsbench_grounding, vrsbench_vqa),
    "vhm": (vhm_text, vhm_presence, vhm_count, vhm_multi_label, vhm_boxes),
    "lhrs": (lhrs_classification, lhrs_vqa, lhrs_grounding),
    "geochat": (geochat_scene,),
    "earthdial": (earthdial_classification, earthdial_vqa, earthdial_detection, earthdial_captions),
    "falcon": (
        falcon_grounding,
        falcon_oriented,
        falcon_horizontal,
        falcon_classification,
        falcon_multi_label,
        falcon_vqa,
        falcon_captions,
    ),
    "rscovlm": (rscovlm_detection,),
}


def largest_difference(project: str, document: Any, theirs: Figures, task: str) -> tuple[float, str]:
    """Return the largest difference of a figure, and its name."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "answers.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        predictions = formats.read(path, file_format=formats.FORMATS[project], task=task)
    ours = scorers.figures(project, predictions)[task]
    if missing := theirs.keys() - ours.keys():
        raise SystemExit(f"{project}, {task}: we have no figure {sorted(missing)}; ours are {sorted(ours)}")
    return max((abs(ours[key] - float(value)), key) for key, value in theirs.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="answers of each kind (default: 1000)")
    parser.add_argument("--project", choices=COMPARISONS, help="one project alone")
    arguments = parser.parse_args()
    root = arguments.checkouts.resolve()
    print("| project | rule | figures | answers | largest difference, clean | adversarial |")
    print("|---|---|---:|---:|---:|---:|")
    for project, generators in COMPARISONS.items():
        if arguments.project not in (None, project):
            continue
        for generator in generators:
            results = []
            for hostile in (False, True):
                rng = random.Random(f"{generator.__name__} {hostile}")
                document, theirs, task = generator(root, rng, arguments.count, hostile)
                results.append(largest_difference(project, document, theirs, task))
            rule = generator.__name__.removeprefix(f"{project}_").replace("_", " ")
            cells = [f"{value:.1e}" + (f" ({name})" if value > 1e-9 else "") for value, name in results]
            print(f"| {project} | {rule} | {len(theirs)} | {arguments.count} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
