"""Validation data: every question of the split exactly once, for any batch size and any number of processes."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import QuestionContext
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.packing.training_data import load_training_data
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import question_indices
from earthgpt_jax.input.sequences import turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer, train_tokenizer
from earthgpt_jax.input.validation_data import load_validation_data
from earthgpt_jax.records import Record
from earthgpt_jax.synthetic import SyntheticSource
from tests.support import nano


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    train_tokenizer(nano.dialogues(), vocab_size=640, path=root / "tokenizer.model")
    return nano.dataset(root / "data", train=4, val=7), Tokenizer(root / "tokenizer.model")


def _load(world, *overrides: str):
    data, tokenizer = world
    config = nano.config("instruct", f"data.source={data}", "data.seq_len=300", *overrides)
    return load_validation_data(config, load_training_data(config, tokenizer=tokenizer), tokenizer=tokenizer)


def _supervised_tokens(world, validation) -> collections.Counter:
    """Count (task, sensor) -> supervised tokens directly, without packing, of the questions that fit."""
    records, prompts = RecordSource(world[0], "val"), validation.data.prompt_config
    template, budget = chat_template(prompts.chat_template), validation.data.schedule.budget
    counts: collections.Counter = collections.Counter()
    for record in (records[number] for number in range(len(records))):
        for task in prompts.tasks:
            for index in question_indices(record, task, annotated=records.annotated, seed=prompts.seed):
                question = prompts.question(record, task, index, annotated=records.annotated)
                ids, weights = turn_ids(prompts.tokenizer, template, question.text, question.answer)
                if len(ids) <= budget.question_tokens:
                    counts[task, record.sensor.value] += int(sum(weights))
    return counts


@pytest.mark.parametrize("context", QuestionContext)
@pytest.mark.parametrize(("batch_size", "processes"), [(4, 1), (8, 2), (64, 4)])
def test_every_question_is_in_exactly_one_batch_of_one_process(world, context, batch_size, processes):
    validation = _load(world, f"data.batch_size={batch_size}", f"data.question_context={context}")
    ids, counts = collections.Counter(), collections.Counter()
    for process in range(processes):
        rows = range(process * batch_size // processes, (process + 1) * batch_size // processes)
        loaded = list(validation.load(local=rows, workers=0))
        assert [number for number, _ in loaded] == list(range(validation.batches))
        for number, batch in loaded:
            assert batch.tokens.shape == (len(rows), 300)
            groups = validation.token_groups(batch, [number * batch_size + row for row in rows])
            for group, (task, sensor) in enumerate(validation.groups):
                counts[task, sensor] += int(np.sum((groups == group) & (batch.loss_weights > 0)))
            for sample in (sample for row in batch.ids for sample in row):
                record, _, keys = sample.rpartition(":")
                ids.update(f"{record}:{key}" for key in keys.split(","))
    assert set(ids.values()) == {1}
    assert counts == _supervised_tokens(world, validation)
    assert len({sensor for _, sensor in validation.groups}) > 1
    assert {task for task, _ in validation.groups} == set(validation.data.prompt_config.tasks)


def test_weights_of_tasks_and_augmentation_do_not_count(world):
    once = _load(world)
    weighted = _load(world, "data.task_weights={'vqa': 3.0, 'hbb': 0.25, 'caption': 0}", "data.augment=flips")
    assert {task for task, _ in weighted.groups} == {"vqa", "hbb"}
    counts = _supervised_tokens(world, once)
    found = collections.Counter()
    for number, batch in weighted.load(local=range(4), workers=0):
        groups = weighted.token_groups(batch, [4 * number + row for row in range(4)])
        for group, pair in enumerate(weighted.groups):
            found[pair] += int(np.sum((groups == group) & (batch.loss_weights > 0)))
    assert found == {pair: count for pair, count in counts.items() if pair[0] in ("vqa", "hbb")}
    assert weighted.spec == dataclasses.replace(once.spec)


def test_a_sample_that_cannot_be_read_is_left_out(world, monkeypatch):
    validation = _load(world, "data.on_damaged=skip")
    original = RecordSource.__getitem__

    def damaged(self, index):
        if index == 0:
            raise EarthGPTError("damaged")
        return original(self, index)

    before = [batch for _, batch in validation.load(local=range(4), workers=0)]
    monkeypatch.setattr(RecordSource, "__getitem__", damaged)
    after = list(validation.load(local=range(4), workers=0))
    lost = sum(int(batch.damaged.sum()) for _, batch in after)
    assert lost > 0
    assert sum(len(ids) for batch in before for ids in batch.ids) - lost == sum(
        len(ids) for _, batch in after for ids in batch.ids
    )
    for number, batch in after:
        validation.token_groups(batch, [4 * number + row for row in range(4)])


def test_a_split_that_does_not_exist_is_named(world):
    with pytest.raises(EarthGPTError, match=r"validation\.split: .*'dev'.*every_steps=0"):
        _load(world, "validation.split=dev")


def _write(folder: Path, name: str, **splits: list[Record]) -> None:
    """Write a dataset whose records have ids of their own."""
    named = {
        split: [dataclasses.replace(r, id=f"{name}/{split}/{i}", source=name) for i, r in enumerate(records)]
        for split, records in splits.items()
    }
    write_dataset(named, out=folder / name, name=name)


def _images(source: RecordSource, records: np.ndarray) -> set[bytes]:
    return {source[int(number)].image for number in records}


def test_images_are_held_out_of_datasets_without_the_split_and_trained_on_by_none(world, tmp_path):
    scenes = [SyntheticSource("train", 30)[number] for number in range(30)]
    _write(tmp_path, "plain", train=scenes)
    _write(tmp_path, "split", train=scenes[:20], val=[SyntheticSource("val", 2)[number] for number in range(2)])
    held_out = {}
    for share in (0.3, 0.6):
        config = nano.config("instruct", f"data.source={tmp_path}", "data.seq_len=300", f"validation.share={share}")
        training = load_training_data(config, tokenizer=world[1])
        validation = load_validation_data(config, training, tokenizer=world[1])
        # The digest is the beginning of the image file's sha256.
        chosen = {
            scene.image for scene in scenes
            if int.from_bytes(hashlib.sha256(scene.image).digest()[:8], "little") < share * 2**64
        }  # fmt: skip
        assert 4 < len(chosen) < 24
        trained = {
            source.name: _images(records, source.records)
            for source, records in zip(training.schedule.sources, training.sources, strict=True)
        }
        assert trained["plain"] == {scene.image for scene in scenes} - chosen
        assert trained["split"] == {scene.image for scene in scenes[:20]} - chosen
        validated = {
            source.name: (records.split, _images(records, source.records))
            for source, records in zip(validation.data.schedule.sources, validation.data.sources, strict=True)
        }
        assert validated["plain"] == ("train", chosen)
        assert validated["split"][0] == "val" and len(validated["split"][1]) == 2
        assert validation.split == "val and held out of train"
        held_out[share] = chosen
    assert held_out[0.3] < held_out[0.6]
    config = nano.config("instruct", f"data.source={tmp_path / 'plain'}", "data.seq_len=300", "validation.share=1e-9")
    with pytest.raises(EarthGPTError, match=r"validation\.share: expected a share that holds out at least one image"):
        load_validation_data(config, load_training_data(config, tokenizer=world[1]), tokenizer=world[1])
