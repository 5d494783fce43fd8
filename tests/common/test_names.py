"""Suggestions for misspelled names."""

from __future__ import annotations

import pytest

from earthgpt_jax.common.names import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trian", "; did you mean 'train'?"),
        ("xyz", "."),
        (["trian", "evla"], "; did you mean 'eval', 'train'?"),
        (["trian", "xyz", "tarin"], "; did you mean 'train'?"),
        ([], "."),
    ],
)
def test_the_nearest_names_are_suggested(name: str | list[str], expected: str) -> None:
    assert did_you_mean(name, iter(("train", "eval", "convert"))) == expected


def test_nothing_is_nearest_where_nothing_is_close() -> None:
    assert nearest("chta", {"chat": 1, "detect": 2}) == "chat"
    assert nearest("chta", ()) is None
