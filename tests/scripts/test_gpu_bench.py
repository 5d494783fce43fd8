"""The GPU benchmark at nano size on a CPU: the same code as on a GPU, with few packages."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from earthgpt_jax.aot import gpus
from earthgpt_jax.config import load

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"

# A GPU machine may lack these. A finder that refuses them comes first, so that they cannot be imported.
REFUSED = (
    "grain", "tensorflow_datasets", "array_record", "numba", "tensorflow", "orbax", "sentencepiece", "simplejpeg",
    "shapely", "PIL", "imagehash", "pycocoevalcap", "tensorboardX", "ml_collections", "safetensors", "tqdm", "torch",
)  # fmt: skip
IMPORTS = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED!r}:
            raise ImportError(f"refused: {{name}}")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {str(BENCH)!r})
import gpu
import gpu_checks.attention, gpu_checks.decode, gpu_checks.train
from gpu_checks.cases import decode_case, train_case

train_case("13B", "instruct", tiny=False), decode_case("7B", tiny=False)
"""


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `gpu_checks` importable, as in a process that runs `scripts/bench/gpu.py`."""
    monkeypatch.syspath_prepend(str(BENCH))


def _run(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Run gpu.sh at nano size, and return the process and the contents of gpu.json."""
    done = subprocess.run(
        ["bash", BENCH / "gpu.sh", "--tiny", "--out", out, *arguments],
        env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert (out / "gpu.json").is_file(), done.stdout + done.stderr
    return done, json.loads((out / "gpu.json").read_text())


def _check_complete(out: Path, *parts: str) -> dict[str, float]:
    """Run parts, expect success, and return the measured values by quantity."""
    done, table = _run(out, "--minutes", "30", "--part-minutes", "20", "--parts", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(part["part"], part["status"]) for part in table["parts"]] == [(part, "ok") for part in parts]
    assert {result["part"] for result in table["results"]} == set(parts)
    assert len((out / "gpu.md").read_text().splitlines()) > len(table["results"])
    return {result["quantity"]: result["value"] for result in table["results"]}


def test_attention_part_reports_differences_and_times(tmp_path: Path) -> None:
    values = _check_complete(tmp_path, "attention", "attention_time")
    differences = [value for name, value in values.items() if "largest difference" in name]
    assert len(differences) == 8 and max(differences) < 0.1
    assert values["time of jax.nn, forward and backward"] > 0


@pytest.mark.slow
def test_training_part_reports_speed_and_memory(tmp_path: Path) -> None:
    values = _check_complete(tmp_path, "train_13b_int8")
    assert values["training"] > 0 and values["memory of the compiled step"] > 0


@pytest.mark.slow
def test_decoding_part_prefills_a_shared_prefix_once(tmp_path: Path) -> None:
    values = _check_complete(tmp_path, "decode_7b")
    assert values["generated, without prefill"] > 0
    assert values["tokens prefilled"] == 2 * 52 + 8 * 6  # two images, eight questions: the last run


@pytest.mark.slow
def test_all_parts(tmp_path: Path) -> None:
    _check_complete(
        tmp_path, "attention", "train_13b", "decode_13b", "attention_time", "train_1b", "train_7b", "decode_7b",
        "train_13b_int8",
    )  # fmt: skip


def test_a_failed_part_ends_no_other_and_gives_status_1(tmp_path: Path) -> None:
    done, table = _run(tmp_path, "--part-minutes", "0.001", "--parts", "attention", "train_1b")
    assert done.returncode == 1
    assert [part["status"] for part in table["parts"]] == ["failed", "failed"]
    assert "limit" in table["parts"][0]["message"]

    done, table = _run(tmp_path, "--minutes", "0", "--parts", "attention", "train_1b")
    assert done.returncode == 1
    assert [part["status"] for part in table["parts"]] == ["not run", "not run"]


def test_an_attention_that_ignores_the_packing_is_found(tmp_path: Path, checks: None) -> None:
    import jax.numpy as jnp
    from gpu_checks.attention import PortableAttention, compare
    from gpu_checks.cases import AttentionCase
    from gpu_checks.results import Recorder

    class Causal(PortableAttention):
        def prepare(self, mask):
            return jnp.broadcast_to(jnp.tril(jnp.ones_like(mask[0])), mask.shape)[:, None]

    case = AttentionCase(batch=1, length=64, heads=2, kv_heads=1, head_dim=8)
    recorder = Recorder(part="attention", path=tmp_path / "results.jsonl")
    assert compare(case, PortableAttention(), recorder) == []
    problems = compare(case, Causal(), recorder)
    assert len(problems) == 4 and all("differs from fp32" in problem for problem in problems)


def test_imports_only_what_a_gpu_machine_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", ["7B", "13B"])
def test_models_are_those_of_the_recipes(size: str, checks: None) -> None:
    from gpu_checks.cases import decode_case, train_case

    recipe = load(f"earthgpt_{size.lower()}:instruct")
    assert train_case(size, "instruct", tiny=False).config.model == recipe.model
    assert decode_case(size, tiny=False).config.model == recipe.model


def test_batch_is_packed_like_those_of_the_pipeline(checks: None) -> None:
    import numpy as np
    from gpu_checks.batches import random_batch
    from gpu_checks.cases import train_case

    config = train_case("7B", "instruct", tiny=True).config
    batch, visual = random_batch(config, batch_size=3), config.model.visual_tokens
    assert batch.images.shape[:2] == (3, 2)
    slots = batch.image_slots[0]
    assert sorted(slots[slots >= 0]) == list(range(2 * visual))
    for segment in (1, 2):
        where = batch.segments[0] == segment
        for question in (1, 2):
            seen = where & np.isin(batch.question_index[0], [0, question])
            assert np.array_equal(batch.positions[0][seen], np.arange(seen.sum()))
    assert batch.loss_weights[batch.question_index == 0].sum() == 0 < batch.loss_weights.sum()


def test_memory_predicted_for_13b(checks: None) -> None:
    from gpu_checks.cases import train_case
    from gpu_checks.train import predict, with_batch_size

    predicted = {
        dtype: predict(with_batch_size(train_case("13B", "instruct", frozen_dtype=dtype, tiny=False).config, 1))
        for dtype in ("bfloat16", "int8")
    }
    assert 26.5e9 < predicted["bfloat16"].frozen < 27.5e9
    assert 13.5e9 < predicted["int8"].frozen < 15.5e9
    assert predicted["int8"].kept == predicted["bfloat16"].kept
    assert 126e3 < predicted["int8"].kept / (2048 * 40) < 128e3  # bytes per token and layer, as in models/remat.py
    assert predicted["int8"].state < 60e6
    assert predicted["int8"].total == sum(dataclasses.astuple(predicted["int8"]))


def test_gpus_are_found_by_their_device_names() -> None:
    bandwidth = {
        "NVIDIA H200": 4800, "NVIDIA H100 80GB HBM3": 3350, "NVIDIA H100 PCIe": 2000, "NVIDIA A100-SXM4-80GB": 2039,
        "NVIDIA A100-SXM4-40GB": 1555, "NVIDIA B200": 8000,
    }  # fmt: skip
    for name, expected in bandwidth.items():
        gpu = gpus.find(name)
        assert gpu is not None and gpu.hbm_gb_per_second == expected
    assert gpus.find("cpu") is None
