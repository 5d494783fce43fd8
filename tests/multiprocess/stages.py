"""One process of several: train nano models, a first stage and others from its model.

usage: python -m tests.multiprocess.stages ADDRESS PROCESSES PROCESS FOLDER STAGE,STAGE KILLED [OVERRIDE ...]

The finished models are FOLDER/STAGE/model. KILLED is the index of the process that kills itself when it has written its
part of the first model, before the model appears under its name (-1: none).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

OVERRIDES = {"lora": ("model.adapter.rank=8",)}  # adapters are sharded, too


def train(folder: Path, stages: list[str], *overrides: str) -> None:
    """Train the stages: the first from the `init` of `overrides`, the others from the model of the first."""
    from earthgpt_jax.training import loop
    from tests.support import nano

    first, *others = stages
    finished = loop.train(nano.config(first, *overrides), folder / first)
    words = (*(word for word in overrides if not word.startswith("init=")), f"init={finished}")
    for stage in others:
        loop.train(nano.config(stage, *words, *OVERRIDES.get(stage, ())), folder / stage)


def main(address: str, processes: str, process: str, folder: str, stages: str, killed: str, *overrides: str) -> None:
    import jax

    jax.distributed.initialize(
        address, num_processes=int(processes), process_id=int(process), initialization_timeout=300
    )
    from earthgpt_jax.common.safetensors_files import SafetensorsWriter

    close = SafetensorsWriter.close

    def close_and_die(writer: SafetensorsWriter) -> None:
        close(writer)
        os.kill(os.getpid(), signal.SIGKILL)

    if process == killed:
        SafetensorsWriter.close = close_and_die
    train(Path(folder), stages.split(","), *overrides)


if __name__ == "__main__":
    main(*sys.argv[1:])
