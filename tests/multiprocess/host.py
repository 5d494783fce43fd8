"""One host of several: trains a nano model, and is killed behind a step if told so.

usage: python -m tests.multiprocess.host ADDRESS HOSTS HOST WORKDIR KILL_AT [OVERRIDE ...]

PACE in the environment: seconds that a step takes at least.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main(address: str, hosts: str, host: str, workdir: str, kill_at: str, *overrides: str) -> None:
    import jax

    if int(hosts) > 1:
        jax.distributed.initialize(address, num_processes=int(hosts), process_id=int(host), initialization_timeout=300)
    from earthgpt_jax.common.errors import RunStopped
    from earthgpt_jax.training import loop
    from earthgpt_jax.training.saving import CheckpointScheduler
    from tests.support import nano

    due = CheckpointScheduler.due

    def checked(self, step):  # every host comes by here once a step
        time.sleep(float(os.environ.get("PACE", "0")))
        if step == int(kill_at) + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return due(self, step)

    CheckpointScheduler.due = checked
    try:
        loop.train(nano.config("align", *overrides), Path(workdir))
    except RunStopped as stopped:
        sys.exit(stopped.status)


if __name__ == "__main__":  # data workers import this module again
    main(*sys.argv[1:])
