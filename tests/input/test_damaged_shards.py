"""Shards that disappeared, were cut short, or have a flipped byte: the record as it was, or a word about it."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil

import numpy as np
import pytest

from earthgpt_jax.common.errors import DamagedRecordError, EarthGPTError
from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.config import OnDamaged
from earthgpt_jax.datasets.build.writer import write_dataset
from earthgpt_jax.datasets.examples import serialize_record
from earthgpt_jax.datasets.manifest import MANIFEST
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.packing import length_cache
from earthgpt_jax.input.packing.length_cache import load_length_index
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import BoxStyle
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.synthetic import SyntheticSource

COUNT = 4
BLOCK = 1 << 16  # the last one holds ArrayRecord's postscript


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """(folder, shard's name, its bytes, the records serialised)."""
    folder = tmp_path_factory.mktemp("damage") / "s"
    records = list(SyntheticSource("train", COUNT, size=32))
    write_dataset({"train": records, "test": records[:1]}, out=folder, name="s")
    (shard,) = folder.glob("*-train.array_record*")
    return folder, shard.name, shard.read_bytes(), [serialize_record(record) for record in records]


@pytest.fixture
def copy(intact, tmp_path):
    folder, name, _, _ = intact
    shutil.copytree(folder, tmp_path / "s")
    return tmp_path / "s", tmp_path / "s" / name


def _read(folder) -> list[bytes | str]:
    """Each record serialised, or the error's text; anything else than DamagedRecordError escapes."""
    source, found = RecordSource(folder, "train"), []
    for number in range(len(source)):
        try:
            found.append(serialize_record(source[number]))
        except DamagedRecordError as error:
            found.append(str(error))
    return found


def _well(found, expected, shard) -> list[bool]:
    """Which records came back; asserts that they are identical, and that the errors say all."""
    for number, (item, record) in enumerate(zip(found, expected, strict=True)):
        if isinstance(item, bytes):
            assert item == record
        else:
            assert f"{shard}: record {number} of split 'train' cannot be read: " in item
            assert "earthgpt data check" in item
            assert "data.on_damaged=skip" in item
            assert "\n" not in item
    return [isinstance(item, bytes) for item in found]


def _flipped(data: bytes, position: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)


def _chunks(data: bytes, count: int) -> list[int]:
    """Where records begin: a Riegeli chunk's header has 40 bytes, the size of what follows at its 8th.

    Holds within the first block, whose header and the file's signature take 64 bytes.
    """
    starts = [64]
    for _ in range(count):
        starts.append(starts[-1] + 40 + int.from_bytes(data[starts[-1] + 8 : starts[-1] + 16], "little"))
    return starts


def test_a_flipped_byte_of_a_record_costs_that_record_alone(intact, copy):
    _, _, data, expected = intact
    folder, shard = copy
    starts = _chunks(data, COUNT)
    rng = np.random.default_rng(0)
    for record, (start, end) in enumerate(itertools.pairwise(starts)):
        header, content = range(start, start + 40, 3), rng.integers(start + 40, end, 12)
        for position in (*header, *content.tolist(), end - 1):
            shard.write_bytes(_flipped(data, position, 1 << int(rng.integers(8))))
            assert _well(_read(folder), expected, shard) == [number != record for number in range(COUNT)], position


def test_a_flipped_byte_of_the_table_of_records_costs_the_shard_and_one_of_the_padding_nothing(intact, copy):
    _, _, data, expected = intact
    folder, shard = copy
    table, padding = _chunks(data, COUNT)[-1], len(data) - 100
    postscript = len(data) - BLOCK
    for position in (table, table + 9, table + 45, postscript, postscript + 30, postscript + 70):
        shard.write_bytes(_flipped(data, position, 4))
        assert _well(_read(folder), expected, shard) == [False] * COUNT, position
    shard.write_bytes(_flipped(data, padding, 4))
    assert _well(_read(folder), expected, shard) == [True] * COUNT


def test_flips_anywhere_give_the_record_or_the_error(intact, copy):
    _, _, data, expected = intact
    folder, shard = copy
    rng = np.random.default_rng(1)
    end = _chunks(data, COUNT)[-1] + 200
    kept = []
    for position in [*rng.integers(0, end, 80), *rng.integers(end, len(data), 20)]:
        shard.write_bytes(_flipped(data, int(position), int(rng.integers(1, 256))))
        kept += _well(_read(folder), expected, shard)
    assert 0.5 < np.mean(kept) < 1


def test_a_shard_that_is_cut_short_is_told_at_once_and_where_sizes_are_unknown_at_reading(intact, copy):
    _, _, data, expected = intact
    folder, shard = copy
    shard.write_bytes(data[:BLOCK])
    with pytest.raises(EarthGPTError, match=rf"{shard.name}: expected {len(data)} bytes, got {BLOCK}\. "):
        RecordSource(folder, "train")
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({key: value for key, value in values.items() if key != "sizes"}))
    starts = _chunks(data, COUNT)
    for size in (0, 10, starts[1], BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 64, BLOCK + 70, len(data) - 1):
        shard.write_bytes(data[:size])
        assert _well(_read(folder), expected, shard) == [False] * COUNT, size


