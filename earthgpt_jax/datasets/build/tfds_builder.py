"""Build datasets with the command line of TFDS, which writes the same files as `earthgpt data build`.

    tfds build earthgpt_records/hit_uav --imports earthgpt_jax.datasets.build.tfds_builder \\
        --manual_dir NATIVE --data_dir OUT

writes the dataset directory `OUT/earthgpt_records/hit_uav/<version>/`. There is one config for each card. Nothing is
downloaded: `--manual_dir` is the folder of all native datasets. An interrupted build is resumed.

The program `tfds` imports TensorFlow, Beam and mlcroissant at start-up (as of 4.9.10), which the extra `tfds` installs.
The build itself uses none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parallel import LocalEngine, cores
from earthgpt_jax.datasets.build import shards
from earthgpt_jax.datasets.build.builder import build
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.datasets.manifest import TFDS_NAME


class EarthgptRecords(shards.Builder):
    """Remote-sensing datasets as records; see docs/guides/data.md."""

    name = TFDS_NAME
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS requires a list)
        tfds.core.BuilderConfig(name=card.name, description=card.title) for card in load_cards().values()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder of all native datasets, each in the subfolder that its card names."

    def __init__(self, *, file_format: Any = None, **kwargs: Any):
        if file_format not in (None, shards.FORMAT, shards.FORMAT.value):
            raise EarthGPTError(f"tfds build: records are written as {shards.FORMAT.value}; omit --file_format")
        super().__init__(file_format=shards.FORMAT, **kwargs)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        card = load_cards()[self.builder_config.name]
        target = Path(self.data_dir)  # TFDS passes a temporary folder with a different name in every run
        built = target.parent / f".{card.name}.tfds" / card.name
        with LocalEngine(cores()) as engine:
            build([card], root=Path(dl_manager.manual_dir), out=built.parent, engine=engine)
        built.rename(target)  # atomically replaces the empty folder
        built.parent.rmdir()
        self.info.read_from_directory(target)
