"""The length index: the tokens of every question as training builds it, and its cache file."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parallel import parallel_map
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.input.packing import length_cache
from earthgpt_jax.input.packing.lengths import SENSORS, LengthIndex, concatenate_indexes, measure_lengths
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import QUESTION_TASKS, BoxStyle, build_question, question_indices
from earthgpt_jax.input.prompts.templates import template_rng
from earthgpt_jax.input.sequences import build_sample, image_prefix
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import AnnotatedClasses
from earthgpt_jax.synthetic import SyntheticSource

PROMPTS = PromptConfig(
    tasks=QUESTION_TASKS,
    tokenizer=Tokenizer(assets_path("tiny", "tokenizer.model")),
    chat_template="plain",
    box_style=BoxStyle(),
    max_turn_tokens=2048,
    seed=3,
)
ANNOTATED = AnnotatedClasses(shares={"ship": 0.5, "unicorn": 0.5})


@pytest.fixture(scope="module")
def records():
    source = SyntheticSource("train", 6, size=48)
    return [source[i] for i in range(6)]


@pytest.fixture
def dataset(tmp_path: Path, records) -> store.RecordSource:
    write_dataset({"train": records}, out=tmp_path / "data" / "synthetic", name="synthetic")
    return store.RecordSource(tmp_path / "data" / "synthetic", "train")


def _same(a: LengthIndex, b: LengthIndex) -> bool:
    return a.tasks == b.tasks and all(np.array_equal(a.arrays()[name], b.arrays()[name]) for name in a.arrays())


def test_no_detection_is_longer_than_the_limit_of_a_turn(records):
    boxes = dataclasses.replace(PROMPTS, tasks=("hbb", "obb"))
    long, short = (
        measure_lengths(records, prompt_config=dataclasses.replace(boxes, max_turn_tokens=most)).tokens
        for most in (2048, 100)
    )
    assert long.max() > 100 >= short.max()
    np.testing.assert_array_equal(short[long <= 100], long[long <= 100])


@pytest.mark.parametrize(("chat", "json_share"), [("plain", 0.0), ("plain_eos", 0.5)])
def test_every_question_is_as_long_as_in_a_sample(records, chat, json_share):
    box_style = BoxStyle(json_share=json_share)
    prompts = dataclasses.replace(PROMPTS, chat_template=chat, box_style=box_style)
    index = measure_lengths(records, prompt_config=prompts, annotated=ANNOTATED)
    prefix = image_prefix(PROMPTS.tokenizer, chat_template(chat), visual_tokens=4)
    known = {"annotated": ANNOTATED, "seed": PROMPTS.seed}
    expected = [
        (number, QUESTION_TASKS.index(kind), at)
        for number, record in enumerate(records)
        for kind in QUESTION_TASKS
        for at in question_indices(record, kind, **known)
    ]
    assert list(zip(index.record.tolist(), index.task.tolist(), index.index.tolist(), strict=True)) == expected
    assert len({kind for _, kind, _ in expected}) > 10
    for (number, kind, at), tokens in zip(expected, index.tokens.tolist(), strict=True):
        record = records[number]
        rng = template_rng(record.id, QUESTION_TASKS[kind], at, seed=PROMPTS.seed)
        question = build_question(record, QUESTION_TASKS[kind], at, box_style=box_style, rng=rng, **known)
        sample = build_sample([question], prefix=prefix, tokenizer=PROMPTS.tokenizer, chat_template=chat_template(chat))
        assert int((sample.question_index == 1).sum()) == tokens


def test_an_index_is_small_and_can_be_concatenated(records):
    whole = measure_lengths(records, prompt_config=PROMPTS)
    by_record = {"digests", "sensors"}
    assert sum(values[0].nbytes for name, values in whole.arrays().items() if name not in by_record) == 9
    assert whole.sensors.nbytes == len(records)
    assert [SENSORS[place] for place in whole.sensors] == [record.sensor for record in records]
    assert _same(
        whole,
        concatenate_indexes(
            [
                measure_lengths(records[:2], prompt_config=PROMPTS),
                measure_lengths(records[2:], prompt_config=PROMPTS, start=2),
            ]
        ),
    )


def test_templates_depend_on_the_question_and_the_seed_alone():
    first = [template_rng("a/train/1", "vqa", at, seed=0).random() for at in range(4)]
    assert first == [template_rng("a/train/1", "vqa", at, seed=0).random() for at in range(4)]
    others = [
        template_rng("a/train/2", "vqa", 0, seed=0).random(),
        template_rng("a/train/1", "caption", 0, seed=0).random(),
        template_rng("a/train/1", "vqa", 0, seed=1).random(),
    ]
    assert len({*first, *others}) == 7


def test_questions_that_do_not_fit_into_16_bits_are_refused(records):
    long = dataclasses.replace(records[0], references=("ship " * 70_000,))
    with pytest.raises(EarthGPTError, match=rf"question {long.id}#caption#0: expected .* below 2\^16"):
        measure_lengths([long], prompt_config=dataclasses.replace(PROMPTS, tasks=("caption",)))
    with pytest.raises(EarthGPTError, match="did you mean 'caption'"):
        dataclasses.replace(PROMPTS, tasks=("captoin",))


def test_lengths_are_measured_once(dataset, monkeypatch):
    found = length_cache.load_length_index(dataset, prompt_config=PROMPTS, workers=1)
    (path,) = dataset.directory.glob("lengths-train-*.npz")
    monkeypatch.setattr(length_cache, "_measure", None)  # a call would fail
    assert _same(length_cache.load_length_index(dataset, prompt_config=PROMPTS).index, found.index)
    assert found.identity["dataset"] == dataset.fingerprint
    with np.load(path) as file:
        assert file["tokens"].dtype == np.uint16


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no zip file", lambda data: b""])
def test_a_damaged_file_is_replaced_with_a_warning(dataset, damage, caplog):
    found = length_cache.load_length_index(dataset, prompt_config=PROMPTS, workers=1)
    (path,) = dataset.directory.glob("lengths-train-*.npz")
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert _same(length_cache.load_length_index(dataset, prompt_config=PROMPTS, workers=1).index, found.index)
    assert f"{path} is damaged" in caplog.text
    caplog.clear()
    length_cache.load_length_index(dataset, prompt_config=PROMPTS, workers=1)
    assert not caplog.text


def test_each_prompt_config_has_a_file_and_only_the_most_recent_are_kept(dataset):
    tasks, files = ("hbb", "caption"), []
    prompt_config = dataclasses.replace(PROMPTS, tasks=tasks)
    ways = [
        prompt_config,
        dataclasses.replace(prompt_config, chat_template="v1"),
        dataclasses.replace(prompt_config, chat_template="plain_eos"),
        dataclasses.replace(prompt_config, box_style=BoxStyle(json_share=0.5)),
        dataclasses.replace(prompt_config, box_style=BoxStyle(decimals=2)),
        dataclasses.replace(prompt_config, box_style=BoxStyle(max_boxes=1)),
        dataclasses.replace(prompt_config, max_turn_tokens=100),
        dataclasses.replace(prompt_config, tasks=tasks[::-1]),
        dataclasses.replace(prompt_config, seed=4),
    ]
    for way in ways:
        length_cache.load_length_index(dataset, prompt_config=way, workers=1)
        files.append(set(dataset.directory.glob("lengths-train-*.npz")) - set().union(*files))
    assert [len(new) for new in files] == [1] * len(ways)
    assert len(list(dataset.directory.glob("lengths-*"))) == length_cache.MAX_FILES
    assert next(iter(files[-1])).exists()


def test_lengths_of_a_read_only_dataset_are_in_the_users_cache(dataset, tmp_path, monkeypatch, caplog):
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    write_output = files.write_output

    def guarded(path: Path, content: bytes) -> None:
        if not path.is_relative_to(cache):
            raise EarthGPTError(f"writing {path}: Read-only file system")
        write_output(path, content)

    monkeypatch.setattr(files, "write_output", guarded)
    found = length_cache.load_length_index(dataset, prompt_config=PROMPTS, workers=1)
    assert len(list(cache.glob("earthgpt/*/lengths-train-*.npz"))) == 1
    monkeypatch.setattr(length_cache, "_measure", None)
    assert _same(length_cache.load_length_index(dataset, prompt_config=PROMPTS).index, found.index)

    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(files, "write_output", guarded)
    with caplog.at_level(logging.WARNING):
        assert _same(length_cache.load_length_index(dataset, prompt_config=PROMPTS, workers=1).index, found.index)
    assert "will be measured again" in caplog.text


def test_worker_processes_keep_the_order():
    assert list(parallel_map(abs, range(-8, 0), workers=2)) == list(range(8, 0, -1))


def test_a_killed_worker_is_an_error_instead_of_a_hang():
    with pytest.raises(EarthGPTError, match="one of 2 workers was killed"):
        list(parallel_map(os._exit, [1] * 8, workers=2))
