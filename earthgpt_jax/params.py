"""Params: a flat mapping `path -> array`, and tables of regexes over its paths.

Every decision about parameters (how sharded, trained or frozen, which foreign key) is a table of
`(regex, value)` rows. A table is *total* (a path that no row covers raises) and *tight* (a row that
decides nothing raises), so a renamed parameter can never fall through silently.
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


def flatten(state: nnx.State) -> Params:
    """An NNX state as `{"llm/blocks/attn/q/kernel": array, ...}`."""
    return {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def merge_module(graphdef: nnx.GraphDef, params: Mapping[str, jax.Array]) -> Any:
    """The module that `graphdef` describes, holding `params`; the inverse of `split_module`."""
    return nnx.merge(graphdef, nnx.from_flat_state([(_key(p), nnx.Param(v)) for p, v in params.items()]))


def split_module(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """A module's structure and its parameters."""
    graphdef, state = nnx.split(module)
    return graphdef, flatten(state)


def _key(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in path.split("/"))


def match(rules: Sequence[tuple[str, T]], paths: Iterable[str], *, table: str) -> dict[str, T]:
    """The value that the first fitting row gives each path.

    Args:
        rules: `(regex, value)`; a regex must match the whole path.
        paths: parameter paths.
        table: the table's name, for the message.

    Raises:
        EarthGPTError: naming all uncovered paths and all rows that decide nothing, together.
    """
    compiled = [(re.compile(pattern), value) for pattern, value in rules]
    used: set[int] = set()
    result: dict[str, T] = {}
    uncovered = []
    for path in paths:
        for row, (pattern, value) in enumerate(compiled):
            if pattern.fullmatch(path):
                result[path] = value
                used.add(row)
                break
        else:
            uncovered.append(path)
    idle = [pattern for row, (pattern, _) in enumerate(rules) if row not in used]
    if uncovered or idle:
        raise EarthGPTError(
            f"table '{table}' does not fit the parameters: "
            + "; ".join(
                part
                for part in (
                    uncovered and f"no row covers {', '.join(uncovered)}",
                    idle and f"rows that decide nothing: {', '.join(idle)}",
                )
                if part
            )
            + ". Each path needs exactly one deciding row: add, widen or delete rows."
        )
    return result


def split(params: Mapping[str, T], chosen: Iterable[str]) -> tuple[dict[str, T], dict[str, T]]:
    """`(chosen, rest)`, both in the order of `params`."""
    names = set(chosen)
    return (
        {path: value for path, value in params.items() if path in names},
        {path: value for path, value in params.items() if path not in names},
    )


def merge(*parts: Mapping[str, T]) -> dict[str, T]:
    """The union of disjoint parts, paths sorted; a path in two parts raises."""
    merged: dict[str, T] = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise ValueError(f"paths in more than one part: {sorted(twice)}")
        merged.update(part)
    return dict(sorted(merged.items()))


def check_same_shapes(expected: Mapping[str, jax.ShapeDtypeStruct], got: Mapping, *, where: str) -> None:
    """Raises one error that lists every missing, unknown and misshapen path of `got`."""
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
            f"{where}: the parameters are of another architecture than the config. "
            + "; ".join(problems)
            + ". Use the config the checkpoint was made with."
        )


def fingerprint(params: Mapping[str, jax.Array | np.ndarray]) -> str:
    """sha256 (16 hex digits) over paths, dtypes, shapes and bytes: equal only if every bit is."""

    def parts() -> Iterator[bytes | str]:
        for path in sorted(params):
            for value in map(np.asarray, jax.tree.leaves(params[path])):  # an int8 kernel is two arrays
                yield f"{path}|{value.dtype}|{value.shape}|"
                yield np.ascontiguousarray(value).tobytes()

    return fingerprint_stream(parts())


def count(params: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> int:
    """Number of scalars."""
    return sum(int(np.prod(value.shape)) for value in params.values())


def cast(params: Mapping[str, jax.Array], dtype: str) -> Params:
    """Floating arrays in another dtype."""
    return {path: value.astype(np.dtype(getattr(ml_dtypes, dtype, dtype))) for path, value in params.items()}
