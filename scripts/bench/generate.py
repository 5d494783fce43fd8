"""Measure answers per second: this engine with and without shared prefixes, and `transformers` on the exported model.

examples:
  python scripts/bench/generate.py --model tiny
  python scripts/bench/generate.py --model small --total 48 --theirs 8 --batches 8 16 32

The questions are VQA questions about synthetic scenes, `--each` per image (repeated where a scene has fewer); all
methods stop answers at the same token. `small` has random weights: a ViT-S/14 at 224 px, a narrow ConvNeXt and eight
layers of 512. All methods take turns in one process, after compilation. `transformers` gets preprocessed inputs, and
answers a subset of the questions where there are many. A figure is the median over the rounds, at the best of the batch
sizes. Ratios are given for wall time and for CPU time, which is more robust on a machine that is not idle.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from earthgpt_jax.common.tables import align_columns
from earthgpt_jax.config import model_from_dict
from earthgpt_jax.convert.exporter import export_hf
from earthgpt_jax.inference.engine import Engine
from earthgpt_jax.inference.reference import Prompts, generate
from earthgpt_jax.inference.requests import ImageRequests, Request
from earthgpt_jax.input.batch import TEXT_SLOT
from earthgpt_jax.input.images import load_square
from earthgpt_jax.input.prompts.questions import BoxStyle, evaluation_questions
from earthgpt_jax.input.sequences import generation_prompt
from earthgpt_jax.models import earthgpt, model_dir
from earthgpt_jax.records import Task
from earthgpt_jax.synthetic import SyntheticSource

LIMIT = 16  # tokens of an answer
_LEAST_IMAGES = 4
_SMALL = {
    "image_size": 256,
    "vit": {"image_size": 224, "patch_size": 14, "dim": 384, "depth": 12, "heads": 6, "ffn_dim": 1536, "grid": 16},
    "convnext": {"image_size": 256, "depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512)},
    "perception": {"vit_layers": (5, 11), "cnn_stages": (0, 1, 2, 3)},
    "llm": {"vocab_size": 1024, "dim": 512, "depth": 8, "heads": 8, "kv_heads": 8, "ffn_dim": 1376},
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One question about an image, and the image in both forms that the methods take."""

    id: str
    picture: bytes
    square: np.ndarray
    text: str


