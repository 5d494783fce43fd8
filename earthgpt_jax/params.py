"""Params: a flat mapping `path -> array`, and tables of regexes over its paths.

Every decision about parameters (how they are sharded, whether they are trainable, their name in another project's
checkpoint) is a table of `(regex, value)` rules. A table is *total* (a path that no rule covers raises) and *tight* (a
rule that decides no path raises), so that a renamed parameter cannot be overlooked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from earthgpt_jax.common.digests import fingerprint_stream
from earthgpt_jax.common.errors import EarthGPTError

Params = dict[str, jax.Array]
T = TypeVar("T")
FROZEN = "frozen"  # name of the metadata that marks a frozen parameter in a module


def flatten(state: nnx.State) -> Params:
    """Return an NNX state as `{"llm/blocks/attn/q/kernel": array, ...}`."""
    return {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def merge_module(
    graphdef: nnx.GraphDef, params: Mapping[str, jax.Array], *, frozen: Mapping[str, jax.Array] | None = None
) -> Any:
    """Return the module with the structure `graphdef` and its parameters; the inverse of `split_module`.

    Args:
        graphdef: structure.
        params: parameters.
        frozen: further parameters, which are marked: no gradient is taken with respect to them.
    """
    variables = [(_key(path), nnx.Param(value)) for path, value in params.items()]
    variables += [(_key(path), nnx.Param(value, **{FROZEN: True})) for path, value in (frozen or {}).items()]
    return nnx.merge(graphdef, nnx.from_flat_state(variables))


def split_module(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Return the structure of a module and its parameters."""
    graphdef, state = nnx.split(module)
    return graphdef, flatten(state)


def _key(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))


def match(rules: Sequence[tuple[str, T]], paths: Iterable[str], *, table: str) -> dict[str, T]:
    """Return, for each path, the value of the first rule that matches it.

    Args:
        rules: `(regex, value)`; a regex must match the full path.
        paths: parameter paths.
        table: name of the table, for the message.

    Raises:
        EarthGPTError: lists all uncovered paths and all unused rules.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    used: set[int] = set()
    result: dict[str, T] = {}
    uncovered = []
    for path in paths:
        for number, (pattern, value) in enumerate(compiled):
            if pattern.fullmatch(path):
                result[path] = value
                used.add(number)
                break
        else:
            uncovered.append(path)
    unused = [pattern for number, (pattern, _) in enumerate(rules) if number not in used]
    if uncovered or unused:
        raise EarthGPTError(
            f"table '{table}' does not fit the parameters: "
            + "; ".join(
                part
                for part in (
                    uncovered and f"no rule covers {', '.join(uncovered)}",
                    unused and f"unused rules: {', '.join(unused)}",
                )
                if part
            )
            + ". Each path needs exactly one deciding rule: add, widen or delete rules."
        )
    return result


def split(params: Mapping[str, T], chosen: Iterable[str]) -> tuple[dict[str, T], dict[str, T]]:
    """Return `(chosen, rest)`, both in the order of `params`."""
    names = set(chosen)
    return (
        {path: value for path, value in params.items() if path in names},
        {path: value for path, value in params.items() if path not in names},
    )


def merge(*parts: Mapping[str, T]) -> dict[str, T]:
    """Return the union of disjoint parts, sorted by path.

    Raises:
        ValueError: a path is in more than one part.
    """
    merged: dict[str, T] = {}
    for part in parts:
        duplicates = merged.keys() & part.keys()
        if duplicates:
            raise ValueError(f"paths in more than one part: {sorted(duplicates)}")
        merged.update(part)
    return dict(sorted(merged.items()))


def check_same_shapes(expected: Mapping[str, jax.ShapeDtypeStruct], got: Mapping, *, where: str) -> None:
    """Check that `got` has the paths and shapes of `expected`.

    Args:
        where: origin of `got`, for the message.

    Raises:
        EarthGPTError: lists the missing paths, the unknown paths and those with another shape.
    """
    missing = sorted(expected.keys() - got.keys())
    unknown = sorted(got.keys() - expected.keys())
    shapes = [
        f"{path}: expected {tuple(expected[path].shape)}, got {tuple(got[path].shape)}"
        for path in sorted(expected.keys() & got.keys())
        if tuple(expected[path].shape) != tuple(got[path].shape)
    ]
    problems = [
        f"{name} ({len(rows)}): " + ", ".join(rows[:8]) + (", ..." if len(rows) > 8 else "")
        for name, rows in (("missing", missing), ("unknown", unknown), ("wrong shape", shapes))
        if rows
    ]
    if problems:
        raise EarthGPTError(
            f"{where}: the parameters belong to another architecture than the config. "
            + "; ".join(problems)
            + ". Use the config of the checkpoint."
        )


def fingerprint(params: Mapping[str, jax.Array | np.ndarray]) -> str:
    """Return a fingerprint of paths, dtypes, shapes and bytes; equal only if all parameters are equal bit by bit."""

    def parts() -> Iterator[bytes | str]:
        for path in sorted(params):
            for value in map(np.asarray, jax.tree.leaves(params[path])):  # an int8 kernel is two arrays
                yield f"{path}|{value.dtype}|{value.shape}|"
                yield np.ascontiguousarray(value).tobytes()

    return fingerprint_stream(parts())


def count(params: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> int:
    """Return the total number of scalars."""
    return sum(int(np.prod(value.shape)) for value in params.values())


def cast(params: Mapping[str, jax.Array], dtype: str) -> Params:
    """Return the arrays converted to a floating-point dtype, by name: `bfloat16`."""
    return {path: value.astype(np.dtype(getattr(ml_dtypes, dtype, dtype))) for path, value in params.items()}
