"""Recipes: fields, errors, and what each stage trains at the published sizes."""

from __future__ import annotations

import dataclasses
import re

import pytest

from earthgpt_jax import config as config_lib
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import AdapterKind, Stage, TrainableAttention
from earthgpt_jax.models import earthgpt
from earthgpt_jax.params import count
from earthgpt_jax.training.stages import trainable_paths

RECIPES = (
    "tiny", "tiny_real", "earthgpt_7b", "earthgpt_13b", "sphinx_light", "llama3_1b", "tinyllama", "smollm2_135m",
    "small",
)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stage", Stage)
def test_every_recipe_loads_and_survives_a_round_trip(name: str, stage: Stage) -> None:
    config = config_lib.load(f"{name}:{stage}")
    assert config.stage is stage
    assert config_lib.load(f"{name}:lora").model.adapter.kind is AdapterKind.LORA
    assert config_lib.from_dict(config_lib.to_dict(config)) == config


def test_all_errors_are_reported_at_once_with_path_expected_got_and_nearest_name() -> None:
    with pytest.raises(EarthGPTError) as error:
        config_lib.load(
            "tiny:align",
            ["--config.optim.peak_lrr=1", "--config.model.llm.heads=3", "--config.stage=alig",
             "--config.data.batch_size=many"],
        )  # fmt: skip
    text = str(error.value)
    assert "4 problems" in text
    assert "optim.peak_lrr: unknown field; did you mean 'peak_lr'?" in text
    assert "model.llm.heads: expected a divisor of dim=128, got 3" in text
    assert "stage: expected one of align, instruct, finetune, got 'alig'; did you mean 'align'?" in text
    assert "data.batch_size: expected int, got 'many' (str)" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.microbatches=3", "expected a divisor of data.batch_size=16, got 3"),
        ("model.adapter.kind=lora", "stage align expects none, got lora"),
        ("model.perception.vit_layers=(1,9)", "expected indices below vit.depth=4"),
        ("model.convnext.image_size=160", "neither divides"),
        ("optim.warmup_steps=99999", "expected 0..steps=400"),
        ("data.decimals=9", "expected 1..4, got 9"),
        ("model.adapter.targets=('q','w1')", "got ['w1']"),
        ("model.adapter.alpha=-1", "expected a positive number, or 0 for no scaling, got -1"),
    ],
)
def test_impossible_combinations_are_refused(override: str, message: str) -> None:
    with pytest.raises(EarthGPTError, match=re.escape(message)):
        config_lib.load("tiny:align", [f"--config.{override}"])


def test_a_misspelt_recipe_names_the_nearest() -> None:
    with pytest.raises(EarthGPTError, match="did you mean 'tiny'"):
        config_lib.load("tny:align")
    with pytest.raises(EarthGPTError, match="expected one of"):
        config_lib.load("tiny:aling")


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("attention=xla", "attention_impl"),
        ("trained_attention=qkv", "trainable_attention"),
        ("model.dtype=float32", "compute_dtype"),
        ("data.tokens_per_row=1024", "seq_len"),
        ("data.images_per_row=2", "max_images"),
        ("data.turns=dialogue", "question_context"),
        ("data.damaged=skip", "on_damaged"),
        ("data.conversation=plain", "chat_template"),
        ("data.augment=flips+turns", "flips+rotations"),
    ],
)
def test_a_former_name_is_refused_and_the_present_one_is_suggested(override: str, name: str) -> None:
    with pytest.raises(EarthGPTError, match=re.escape(f"did you mean '{name}'?")):
        config_lib.load("tiny:align", [f"--config.{override}"])


@pytest.mark.parametrize("name", ["max_images", "max_boxes", "workers"])
def test_a_negative_limit_is_reported_once(name: str) -> None:
    with pytest.raises(EarthGPTError) as error:
        config_lib.load("tiny:align", [f"--config.data.{name}=-1"])
    assert str(error.value).count(name) == 1


def test_every_field_is_described() -> None:
    classes = [value for value in vars(config_lib).values() if dataclasses.is_dataclass(value)]
    missing = [
        f"{cls.__name__}.{field.name}"
        for cls in classes
        for field in dataclasses.fields(cls)
        if not re.search(rf"^ +(\w+, )*{field.name}(, \w+)*: ", cls.__doc__ or "", flags=re.MULTILINE)
    ]
    assert len(classes) > 10 and missing == []


