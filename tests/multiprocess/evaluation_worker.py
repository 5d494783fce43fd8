"""Evaluate a nano model as one of several processes, which kills itself after KILL_AFTER answers (-1: never).

usage: python -m tests.multiprocess.evaluation_worker ADDRESS PROCESSES PROCESS MODEL DATA OUT KILL_AFTER
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(address: str, processes: str, process: str, model: str, data: str, out: str, kill_after: str) -> None:
    import jax

    if int(processes) > 1:
        jax.distributed.initialize(
            address, num_processes=int(processes), process_id=int(process), initialization_timeout=300
        )
    from earthgpt_jax.datasets.collection import open_records
    from earthgpt_jax.evaluation import predictions_file, runner
    from earthgpt_jax.evaluation.questions import select_examples
    from earthgpt_jax.inference.engine import Engine
    from earthgpt_jax.records import Task

    written, to_line = 0, predictions_file.to_line

    def counted(prediction):
        nonlocal written
        if written == int(kill_after):
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        return to_line(prediction)

    predictions_file.to_line = counted
    test = open_records(Path(data), "test")
    tasks = (Task.CLASSIFICATION, Task.VQA, Task.GROUNDING)
    engine = Engine.from_model_dir(model, batch_size=16)
    runner.evaluate(
        engine,
        select_examples([test[i] for i in range(len(test))], decimals=engine.decimals, tasks=tasks),
        out=Path(out),
        header={**engine.describe(), "data": test.fingerprint},
        view=runner.View.IMAGE,
        label="questions",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
