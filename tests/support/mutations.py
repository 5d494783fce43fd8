"""Seeded mutations of files, to test that a reader of untrusted input refuses what it cannot use."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Mutation = Callable[[random.Random, bytes], bytes]

# Values that take the place of a value of any other type.
ODD_VALUES = (
    None, True, -1, 0, 10**400, 2**63, 1e300, -1e300, float("nan"), float("inf"), "", "x", "\ud800", "../../evil",
    "a" * 10_000, [], {}, [[]], [None], {"": None}, ["x", 1], {"a": {"b": []}},
)  # fmt: skip
ODD_BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r",
    b"\xe2\x80\xa8",
    b'"',
    b"{",
    b"]",
    b"-",
    b"1e999",
)

ODD_NUMBERS = (b"nan", b"inf", b"-1", b"1e300", b"9" * 5000, b"", b"0", b"x", b"\xd9\xa3", b"1,5", b"99999999999")


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip_bit(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(ODD_BYTES) + data[place:]


def cut(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 200) :]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start : start + rng.randrange(1, 200)] * 2 + data[start:]


def replace_all(rng: random.Random, data: bytes) -> bytes:
    deep = rng.choice((b"[", b'{"a":'))
    return rng.choice((b"", b"\x00" * 100, b"null", b"[]", b"{}", b"7", b'"x"', b"<a/>", deep * 100_000, b"9" * 5000))


BYTES: tuple[Mutation, ...] = (truncate, flip_bit, insert, cut, repeat, replace_all)


def change_value(rng: random.Random, value: Any) -> Any:
    """Replace a value in a JSON document by one of another type, or remove it."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(ODD_VALUES)
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    return json.dumps(change_value(rng, json.loads(data))).encode()


def mutate_json_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place] = mutate_json(rng, lines[place]) + b"\n"
    return b"".join(lines)


def mutate_yaml(rng: random.Random, data: bytes) -> bytes:
    changed = change_value(rng, yaml.safe_load(data))
    return json.dumps(changed).encode()  # JSON is YAML


def mutate_number(rng: random.Random, data: bytes) -> bytes:
    """Replace a number in a text by an odd one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(ODD_NUMBERS) + data[match.end() :]
