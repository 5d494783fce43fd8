"""The training state."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, for example `trainable/llm/norm/scale`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
