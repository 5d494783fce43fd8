"""The training state."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

from earthgpt_jax.params import Params


class State(NamedTuple):
    """Everything that a training step updates. Frozen parameters are never part of it.

    Attributes:
        step: i32[], number of completed steps.
        trainable: fp32 parameters that the stage trains.
        opt_state: optax state of exactly those parameters.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState
