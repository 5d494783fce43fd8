"""Shards that are missing, truncated or have a flipped byte: the original record, or an error that names it."""

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
    """Return (folder, name of the shard, its bytes, the serialized records)."""
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
    """Return each record serialized, or the text of its DamagedRecordError; other errors are raised."""
    source, results = RecordSource(folder, "train"), []
    for number in range(len(source)):
        try:
            results.append(serialize_record(source[number]))
        except DamagedRecordError as error:
            results.append(str(error))
    return results


def _intact(results, expected, shard) -> list[bool]:
    """Return which records were read; assert that they are identical, and that errors are complete."""
    for number, (item, record) in enumerate(zip(results, expected, strict=True)):
        if isinstance(item, bytes):
            assert item == record
        else:
            assert f"{shard}: record {number} of split 'train' cannot be read: " in item
            assert "earthgpt data check" in item
            assert "data.on_damaged=skip" in item
            assert "\n" not in item
    return [isinstance(item, bytes) for item in results]


def _flipped(data: bytes, position: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= mask
    return bytes(changed)


def _chunks(data: bytes, count: int) -> list[int]:
    """Return where records begin: a Riegeli chunk has a header of 40 bytes, with the size of its data at byte 8.

    This holds within the first block, after the 64 bytes of the block's header and the file's signature.
    """
    starts = [64]
    for _ in range(count):
        starts.append(starts[-1] + 40 + int.from_bytes(data[starts[-1] + 8 : starts[-1] + 16], "little"))
    return starts


def test_a_flipped_byte_in_a_record_damages_that_record_only(intact, copy):
    _, _, data, expected = intact
    folder, shard = copy
    starts = _chunks(data, COUNT)
    rng = np.random.default_rng(0)
    for record, (start, end) in enumerate(itertools.pairwise(starts)):
        header, content = range(start, start + 40, 3), rng.integers(start + 40, end, 12)
        for position in (*header, *content.tolist(), end - 1):
            shard.write_bytes(_flipped(data, position, 1 << int(rng.integers(8))))
            assert _intact(_read(folder), expected, shard) == [number != record for number in range(COUNT)], position


def test_a_flipped_byte_in_the_record_index_damages_the_shard_and_one_in_padding_nothing(intact, copy):
    _, _, data, expected = intact
    folder, shard = copy
    table, padding = _chunks(data, COUNT)[-1], len(data) - 100
    postscript = len(data) - BLOCK
    for position in (table, table + 9, table + 45, postscript, postscript + 30, postscript + 70):
        shard.write_bytes(_flipped(data, position, 4))
        assert _intact(_read(folder), expected, shard) == [False] * COUNT, position
    shard.write_bytes(_flipped(data, padding, 4))
    assert _intact(_read(folder), expected, shard) == [True] * COUNT


def test_flips_anywhere_give_the_record_or_an_error(intact, copy):
    _, _, data, expected = intact
    folder, shard = copy
    rng = np.random.default_rng(1)
    end = _chunks(data, COUNT)[-1] + 200
    kept = []
    for position in [*rng.integers(0, end, 80), *rng.integers(end, len(data), 20)]:
        shard.write_bytes(_flipped(data, int(position), int(rng.integers(1, 256))))
        kept += _intact(_read(folder), expected, shard)
    assert 0.5 < np.mean(kept) < 1


def test_a_truncated_shard_is_found_on_opening_or_without_sizes_on_reading(intact, copy):
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
        assert _intact(_read(folder), expected, shard) == [False] * COUNT, size


def test_a_missing_shard_is_found_on_opening_its_split_only(copy):
    folder, shard = copy
    shard.unlink()
    with pytest.raises(EarthGPTError, match=rf"{shard.name}: expected a file, got none"):
        RecordSource(folder, "train")
    assert len(list(RecordSource(folder, "test"))) == 1


def test_a_shard_deleted_later_raises_errors_and_does_not_end_an_iteration(intact, copy):
    folder, shard = copy
    source = RecordSource(folder, "train")
    shard.unlink()
    with pytest.raises(DamagedRecordError, match=r"record 0 of split 'train' cannot be read: .*No such file"):
        list(source)
    shard.write_bytes(intact[2])
    with pytest.raises(DamagedRecordError):
        source[0]  # a reader that failed to open its file keeps failing
    assert [serialize_record(record) for record in pickle.loads(pickle.dumps(source))] == intact[3]


def test_metadata_of_shards_is_validated(copy):
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