def test_a_shard_that_is_missing_is_told_at_once_and_only_to_who_needs_it(copy):
    folder, shard = copy
    shard.unlink()
    with pytest.raises(EarthGPTError, match=rf"{shard.name}: expected a file, got No such file"):
        RecordSource(folder, "train")
    assert len(list(RecordSource(folder, "test"))) == 1


def test_a_shard_that_disappears_later_is_damaged_records_and_no_end_of_an_iteration(intact, copy):
    folder, shard = copy
    source = RecordSource(folder, "train")
    shard.unlink()
    with pytest.raises(DamagedRecordError, match=r"record 0 of split 'train' cannot be read: .*No such file"):
        list(source)
    shard.write_bytes(intact[2])
    with pytest.raises(DamagedRecordError):
        source[0]  # a reader that could not open its file stays so
    assert [serialize_record(record) for record in pickle.loads(pickle.dumps(source))] == intact[3]


def test_what_describes_the_shards_is_not_trusted_blindly(copy):
    folder, _ = copy
    path = folder / "dataset_info.json"
    good = path.read_text()
    assert f'"{COUNT}"' in good
    path.write_text(good.replace(f'"{COUNT}"', f'"{COUNT + 1}"'))
    with pytest.raises(EarthGPTError, match=f"manifest.json says {COUNT} records in 1 shards.*{COUNT + 1} in 1"):
        RecordSource(folder, "train")[0]
    path.write_text(good[: len(good) // 2])
    with pytest.raises(EarthGPTError, match="TFDS cannot open it"):
        RecordSource(folder, "train")[0]


def test_lengths_of_damaged_records_are_refused_or_left_out_and_not_cached(intact, copy, caplog):
    folder, shard = copy
    shard.write_bytes(_flipped(intact[2], _chunks(intact[2], COUNT)[1] + 60, 1))
    prompt_config = PromptConfig(
        tasks=("vqa",), tokenizer=Tokenizer(assets_path("tiny", "tokenizer.model")), chat_template="plain",
        box_style=BoxStyle(), max_turn_tokens=300, seed=0,
    )  # fmt: skip
    with pytest.raises(DamagedRecordError, match="record 1 of split 'train' cannot be read"):
        load_length_index(RecordSource(folder, "train"), prompt_config=prompt_config, workers=1)
    found = load_length_index(
        RecordSource(folder, "train"), prompt_config=prompt_config, workers=1, on_damaged=OnDamaged.SKIP
    ).index
    assert {*found.record.tolist()} == {0, 2, 3} and len(found.digests) == COUNT
    assert "no questions about 1 records" in caplog.text
    shard.write_bytes(intact[2])  # restored: all records have questions again
    restored = RecordSource(folder, "train")
    length_cache._source.cache_clear()
    assert {
        *load_length_index(
            restored, prompt_config=prompt_config, workers=1, on_damaged=OnDamaged.SKIP
        ).index.record.tolist()
    } == {0, 1, 2, 3}
