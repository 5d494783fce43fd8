"""Coverage of the 95 % intervals by simulation: 200 datasets, whose true values are known."""

from collections.abc import Callable

import numpy as np
import pytest

from earthgpt_jax.evaluation import scores
from tests.support.answers import answer, truth

DATASETS = 200
pytestmark = pytest.mark.slow


def scenes(rng, n, p):
    hits = rng.uniform(size=n) < p
    labels = np.array(["port", "beach", "lake"])[rng.integers(0, 3, n)]
    return [answer(label if hit else "field", id=str(i), task="classification", answer=label)
            for i, (hit, label) in enumerate(zip(hits, labels, strict=True))]  # fmt: skip


def questions(rng, n, p):
    """Four questions about each image, whose difficulty differs between images; and counts with errors."""
    rows = []
    for i in range(n):
        easy = rng.beta(4 * p, 4 * (1 - p))
        for k in range(4):
            rows.append(answer("yes" if rng.uniform() < easy else "no", id=f"{i}-{k}", record_id=str(i), task="vqa",
                               answer="yes", question_type="presence"))  # fmt: skip
        count = int(rng.integers(1, 30))
        rows.append(answer(str(max(0, count + int(rng.normal(0, 3)))), id=f"{i}-c", record_id=str(i), task="vqa",
                           answer=str(count), question_type="count"))  # fmt: skip
    return rows


def phrases(rng, n, p):
    rows = []
    for i in range(n):
        shift = 0.0 if rng.uniform() < p else 0.5
        x = rng.uniform(0, 0.1) + shift + rng.normal(0, 0.02)
        text = f"[{max(x, 0):.4f},0.1,{max(x, 0) + 0.3:.4f},0.4]"
        rows.append(answer(text, id=str(i), task="grounding", object_index=0, objects=(truth("ship", 5, 10, 35, 40),)))
    return rows


def boxes(rng, n, p):
    """Two objects in each image, found with probability p; and wrong boxes. Confidences say little."""
    rows = []
    for i in range(n):
        found = [f"{x},0.1,{x + 0.2:.1f},0.3" for x in (0.1, 0.5) if rng.uniform() < p]
        wrong = ["0.1,0.7,0.3,0.9"] if rng.uniform() < 1 - p else []
        parts = found + wrong
        text = f"<p>{len(parts)} ships</p>[{';'.join(parts)}]" if parts else ""
        confidences = tuple(rng.uniform(0.5 * (part in found), 1) for part in parts)
        rows.append(answer(text, id=str(i), confidences=confidences,
                           objects=(truth("ship", 10, 10, 30, 30), truth("ship", 50, 10, 70, 30))))  # fmt: skip
    return rows


def texts(rng, n, p):
    words = np.array(["ship", "lake", "road", "tree", "field", "port", "plane", "house"])
    rows = []
    for i in range(n):
        reference = rng.choice(words, 8)
        changed = np.where(rng.uniform(size=8) < p, reference, rng.choice(words, 8))
        rows.append(answer(" ".join(changed), id=str(i), task="caption", references=(" ".join(reference),)))
    return rows


def several(rng, n, p):
    """A phrase for each image with none to three targets, each found with probability p; and wrong boxes."""
    rows = []
    for i in range(n):
        count = int(rng.integers(0, 4))
        targets = tuple(truth("car", 30 * k, 10, 30 * k + 20, 30) for k in range(count))
        claims = [f"{0.3 * k:.2f},{0.1 + rng.uniform(0, 0.05):.3f},{0.3 * k + 0.2:.2f},0.3"
                  for k in range(count) if rng.uniform() < p]  # fmt: skip
        claims += ["0.1,0.7,0.3,0.9"] if rng.uniform() < 1 - p else []
        text = f"[{';'.join(claims)}]" if claims else "none"
        rows.append(answer(text, id=str(i), task="multi_grounding", objects=targets))
    return rows


# Without `count_mape`: relative errors of small counts have a long tail, and its intervals cover 0.90.
METRICS = {
    scenes: ("top1", "mean_recall", "macro_f1", "kappa"),
    questions: (
        "accuracy",
        "accuracy_presence",
        "accuracy_count",
        "count_exact",
        "count_mae",
        "count_rmse",
        "count_bias",
    ),
    phrases: ("pr50", "pr60", "pr70", "pr80", "pr90", "mean_iou", "cum_iou"),
    boxes: ("precision", "recall", "f1", "ap50", "coco_ap", "coco_ap50", "hallucinated_boxes"),
    texts: ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"),
    several: ("set_f1", "exact", "miou", "giou", "ciou"),
}


def coverage(generate: Callable, n: int, p: float, *, datasets: int = DATASETS) -> dict[str, float]:
    """Return the fraction of the intervals that contain the true value: that of a large dataset."""
    rng = np.random.default_rng(7)
    names = METRICS[generate]
    cells = [next(iter(scores.score(generate(rng, n, p), samples=200, extras=(scores.Extra.AP,)).values()))["all"]
             for _ in range(datasets)]  # fmt: skip
    # CIDEr depends on the number of captions; its true value is that of datasets of this size.
    large = next(iter(scores.score(generate(rng, 3000, p), extras=(scores.Extra.AP,)).values()))["all"]
    true = {name: np.mean([cell[name] for cell in cells]) if name == "cider" else large[name] for name in names}
    return {
        name: float(np.mean([cell["intervals"][name][0] <= true[name] <= cell["intervals"][name][1] for cell in cells]))
        for name in names
    }


@pytest.mark.parametrize("generate", METRICS, ids=lambda function: function.__name__)
def test_intervals_cover_the_true_value(generate):
    """Of 200 datasets in each of three settings; together, since 200 alone determine a coverage to within 0.03."""
    found = [coverage(generate, n, p) for n, p in ((30, 0.7), (50, 0.85), (100, 0.8))]
    together = {name: np.mean([setting[name] for setting in found]) for name in found[0]}
    assert all(0.92 <= value <= 0.98 for value in together.values()), found
    assert all(0.9 <= value <= 0.99 for setting in found for value in setting.values()), found