# Counted by hand for the 13B model: facts about the paper's architecture, independent of this code.
def test_13b_has_the_published_parameter_counts() -> None:
    config = config_lib.load("earthgpt_13b:instruct")
    _, shapes = earthgpt.abstract(config.model)

    def total(*prefixes: str) -> int:
        return count({path: shape for path, shape in shapes.items() if path.startswith(prefixes)})

    adapters = {path: shape for path, shape in shapes.items() if "/adapter/" in path}
    assert total("llm/") - count(adapters) == 13_015_864_320
    assert total("vit/") == 304_368_640 - 1024  # the published figure includes the unused mask token
    assert total("convnext/") == 196_230_336
    assert count(adapters) == 4_259_840
    assert count({path: shapes[path] for path in trainable_paths(config, shapes)}) == 4_259_840


def test_sphinx_light_has_the_published_parameter_counts() -> None:
    _, shapes = earthgpt.abstract(config_lib.load("sphinx_light:align").model)
    parts = ("vit", "convnext", "projector", "llm")
    counts = {part: count({p: s for p, s in shapes.items() if p.startswith(f"{part}/")}) for part in parts}
    assert counts == {
        "vit": 1_136_480_768 - 1536,  # the published figure includes the unused mask token
        "convnext": 843_398_016,
        "projector": 4608 * 2048 + 3 * 2048,
        "llm": 1_100_048_384,
    }


@pytest.mark.parametrize(
    ("recipe", "published"),
    [("llama3_1b", 1_235_814_400), ("tinyllama", 1_100_048_384), ("smollm2_135m", 134_515_008)],
)
def test_language_models_have_the_published_parameter_counts(recipe: str, published: int) -> None:
    _, shapes = earthgpt.abstract(config_lib.load(f"{recipe}:align").model)
    assert count({path: shape for path, shape in shapes.items() if path.startswith("llm/")}) == published


def test_what_align_trains_at_13b() -> None:
    config = config_lib.load("earthgpt_13b:align")
    _, shapes = earthgpt.abstract(config.model)
    trainable = trainable_paths(config, shapes)
    by_group: dict[str, int] = {}
    for path, rule in trainable.items():
        by_group[rule.group] = by_group.get(rule.group, 0) + count({path: shapes[path]})
    assert by_group["attention"] == 4_194_304_000
    assert by_group["norm"] == 414_720
    # 2880 channels of the CNN stages + 4096 of four ViT layers = 6976; Linear and LayerNorm; the two image tokens.
    assert by_group["projector"] == 6976 * 5120 + 5120 + 2 * 5120 + 2 * 5120
    decaying = {path for path, rule in trainable.items() if rule.decay}
    assert "projector/linear/kernel" in decaying and "projector/linear/bias" not in decaying


def test_what_lora_and_full_fine_tuning_train_at_13b() -> None:
    config = config_lib.load("earthgpt_13b:lora")
    assert config.stage is Stage.INSTRUCT and config.model.adapter.factor == 2.0
    _, shapes = earthgpt.abstract(config.model)
    trainable = trainable_paths(config, shapes)
    dim, ffn, rank = 5120, 13824, 16
    assert count({path: shapes[path] for path in trainable}) == 40 * rank * (4 * 2 * dim + 3 * (dim + ffn))
    assert {rule.group for rule in trainable.values()} == {"adapter"} and all(rule.decay for rule in trainable.values())

    config = config_lib.load("earthgpt_13b:finetune")
    _, shapes = earthgpt.abstract(config.model)
    trainable = trainable_paths(config, shapes)
    assert {path for path in shapes if path not in trainable} == {
        path for path in shapes if path.startswith(("vit/", "convnext/"))
    }
    assert count({path: shapes[path] for path in trainable if path.startswith("llm/")}) == 13_015_864_320
    assert {rule.group for rule in trainable.values()} == {"projector", "attention", "norm", "mlp", "embed", "head"}
    # As in LLaMA2-Accessory: all decay except biases and the LLM's norms.
    kept = {path for path, rule in trainable.items() if not rule.decay}
    assert kept == {
        path for path in trainable if path.endswith("/bias") or (path.startswith("llm/") and "norm" in path)
    }


