"""Debug mode: shrink any recipe so that it runs on a CPU in seconds.

`--config earthgpt_13b:align:debug` has the parts, stage, tasks and adapters of `earthgpt_13b:align` with the smallest
sizes, random initial weights and synthetic images. Use it to check a change to a recipe before a long run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

SUFFIX = ":debug"


def shrink(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a recipe with every size made as small as the code allows.

    Structure stays: the number of taps and how they are fused, adapters, biases, grouped-query attention, the tasks and
    their weights, the chat template.
    """
    small = copy.deepcopy(dict(values))
    model, data, optim = small["model"], small["data"], small["optim"]
    taps = len(model["perception"]["vit_layers"])
    depth = max(2, taps)
    patch = model["vit"]["patch_size"]
    grouped = model["llm"]["kv_heads"] < model["llm"]["heads"]
    model["image_size"] = 64
    model["vit"].update(image_size=4 * patch, dim=32, depth=depth, heads=2, ffn_dim=64, grid=4)
    merge = min(model["perception"].get("spatial_merge", 1), 2)
    model["perception"].update(vit_layers=tuple(range(depth - taps, depth)), spatial_merge=merge)
    model["convnext"].update(image_size=64, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    model["llm"].update(vocab_size=1024, dim=32, depth=2, heads=4, kv_heads=2 if grouped else 4, ffn_dim=48)
    model["llm"].update(head_size=16 if model["llm"].get("head_size") else 0, tokenizer_size=0)
    data.update(source="synthetic", mixture="", seq_len=384, batch_size=4, max_questions=3, workers=0)
    optim.update(steps=6, warmup_steps=2, microbatches=1)
    small["checkpoint"] = {"every_steps": 2, "keep": 2}
    if small.get("validation", {}).get("every_steps"):
        small["validation"]["every_steps"] = 2
    small["mesh"] = {"data": -1, "fsdp": 1, "tensor": 1}
    small["init"], small["init_from"] = "random", {}
    small["log_every"] = 1
    return small
