"""Params: tables that are total and tight, splitting, shapes, fingerprints."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax import params as params_lib
from earthgpt_jax.common.errors import EarthGPTError


def test_the_first_matching_rule_decides() -> None:
    rules = [(r"a/.*", 1), (r".*/kernel", 2)]
    assert params_lib.match(rules, ["a/kernel", "b/kernel"], table="t") == {"a/kernel": 1, "b/kernel": 2}


def test_all_uncovered_paths_and_unused_rules_are_reported_together() -> None:
    with pytest.raises(EarthGPTError) as error:
        params_lib.match([(r"a", 1), (r"c", 2), (r"a", 3)], ["a", "b", "d"], table="stages.align")
    text = str(error.value)
    assert "stages.align" in text and "no rule covers b, d" in text and "unused rules: c, a" in text


def test_a_regex_must_match_the_full_path() -> None:
    with pytest.raises(EarthGPTError, match="no rule covers ab"):
        params_lib.match([(r"a", 1)], ["a", "ab"], table="t")


def test_split_and_merge_are_inverse_and_merge_refuses_overlap() -> None:
    params = {"a": 1, "b": 2, "c": 3}
    chosen, rest = params_lib.split(params, ["b"])
    assert (chosen, rest) == ({"b": 2}, {"a": 1, "c": 3})
    assert params_lib.merge(chosen, rest) == params
    with pytest.raises(ValueError, match="more than one part"):
        params_lib.merge({"a": 1}, {"a": 1})


def test_shape_errors_are_reported_together() -> None:
    expected = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}
    with pytest.raises(EarthGPTError) as error:
        params_lib.check_same_shapes(expected, {"a": np.zeros((3, 2)), "c": np.zeros(1)}, where="file.x")
    text = str(error.value)
    assert "file.x" in text and "missing (1): b" in text and "unknown (1): c" in text
    assert "a: expected (2, 3), got (3, 2)" in text


def test_the_fingerprint_depends_on_every_bit_but_not_on_the_order() -> None:
    params = {"a": np.arange(3.0), "b": np.ones((2, 2), np.float32)}
    same = dict(reversed(params.items()))
    changed = params | {"a": np.nextafter(params["a"], 9)}
    assert params_lib.fingerprint(params) == params_lib.fingerprint(same)
    assert params_lib.fingerprint(params) != params_lib.fingerprint(changed)
    assert params_lib.fingerprint(params) != params_lib.fingerprint(params | {"b": np.ones(4, np.float32)})
