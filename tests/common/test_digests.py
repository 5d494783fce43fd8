"""Digests keep their values: they are in manifests, file names, seeds and resume checks of data that exists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from earthgpt_jax.common import digests

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4, of b"abc"


def test_parts_are_concatenated() -> None:
    assert digests.sha256(b"abc") == digests.sha256("abc") == digests.sha256("a", b"bc") == ABC
    assert digests.sha256() == hashlib.sha256(b"").hexdigest()


def test_a_fingerprint_is_the_beginning_of_the_digest() -> None:
    assert digests.fingerprint("a", b"bc") == digests.fingerprint_stream(iter(("ab", b"c"))) == ABC[:16]


def test_json_is_hashed_with_sorted_keys() -> None:
    value = {"b": [1, 2.5, None], "a": {"z": "ö"}}
    expected = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    assert digests.sha256_json({"a": {"z": "ö"}, "b": [1, 2.5, None]}) == expected
    assert digests.fingerprint_json(value) == expected[:16]
    assert digests.fingerprint_json("abc") == digests.fingerprint('"abc"')
    assert digests.sha256_json(Path("x"), default=str) == digests.sha256('"x"')
    with pytest.raises(TypeError):
        digests.sha256_json(Path("x"))


def test_integers_are_the_first_bytes() -> None:
    raw = bytes.fromhex(ABC)
    assert digests.sha256_int("abc", size=8, byteorder="little") == int.from_bytes(raw[:8], "little")
    assert digests.sha256_int(b"abc", size=16, byteorder="big") == int.from_bytes(raw[:16], "big")


def test_a_file_is_hashed_in_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192  # two blocks and a half
    content += b"end"
    (tmp_path / "file").write_bytes(content)
    sizes: list[int] = []
    assert digests.sha256_file(tmp_path / "file", progress=sizes.append) == hashlib.sha256(content).hexdigest()
    assert sum(sizes) == len(content) and len(sizes) == 3
    with pytest.raises(FileNotFoundError):
        digests.sha256_file(tmp_path / "absent")
