"""Both stages on a nano model: what is trained, what stays frozen, and what a work directory contains."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earthgpt_jax.cli.main import main
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import CheckpointConfig, ModelContents, to_dict
from earthgpt_jax.models import model_dir as io
from earthgpt_jax.training.checkpoints import Checkpoints
from earthgpt_jax.training.loop import train
from earthgpt_jax.training.state import State
from tests.support import nano


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset, a base model, and both stages trained without interruption."""
    root = tmp_path_factory.mktemp("world")
    data, base = nano.dataset(root / "data"), nano.model_dir(root / "base", nano.config("align").model)
    align = nano.config("align", f"data.source={data}", f"init={base}")
    aligned = train(align, root / "align")
    instruct = nano.config("instruct", f"data.source={data}", f"init={aligned}")
    tuned = train(instruct, root / "instruct")
    return {"root": root, "data": data, "base": base, "align": align, "aligned": aligned,
            "instruct": instruct, "tuned": tuned}  # fmt: skip


def test_frozen_arrays_keep_every_bit_and_trainable_ones_change(world):
    _, base = io.read(world["base"])
    _, aligned = io.read(world["aligned"])
    _, tuned = io.read(world["tuned"])
    moved_in_align = {path for path in base if not np.array_equal(base[path], aligned[path])}
    assert {path.split("/")[0] for path in moved_in_align} == {"projector", "image_tokens", "llm"}
    assert all("attn" in path or "norm" in path for path in moved_in_align if path.startswith("llm"))
    moved_in_instruct = {path for path in aligned if not np.array_equal(aligned[path], tuned[path])}
    assert not moved_in_instruct  # every path that align has is frozen in instruct
    adapters = tuned.keys() - aligned.keys()
    assert adapters and all("/adapter/" in path for path in adapters)
    assert any(np.any(tuned[path] != (1.0 if path.endswith("scale") else 0.0)) for path in adapters)


def test_instruct_leaves_the_adapters_alone_and_on_request_the_same_model_whole(world, tmp_path, capsys):
    model = io.read_config(world["tuned"])
    assert model.parent.path.samefile(world["aligned"])
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in (world["aligned"], world["tuned"])]
    assert sizes[1] < sizes[0] / 5
    shutil.copytree(world["root"] / "instruct", tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    whole = train(
        dataclasses.replace(world["instruct"], checkpoint=CheckpointConfig(model=ModelContents.WHOLE)), tmp_path / "run"
    )
    assert main(["convert", "merge", str(world["tuned"]), "--out", str(tmp_path / "merged")]) == 0
    (_, expected), (_, merged), (_, found) = io.read(whole), io.read(tmp_path / "merged"), io.read(world["tuned"])
    assert io.read_config(whole).stored_fingerprint == io.read_config(tmp_path / "merged").stored_fingerprint
    for arrays in (merged, found):
        assert [path for path, value in expected.items() if value.tobytes() != arrays[path].tobytes()] == []
    capsys.readouterr()
    assert main(["inspect", str(world["tuned"]), "--check"]) == 0
    out = capsys.readouterr().out
    assert "adapters alone: 14 tensors" in out and f"parent {world['aligned']}" in out and "llm/embed" in out


def test_a_config_of_a_version_with_fewer_settings_is_accepted(world, tmp_path):
    work = tmp_path / "align"
    shutil.copytree(world["root"] / "align", work)
    values = json.loads((work / "config.json").read_text())
    assert values["data"].pop("max_boxes") == 0
    (work / "config.json").write_text(json.dumps(values))
    assert train(world["align"], work) == work / "model"
    values["data"]["max_questions"] = 7
    (work / "config.json").write_text(json.dumps(values))
    with pytest.raises(EarthGPTError, match=r"data\.max_questions was 7, is 3"):
        train(world["align"], work)


def test_derived_questions_and_a_box_limit_train_and_are_logged(world, tmp_path, caplog):
    weights = "{'hbb': 1.0, 'presence': 1.0, 'absent_hbb': 1.0, 'count': 1.0}"
    config = nano.config(
        "instruct", f"data.source={world['data']}", f"init={world['aligned']}", f"data.task_weights={weights}",
        "data.max_boxes=1", "optim.steps=3", "data.seq_len=300",
    )  # fmt: skip
    train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["unlisted"] for line in lines)
    schedule = (tmp_path / "run" / "schedule.txt").read_text()
    for task in ("hbb", "presence", "absent_hbb", "count"):
        assert re.search(rf"^ *{task} +1 +[1-9]", schedule, re.MULTILINE), schedule
    assert "set of annotated classes is unknown" not in caplog.text  # it is known for the synthetic source


