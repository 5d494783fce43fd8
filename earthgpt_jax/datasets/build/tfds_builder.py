"""For TFDS's own command line: a builder with one config a card, which writes what `earthgpt data build` writes.

    tfds build earthgpt_records/hit_uav --imports earthgpt_jax.datasets.build.tfds_builder \\
        --manual_dir NATIVE --data_dir OUT

writes `OUT/earthgpt_records/hit_uav/<version>/`, a dataset directory like any other. Nothing is downloaded:
`--manual_dir` is the folder of the native datasets. A build that was stopped goes on from where it was.
The program `tfds` imports TensorFlow, Beam and mlcroissant when it starts (as of 4.9.10): the extra `tfds`. Building
uses none of them.
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
    """Remote sensing datasets as records; see the package's `data/README.md`."""

    name = TFDS_NAME
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS asks for a list)
        tfds.core.BuilderConfig(name=card.name, description=card.title) for card in load_cards().values()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The native datasets, each in the folder that its card names."

    def __init__(self, *, file_format: Any = None, **kwargs: Any):
        if file_format not in (None, shards.FORMAT, shards.FORMAT.value):
            raise EarthGPTError(f"tfds build: records are written as {shards.FORMAT.value}; leave --file_format out")
        super().__init__(file_format=shards.FORMAT, **kwargs)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        card = load_cards()[self.builder_config.name]
        target = Path(self.data_dir)  # TFDS's own temporary folder, another one in every run
        made = target.parent / f".{card.name}.tfds" / card.name
        with LocalEngine(cores()) as engine:
            build([card], root=Path(dl_manager.manual_dir), out=made.parent, engine=engine)
        made.rename(target)  # as a whole, over an empty folder
        made.parent.rmdir()
        self.info.read_from_directory(target)
