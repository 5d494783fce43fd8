"""Run `earthgpt` as `python -m earthgpt_jax`."""

from __future__ import annotations

import sys

from earthgpt_jax.cli.main import main

if __name__ == "__main__":  # spawned worker processes import this file
    sys.exit(main())