def test_checkpoints_contain_trainable_paths_only(world):
    for stage, trainable in (
        ("align", ("projector", "image_tokens", "attn", "norm")),
        ("instruct", ("adapter",)),
    ):
        metadata = json.loads((world["root"] / stage / "checkpoints" / "6" / "state" / "_METADATA").read_text())
        names = {str(key) for key in metadata["tree_metadata"]}
        paths = {part for name in names for part in name.split("'") if "/" in part}
        assert paths
        assert all(any(word in path for word in trainable) for path in paths), sorted(paths)
        assert not any(path.startswith(("vit/", "convnext/")) or path == "llm/embed" for path in paths)


def test_inspect_describes_a_run(world, capsys):
    assert main(["inspect", str(world["root"] / "instruct")]) == 0
    out = capsys.readouterr().out
    # Scale and bias of seven linear layers; k and v have half the heads.
    count = 2 * 2 * (5 * 32 + 2 * 48) - 2 * 2 * 2 * 16
    for text in (
        "run of tiny, stage instruct, finished after 6 steps", "checkpoint of step 6 of 6",
        "step 6, 24 packed sequences", f"14 arrays, {count:,} parameters", "from tiny",
        f"started from   {world['aligned']}", "mesh           data 4",
    ):  # fmt: skip
        assert text in out, out
    metadata = json.loads((world["root"] / "instruct" / "checkpoints" / "6" / "extra" / "metadata").read_text())
    assert metadata["config"] == to_dict(world["instruct"])
    assert metadata["frozen"]["fingerprint"] == metadata["identity"]["frozen weights"]


def test_a_finished_run_is_not_repeated_and_another_config_is_refused(world):
    before = (world["root"] / "align" / "metrics.jsonl").stat().st_mtime_ns
    started = time.monotonic()
    assert train(world["align"], world["root"] / "align") == world["aligned"]
    assert time.monotonic() - started < 2
    assert (world["root"] / "align" / "metrics.jsonl").stat().st_mtime_ns == before
    other = nano.config("align", f"data.source={world['data']}", f"init={world['base']}", "optim.peak_lr=0.5")
    with pytest.raises(EarthGPTError, match=r"optim\.peak_lr was 0\.002, is 0\.5"):
        train(other, world["root"] / "align")


def test_a_checkpoint_of_another_shape_is_refused(world):
    config = nano.config("align", f"data.source={world['data']}", f"init={world['base']}", "model.llm.dim=48")
    with pytest.raises(EarthGPTError, match="wrong shape"):
        train(config, world["root"] / "other")


def test_a_full_disk_during_a_save_keeps_earlier_checkpoints(world, monkeypatch):
    checkpoints = Checkpoints(world["root"] / "align", world["align"].checkpoint)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._store._manager, "save", full)
    with pytest.raises(EarthGPTError, match="the disk is full"):
        checkpoints.save(7, State(jnp.int32(7), {}, ()), {})
    assert checkpoints.latest() == 6
    checkpoints.close()


def test_gradient_accumulation_changes_results_by_rounding_only(world):
    root = world["root"]
    config = nano.config("align", f"data.source={world['data']}", f"init={world['base']}", "optim.microbatches=4")
    _, single = io.read(world["aligned"])
    _, parts = io.read(train(config, root / "parts"))
    for path in single:
        np.testing.assert_allclose(parts[path], single[path], atol=2e-5, err_msg=path)


def test_the_suite_runs_on_eight_cpu_devices():
    assert jax.device_count() == 8
