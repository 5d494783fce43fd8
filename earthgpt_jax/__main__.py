"""`python -m earthgpt_jax` is the same program as `earthgpt`."""

from __future__ import annotations

import sys

from earthgpt_jax.cli.main import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
