"""One host of several: trains a nano model, and is killed behind a step if told so.

usage: python -m tests.multiprocess.host ADDRESS HOSTS HOST WORKDIR KILL_AT [OVERRIDE ...]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(address: str, hosts: str, host: str, workdir: str, kill_at: str, *overrides: str) -> None:
    import jax

    if int(hosts) > 1:
        jax.distributed.initialize(address, num_processes=int(hosts), process_id=int(host), initialization_timeout=60)
    from earthgpt_jax.training import loop
    from tests import nano

    refuse = loop.guard.refuse

    def checked(optim, step, *rest):  # every host comes by here once a step
        refuse(optim, step, *rest)
        if step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    loop.guard.refuse = checked
    loop.train(nano.config("align", *overrides), Path(workdir))


if __name__ == "__main__":  # data workers import this module again
    main(*sys.argv[1:])
