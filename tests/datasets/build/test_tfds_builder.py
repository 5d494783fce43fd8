"""`tfds build` writes the same records as `earthgpt data build`, without TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.builder import build
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.datasets.examples import VERSION
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.datasets.store import RecordSource
from tests.support.native_datasets import png

# The part of the program `tfds` that runs `tfds build`. The program imports TensorFlow for another command.
_COMMAND = """
import sys
if __name__ == "__main__":
    import simple_parsing
    from tensorflow_datasets.scripts.cli import build
    parser = simple_parsing.ArgumentParser()
    parser.add_arguments(build.Args, dest="args")
    parser.parse_args(sys.argv[1:]).args.execute()
    assert "tensorflow" not in sys.modules
"""


def test_tfds_build_writes_the_same_records(tmp_path: Path) -> None:
    folder = tmp_path / "native" / "sar" / "SSDD-yolo"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"{number:06d}.jpg").write_bytes(png(40, 30 + number))
        (folder / f"{number:06d}.txt").write_text("0 0.5 0.5 0.5 0.2\n")
    words = ["earthgpt_records/ssdd_yolo", "--imports", "earthgpt_jax.datasets.build.tfds_builder"]
    words += ["--manual_dir", str(tmp_path / "native"), "--data_dir", str(tmp_path / "tfds")]
    subprocess.run([sys.executable, "-c", _COMMAND, *words], check=True)

    build([load_cards()["ssdd_yolo"]], root=tmp_path / "native", out=tmp_path / "ours")
    built = tmp_path / "tfds" / "earthgpt_records" / "ssdd_yolo" / VERSION
    ours = tmp_path / "ours" / "ssdd_yolo"
    assert read_manifest(built) == read_manifest(ours)
    for path in ours.iterdir():
        if path.name != "dataset_info.json":  # here TFDS adds the name of the config
            assert (built / path.name).read_bytes() == path.read_bytes(), path.name
    source = tfds.builder_from_directory(str(built)).as_data_source(split="test")
    assert [row["id"].decode() for row in source] == [record.id for record in RecordSource(built, "test")]
    assert sorted(path.name for path in built.parent.iterdir()) == [VERSION]


def test_another_file_format_is_refused(tmp_path: Path) -> None:
    from earthgpt_jax.datasets.build.tfds_builder import EarthgptRecords

    assert {config.name for config in EarthgptRecords.BUILDER_CONFIGS} == set(load_cards())
    with pytest.raises(EarthGPTError, match="written as array_record"):
        EarthgptRecords(config="ssdd_yolo", data_dir=tmp_path, file_format="tfrecord")
