"""Debug mode: every recipe, shrunk, is valid and keeps its structure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earthgpt_jax.common.resources import config_path
from earthgpt_jax.config import load
from earthgpt_jax.models import earthgpt
from earthgpt_jax.training.loop import train

RECIPES = [
    f"{path.stem}:{stage}"
    for path in sorted(config_path().glob("*.py"))
    for stage in ("align", "instruct", "lora", "finetune")
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_shrunk_recipe_is_valid_and_keeps_its_structure(name: str) -> None:
    full, small = load(name), load(f"{name}:debug")
    _, shapes = earthgpt.abstract(small.model)
    assert set(shapes) == set(earthgpt.abstract(full.model)[1])  # layers are stacked: depth changes no path
    assert sum(shape.size for shape in shapes.values()) < 400_000
    assert small.stage is full.stage and small.model.adapter.kind is full.model.adapter.kind
    assert small.data.task_weights == full.data.task_weights and small.data.chat_template == full.data.chat_template
    assert (small.model.perception.vit_fuse, small.model.perception.cnn_stages) == (
        full.model.perception.vit_fuse,
        full.model.perception.cnn_stages,
    )


def test_an_override_applies_after_shrinking() -> None:
    assert load("earthgpt_13b:align:debug", ["--config.optim.steps=9"]).optim.steps == 9


@pytest.mark.parametrize(
    "name",
    [
        "earthgpt_13b:instruct:debug",
        *(pytest.param(f"{name}:debug", marks=pytest.mark.slow) for name in RECIPES if name != "earthgpt_13b:instruct"),
    ],
)
def test_a_shrunk_recipe_trains_from_start_to_finished_model(name: str, tmp_path: Path) -> None:
    model = train(load(name, ["--config.optim.steps=3"]), tmp_path / "run")
    assert (model / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
