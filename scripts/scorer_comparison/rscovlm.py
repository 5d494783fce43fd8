"""Scores of generated answers by the code of RSCoVLM: mmrotate, mmdetection and mllm-mmrotate."""

from __future__ import annotations

import random
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from scorer_comparison.answers import Entries, Figures, int_box, jittered
from scorer_comparison.checkouts import functions


class _NoPool:
    """Stands for a pool of processes: runs in this one."""

    def __init__(self, count: int) -> None:
        del count

    def starmap(self, function: Callable[..., Any], arguments: Any) -> list[Any]:
        return [function(*values) for values in arguments]

    def close(self) -> None:
        pass


def _quad_ious(boxes1: Any, boxes2: Any) -> Any:
    """Stand for the compiled IoU of mmcv: the IoU of polygons, by shapely."""
    import torch

    from earthgpt_jax.evaluation.metrics.iou import obb_ious

    return torch.from_numpy(obb_ious(np.asarray(boxes1, float)[:, :8], np.asarray(boxes2, float)[:, :8]))


def rscovlm_detection(root: Path, rng: random.Random, count: int, hostile: bool) -> tuple[Entries, Figures, str]:
    import torch

    names = ["harbor", "plane", "ship"]
    entries: Entries = []
    images = []
    for i in range(count):
        truths = [[*int_box(rng, 800), rng.randrange(3)] for _ in range(rng.choice([1, 2, 3]))]
        boxes = [[*jittered(rng, box[:4], 800, 60), rng.choice([box[4], box[4], rng.randrange(3)])] for box in truths]
        if hostile and rng.random() < 0.5:
            boxes = rng.choice([[], boxes * 2, boxes[:1], truths + boxes])
        texts = [
            [f"{x0},{y0},{x1},{y0},{x1},{y1},{x0},{y1} {names[k]}" for x0, y0, x1, y1, k in group]
            for group in (boxes, truths)
        ]
        broken = ["1,2,3 ship", "nothing", "1,2,30,2,30,40,1,40"] if hostile else []
        entries.append(
            {"file_name": f"{i}.png", "output": "\n".join(texts[0] + broken), "ground_truth": "\n".join(texts[1])}
        )
        quads = [[[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1, _ in group] for group in (boxes, truths)]
        images.append(
            [
                (np.array(quad, float).reshape(-1, 8), np.array([box[4] for box in group], int))
                for quad, group in zip(quads, (boxes, truths), strict=True)
            ]
        )
    average_precision = functions(root / "mmdetection/mmdet/evaluation/functional/mean_ap.py", "average_precision")
    theirs = functions(
        root / "mmrotate/mmrotate/evaluation/functional/mean_ap.py",
        "tpfp_default",
        "get_cls_results",
        "eval_rbbox_map",
        torch=torch,
        box_iou_quadri=_quad_ious,
        average_precision=average_precision.average_precision,
        get_context=lambda kind: types.SimpleNamespace(Pool=_NoPool),
        print_map_summary=lambda *values, **options: None,
    )
    results = [
        [np.c_[boxes[labels == k], np.ones(int((labels == k).sum()))] for k in range(3)]
        for (boxes, labels), _ in images
    ]
    truth = [
        {
            "bboxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
            "labels_ignore": torch.zeros(0),
            "bboxes_ignore": torch.zeros(0, 8),
        }
        for _, (boxes, labels) in images
    ]
    stable = mock.patch.object(np, "argsort", lambda values: np.asarray(values).argsort(kind="stable"))
    with stable:
        map_nc, _ = theirs.eval_rbbox_map(results, truth, box_type="qbox")
    f1 = functions(
        root / "mllm-mmrotate/lmmrotate/modules/f1_metric.py",
        "get_num_classes",
        "calculate_confusion_matrix",
        "analyze_per_img_dets",
        "confusion_matrix_to_ap_ar_f1",
        torch=torch,
        rbbox_overlaps=lambda a, b: _quad_ious(a, b),
        qbox2rbox=lambda boxes: boxes,
        ProgressBar=lambda total: types.SimpleNamespace(update=lambda: None),
    )
    matrix = torch.zeros(4, 4)
    for (quads1, labels), (quads2, true_labels) in images:
        wide = _Polygons(quads1)
        f1.analyze_per_img_dets(
            matrix,
            {"bboxes": _Polygons(quads2), "labels": torch.from_numpy(true_labels)},
            {"bboxes": wide, "labels": torch.from_numpy(labels), "scores": torch.ones(len(labels))},
        )
    return entries, {"map_nc": map_nc, "mf1": f1.confusion_matrix_to_ap_ar_f1(matrix)[2]}, "obb"


class _Polygons(np.ndarray):
    """Polygons f[N, 8] that stay whole when five numbers of a rotated box are taken."""

    def __new__(cls, values: np.ndarray) -> _Polygons:
        return np.asarray(values, float).view(cls)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and key == (slice(None), slice(None, 5)):
            return self
        return super().__getitem__(np.asarray(key) if not isinstance(key, (int, slice, tuple)) else key)
