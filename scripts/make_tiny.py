"""Make the embedded models: `python scripts/make_tiny.py all --workdir runs/make_tiny --out earthgpt_jax/assets`.

Each step depends on the ones before it, is seeded, and is skipped if its result exists:

  data       synthetic training records, as a dataset and as arrays (`tiny_models/scenes.py`)
  tokenizer  a SentencePiece model with LLaMA's layout, trained on synthetic texts (`tiny_models/texts.py`)
  encoders   ViT and ConvNeXt, stand-ins for DINOv2 and CLIP, trained on a dense pretext task: for each cell, which
             object is there, where its corners are, and which of its class it is; the heads are discarded
             (`tiny_models/encoders.py`)
  llm        LLaMA, trained as a language model on scenes described by text or by maps, then on questions and answers
             about them, with one round on all possible questions about maps; it never sees an image
             (`tiny_models/language_model.py`)
  base       encoders + LLM + untrained projector = `tiny-base`
  align      stage `align` of the recipe `tiny`, with more steps
  all        stage `instruct` of the recipe `tiny`, with more steps = `tiny`

`--start tiny-base` continues from an embedded model instead: it keeps the encoders, makes the LLM's embeddings from
those of the old tokenizer's pieces (`tiny_models/transfer.py`), and trains the LLM in further rounds on today's
questions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from tiny_models.encoders import train_encoders
from tiny_models.language_model import train_llm
from tiny_models.scenes import dataset
from tiny_models.texts import tokenizer
from tiny_models.transfer import encoders_of

from earthgpt_jax.config import Config, load
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.training.loop import train


def base(workdir: Path, config: Config, args: argparse.Namespace) -> Path:
    """Assemble `tiny-base` from the trained encoders and LLM and an untrained projector; return its directory."""
    path = workdir / "tiny-base"
    if not path.exists():
        _, params = earthgpt.init(config.model, seed=0)
        arrays = model_dir.to_host(params)
        if args.start:
            encoders = encoders_of(args.start)
        else:
            encoders = dict(np.load(train_encoders(workdir, config, count=args.count, rounds=args.encoder_steps)))
        llm = dict(np.load(train_llm(workdir, config, rounds=args.llm_steps, count=args.count, start=args.start)))
        for loaded in (encoders, llm):
            assert loaded.keys() <= arrays.keys()
            arrays |= loaded
        model_dir.write(
            path, _bfloat16(arrays), model=config.model, decimals=config.data.decimals,
            chat_template=config.data.chat_template, tokenizer=tokenizer(workdir, config),
            provenance={"recipe": "scripts/make_tiny.py", "stage": "base", "steps": 0, "source": "synthetic"},
        )  # fmt: skip
    return path


def stage(workdir: Path, name: str, init: Path, overrides: Sequence[str]) -> Path:
    """Train a stage of the recipe `tiny`, resuming if it was interrupted; return its model directory."""
    config = load(f"tiny:{name}", [f"--config.init={init}", *overrides])
    return train(config, workdir / name)


def install(source: Path, target: Path) -> None:
    """Copy a model directory into the package, with parameters in bfloat16."""
    model, arrays = model_dir.read(source)
    model_dir.write(
        target, _bfloat16(arrays), model=model.model, decimals=model.decimals, chat_template=model.chat_template,
        tokenizer=model.tokenizer, provenance=model.provenance,
    )  # fmt: skip


def _bfloat16(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: np.asarray(value).astype(ml_dtypes.bfloat16) for path, value in arrays.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["tokenizer", "encoders", "llm", "data", "base", "align", "all"])
    parser.add_argument("--workdir", type=Path, default=Path("runs/make_tiny"), help="for intermediate results")
    parser.add_argument("--out", type=Path, default=Path("earthgpt_jax/assets"), help="for the finished models")
    parser.add_argument("--count", type=int, default=24000, help="number of training scenes")
    parser.add_argument(
        "--start", default="", help="model to continue from, such as tiny-base: encoders are kept, the LLM trained on"
    )
    parser.add_argument("--encoder-steps", type=int, nargs="+", default=[1500, 1500, 1500, 2000], help="per round")
    parser.add_argument("--llm-steps", type=int, nargs="+", default=[2400, 400, 500], help="per round")
    parser.add_argument("--align-steps", type=int, default=900)
    parser.add_argument("--instruct-steps", type=int, default=1400)
    args = parser.parse_args()
    # One device per core, each with a share of the batch, because XLA leaves cores idle within one CPU device.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    config = load("tiny:align")
    if args.step == "tokenizer":
        tokenizer(args.workdir, config)
    elif args.step == "encoders":
        train_encoders(args.workdir, config, count=args.count, rounds=args.encoder_steps)
    elif args.step == "llm":
        train_llm(args.workdir, config, rounds=args.llm_steps, count=args.count, start=args.start)
    elif args.step == "data":
        dataset(args.workdir, count=args.count)
    else:
        start = base(args.workdir, config, args)
        install(start, args.out / "tiny-base")
        if args.step == "base":
            return
        data = dataset(args.workdir, count=args.count)
        common = [f"--config.data.source={data}", "--config.checkpoint.every_steps=200"]
        aligned = stage(args.workdir, "align", start, [*common, f"--config.optim.steps={args.align_steps}",
                                                       "--config.optim.warmup_steps=100"])  # fmt: skip
        if args.step == "align":
            return
        tuned = stage(args.workdir, "instruct", aligned, [*common, f"--config.optim.steps={args.instruct_steps}",
                                                          "--config.optim.warmup_steps=100"])  # fmt: skip
        install(tuned, args.out / "tiny")


if __name__ == "__main__":
    main()