@pytest.mark.parametrize("attention", TrainableAttention)
@pytest.mark.parametrize("kind", [AdapterKind.SCALE_BIAS, AdapterKind.BIAS, AdapterKind.LORA])
@pytest.mark.parametrize("fuse", ["concat", "sum", "last"])
def test_stage_tables_are_total_and_tight_for_every_variant(
    attention: TrainableAttention, kind: AdapterKind, fuse: str
) -> None:
    for stage in (Stage.ALIGN, Stage.INSTRUCT):
        chosen = kind if stage is Stage.INSTRUCT else AdapterKind.NONE
        config = config_lib.load(
            f"tiny:{stage}",
            [f"--config.trainable_attention={attention}", f"--config.model.adapter.kind='{chosen}'",
             f"--config.model.perception.cnn_fuse={fuse}"],
        )  # fmt: skip
        _, shapes = earthgpt.abstract(config.model)
        assert trainable_paths(config, shapes)


@pytest.mark.parametrize("variant", ["perception.cnn_fuse=sum", "llm.tied_head=True", "llm.mlp_bias=True"])
def test_full_fine_tuning_trains_every_variant(variant: str) -> None:
    config = config_lib.load("tiny:finetune", [f"--config.model.{variant}", "--config.model.llm.attention_bias=True"])
    _, shapes = earthgpt.abstract(config.model)
    trainable = trainable_paths(config, shapes)
    assert trainable.keys() == {path for path in shapes if not path.startswith(("vit/", "convnext/"))}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.b1=1", "optim.b1: expected at least 0 and below 1, got 1.0"),
        ("optim.b2=2", "optim.b2: expected at least 0 and below 1"),
        ("optim.eps=-1", "optim.eps: expected a number above 0"),
        ("optim.weight_decay=1e999", "optim.weight_decay: expected a finite number, got inf"),
        ("optim.peak_lr=1e300", "optim.peak_lr: expected at most 100"),
        ("optim.steps=99999999999999999999", "optim.steps: expected a number of at most 64 bits"),
        ("optim.steps=" + "9" * 5000, "optim.steps: expected int, got '999"),
        ("data.batch_size=1000000000", "data.batch_size: expected at most 16777216"),
        ("data.max_images=1000000", "data.max_images: expected at most 4096"),
        ("data.seq_len=100000000", "data.seq_len: expected at most"),
        ("data.workers=10000", "data.workers: expected at most 1024"),
        ("model.image_size=1000000", "model.image_size: expected at most 8192"),
        ("model.convnext.depths=[2,2,2,9223372036854775807]", "depths, dims: expected positive numbers of at most"),
        ("seed=-1", "seed: expected 0..4294967295"),
        ("recipe=\ud800", "recipe: expected valid Unicode"),
        ("data.task_weights=" + "[" * 100_000, "data.task_weights: expected dict"),
    ],
)
def test_values_that_no_run_can_use_are_refused_before_it_starts(override, message):
    with pytest.raises(EarthGPTError) as error:
        config_lib.load("tiny:align", [f"--config.{override}"])
    assert message in str(error.value)
    assert len(str(error.value)) < 2000


def test_another_file_of_a_recipes_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "tiny").write_text("notes")
    monkeypatch.chdir(tmp_path)
    assert config_lib.load("tiny:align").recipe == "tiny"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}", "expected get_config('x') to return a ConfigDict, got dict"),
        ("return None", "got NoneType"),
        ("raise KeyError('a')", "failed: KeyError: 'a'"),
    ],
)
def test_a_recipe_that_returns_something_else_is_refused(tmp_path, body, message):
    path = tmp_path / "r.py"
    path.write_text(f"def get_config(argument):\n    {body}\n")
    with pytest.raises(EarthGPTError) as error:
        config_lib.load(f"{path}:x")
    assert message in str(error.value)


def test_a_misspelled_stage_gets_a_suggestion():
    with pytest.raises(EarthGPTError, match="got 'algn'; did you mean 'align'"):
        config_lib.load("tiny:algn")