@dataclasses.dataclass
class Way:
    """A method to compare: `run` answers items and returns their texts."""

    name: str
    items: Sequence[Item]
    run: Callable[[Sequence[Item]], list[str]]
    seconds: list[float] = dataclasses.field(default_factory=list)
    core_seconds: list[float] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)

    def once(self) -> None:
        started, cores = time.perf_counter(), time.process_time()
        self.texts = self.run(self.items)
        self.seconds.append(time.perf_counter() - started)
        self.core_seconds.append(time.process_time() - cores)

    @property
    def rate(self) -> float:
        return len(self.items) / statistics.median(self.seconds)

    @property
    def core_rate(self) -> float:
        return len(self.items) / statistics.median(self.core_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, small, or a model directory (default: tiny)")
    parser.add_argument(
        "--each", type=int, nargs="+", default=[1, 20, 100], help="questions per image (default: 1 20 100)"
    )
    parser.add_argument(
        "--total", type=int, default=400, help="approximate number of questions per round (default: 400)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: 3)")
    parser.add_argument("--theirs", type=int, default=32, help="questions for transformers at batch 1 (default: 32)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[32, 64, 128], help="batch sizes to try (default: 32 64 128)"
    )
    args = parser.parse_args()

    table: list[tuple[str, ...]] = [
        (
            "questions per image",
            "method",
            "answers/s",
            "x transformers, batch 1",
            "x, in core time",
            "x own prefix",
            "prefilled tokens saved",
            "same answers",
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        model = _small(Path(folder) / "small") if args.model == "small" else args.model
        theirs = _transformers(export_hf(model, Path(folder) / "export"))
        engines = {size: Engine.from_model_dir(model, batch_size=size) for size in args.batches}
        for each in args.each:
            images = max(_LEAST_IMAGES, args.total // each)
            items = _items(images, each, size=next(iter(engines.values())).image_size)
            saved: dict[str, str] = {}
            ways = _ways(items, engines, theirs, args.theirs, saved)
            for _ in tqdm(range(args.rounds + 1), desc=f"{each} per image", unit="round"):
                for way in ways:
                    way.once()
            for way in ways:
                del way.seconds[0], way.core_seconds[0]  # this round compiled
            best: dict[str, Way] = {}
            for way in ways:
                kind = way.name.partition(", batch ")[0]
                name = f"{kind}, batch 1" if way.name.endswith(", batch 1") else kind
                if name not in best or way.rate > best[name].rate:
                    best[name] = way
            one, own = best["transformers, batch 1"], best["ours, own prefix"]
            right = {item.id: text for item, text in zip(ways[0].items, ways[0].texts, strict=True)}
            for way in best.values():
                same = sum(right[item.id] == text for item, text in zip(way.items, way.texts, strict=True))
                table.append(
                    (str(each), way.name, f"{way.rate:.1f}", f"{way.rate / one.rate:.1f}",
                     f"{way.core_rate / one.core_rate:.1f}", f"{way.rate / own.rate:.1f}", saved.get(way.name, ""),
                     f"{same} of {len(way.items)}")
                )  # fmt: skip
            print("\n".join(align_columns(table[:1] + table[-len(best) :])), flush=True)
    print("\n".join(align_columns(table)))


def _small(path: Path) -> Path:
    """Write a model directory with random weights and the tokenizer of `tiny`."""
    tiny = model_dir.read_config("tiny")
    values = {**_SMALL, "adapter": {"kind": "scale+bias"}, "compute_dtype": "float32"}
    model = model_from_dict(values, where="small")
    _, params = earthgpt.init(model, seed=0)
    model_dir.write(
        path, model_dir.to_host(params), model=model, decimals=tiny.decimals, chat_template=tiny.chat_template,
        tokenizer=tiny.tokenizer, provenance={"recipe": "small"},
    )  # fmt: skip
    return path


def _items(images: int, each: int, *, size: int) -> list[Item]:
    source = SyntheticSource("test", images)
    items = []
    for number in range(images):
        record = source[number]
        asked = evaluation_questions(record, box_style=BoxStyle(), tasks=[Task.VQA])
        square = load_square(record.image, size, record.stretch)
        items += [Item(f"{number}/{i}", record.image, square, asked[i % len(asked)].text) for i in range(each)]
    return items


def _ways(items: Sequence[Item], engines: dict[int, Engine], theirs: Callable, alone: int, saved: dict) -> list[Way]:
    def ours(engine: Engine, name: str, key: Callable[[Item], str]) -> Callable[[Sequence[Item]], list[str]]:
        def run(items: Sequence[Item]) -> list[str]:
            groups: dict[str, list[Item]] = {}
            for item in items:
                groups.setdefault(key(item), []).append(item)
            scenes = [
                ImageRequests(
                    image=lambda group=group: group[0].square,  # type: ignore[misc]
                    requests=[Request(id=item.id, text=item.text, max_new_tokens=LIMIT) for item in group],
                )
                for group in groups.values()
            ]
            texts = {answer.id: answer.text for answer in engine.stream(scenes)}
            saved[name] = f"{1 - engine.counts.prefill / engine.counts.unshared:.0%}"
            return [texts[item.id] for item in items]

        return run

    ways = []
    for size, engine in engines.items():
        for kind, key in (
            ("ours, shared prefix", lambda item: item.id.partition("/")[0]), ("ours, own prefix", lambda item: item.id),
        ):  # fmt: skip
            name = f"{kind}, batch {size}"
            ways.append(Way(name, items, ours(engine, name, key)))
        ways.append(Way(f"plain loop, batch {size}", items, _plain(engine, size)))
    some = items[:: max(1, len(items) // alone)]
    ways.append(Way("transformers, batch 1", some, lambda items: theirs(items, 1)))
    for size in engines:
        some = items[: size * max(1, min(2, len(items) // size))]
        ways.append(Way(f"transformers, batch {size}", some, lambda items, size=size: theirs(items, size)))  # type: ignore[misc]
    return ways


def _plain(engine: Engine, size: int) -> Callable[[Sequence[Item]], list[str]]:
    """Run the reference loop on batches of whole prompts, until the last answer of a batch has ended."""

    def batch(items: Sequence[Item]) -> list[str]:
        rows = [
            generation_prompt(
                engine.tokenizer, engine.chat_template, item.text, visual_tokens=engine.model.model.visual_tokens
            )
            for item in items
        ]
        length = -(-max(len(tokens) for tokens, _ in rows) // 32) * 32
        index = [i if i < len(items) else 0 for i in range(size)]

        def padded(part: int, fill: int) -> jax.Array:
            values = [np.pad(row[part], (0, length - len(row[part])), constant_values=fill) for row in rows]
            return jnp.asarray(np.stack([values[i] for i in index]))

        output = generate(
            engine.graphdef, engine.params,
            Prompts(
                tokens=padded(0, 0), image_slots=padded(1, TEXT_SLOT),
                lengths=jnp.asarray([len(rows[i][0]) for i in index]),
                images=jnp.asarray(np.stack([items[i].square for i in index])),
            ),
            config=engine.model.model, max_new_tokens=LIMIT, stop=engine.stop,
        )  # fmt: skip
        return [engine.decode_tokens(row)[0] for row in np.asarray(output)[: len(items)]]

    return lambda items: [
        text for start in range(0, len(items), size) for text in batch(items[start : start + size])
    ]  # fmt: skip


def _transformers(folder: Path) -> Callable[[Sequence[Item], int], list[str]]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    ready: dict[tuple[str, ...], dict] = {}

    def run(items: Sequence[Item], size: int) -> list[str]:
        texts = []
        for start in range(0, len(items), size):
            some = items[start : start + size]
            key = tuple(item.id for item in some) + tuple(item.text for item in some)
            if key not in ready:  # in the round that is not measured
                ready[key] = processor(
                    images=[item.picture for item in some], text=[item.text for item in some], return_tensors="pt"
                )
            with torch.inference_mode():
                output = model.generate(**ready[key], max_new_tokens=LIMIT)
            texts += processor.batch_decode(output[:, ready[key]["input_ids"].shape[1] :])
        return texts

    return run


if __name__ == "__main__":
    main()
