"""One host of several: train a nano model, and kill the process after a given step.

usage: python -m tests.multiprocess.host ADDRESS HOSTS HOST WORKDIR KILL_AT [OVERRIDE ...]

The environment variable PACE is the minimum duration of a step in seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time


def main(address: str, hosts: str, host: str, workdir: str, kill_at: str, *overrides: str) -> None:
    import jax

    if int(hosts) > 1:
        jax.distributed.initialize(address, num_processes=int(hosts), process_id=int(host), initialization_timeout=300)
    from earthgpt_jax.common import files
    from earthgpt_jax.common.errors import RunStopped
    from earthgpt_jax.training import loop
    from earthgpt_jax.training.lifecycle import CheckpointScheduler
    from tests.support import nano

    should_save = CheckpointScheduler.should_save

    def pace_or_kill(self: CheckpointScheduler, step: int) -> bool:  # called once per step on every host
        time.sleep(float(os.environ.get("PACE", "0")))
        if step == int(kill_at) + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return should_save(self, step)

    CheckpointScheduler.should_save = pace_or_kill
    try:
        loop.train(nano.config("align", *overrides), files.path(workdir))
    except RunStopped as stopped:
        sys.exit(stopped.status)


if __name__ == "__main__":  # data workers import this module too
    main(*sys.argv[1:])
