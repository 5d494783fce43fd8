"""The data loaders that `input.py` compares: each yields batches of the same samples from the same files.

Ours starts from the packing schedule. The others are written as users of their libraries write them. They receive the
finished texts of a sample and tokenize, decode, pad, resize and collate; they compute no loss weights, positions or
question indexes, and pack nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from earthgpt_jax.common.resources import assets_path
from earthgpt_jax.config import Config, load
from earthgpt_jax.input.batch import Batch
from earthgpt_jax.input.packing.training_data import load_training_data
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences, train_batches
from earthgpt_jax.input.tokenizer import Tokenizer

SEQUENCES_PER_BATCH, IMAGES_PER_BATCH = 4, 16
SIZE, FILL = 512, (122, 116, 104)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch.

    Attributes:
        images: Arrays u8[n, S, S, 3].
        questions: Number of texts.
        ids: Returns the token ids of every text of every image, in order; only the comparison calls it.
    """

    images: Sequence[np.ndarray]
    questions: int
    ids: Callable[[], list[list[int]]]

    def __len__(self) -> int:
        return sum(map(len, self.images))


def recipe(datasets: str) -> Config:
    """Return the 13B recipe of the `instruct` stage on these datasets."""
    return load(
        "earthgpt_13b:instruct", [f"--config.data.source={datasets}", f"--config.data.batch_size={SEQUENCES_PER_BATCH}"]
    )


def packed_sequences(datasets: str) -> PackedSequences:
    """Return the packed sequences of that recipe."""
    config = recipe(datasets)
    tokenizer = Tokenizer(assets_path("tiny", "tokenizer.model"))
    return PackedSequences.of(load_training_data(config, tokenizer=tokenizer, workers=1), InputSpec.of(config))


def ours(work: Path, *, workers: int) -> Iterator[Loaded]:
    """EarthGPT-JAX."""
    about = json.loads((work / "about.json").read_text())
    sequences = packed_sequences(about["datasets"])
    batches = train_batches(sequences, workers=workers, threads=2)
    for _ in range(about["batches"]):
        _, batch = next(batches)
        used = batch.segments.max(axis=1)
        starts = (batch.question_index > 0) & (np.diff(batch.question_index, axis=1, prepend=0) != 0)
        yield Loaded(
            images=[images[:count] for images, count in zip(batch.images, used, strict=True)],
            questions=int(starts.sum()),
            ids=functools.partial(_turns, batch),
        )
    batches.close()


def _turns(batch: Batch) -> list[list[int]]:
    """Return the ids of every turn, without the prefix that the turns of an image share."""
    turns = []
    for tokens, segments, question_index in zip(batch.tokens, batch.segments, batch.question_index, strict=True):
        turn = segments.astype(np.int64) * 1000 + question_index
        turns += [tokens[turn == value].tolist() for value in np.unique(turn[question_index > 0])]
    return turns


def square(image: Image.Image) -> np.ndarray:
    """Pad and resize like LLaVA and LLaMA2-Accessory: `expand2square`, then Pillow's bicubic filter."""
    image = image.convert("RGB")
    width, height = image.size
    if width != height:
        side = max(width, height)
        canvas = Image.new("RGB", (side, side), FILL)
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        image = canvas
    return np.array(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


class Files:
    """A JSON list of samples and a folder of image files, LLaVA's layout, as a PyTorch dataset."""

    def __init__(self, work: Path, samples: str = "samples.json"):
        self.folder = work / "images"
        self.samples = json.loads((work / samples).read_text())
        self.tokenizer = _processor()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        with Image.open(self.folder / sample["file"]) as image:
            return _item(square(image), sample["texts"], self.tokenizer)


class Shards:
    """The same samples with images from ArrayRecord shards, through TFDS's random-access data source."""

    def __init__(self, work: Path):
        import tensorflow_datasets as tfds

        self.samples = json.loads((work / "samples.json").read_text())
        self.tokenizer = _processor()
        self.sources = {
            key: tfds.builder_from_directory(key[0]).as_data_source(split=key[1])
            for key in {(sample["folder"], sample["split"]) for sample in self.samples}
        }

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        record = self.sources[sample["folder"], sample["split"]][sample["record"]]
        return _item(square(Image.open(io.BytesIO(record["image"]))), sample["texts"], self.tokenizer)


def _processor() -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(assets_path("tiny", "tokenizer.model")))


def _item(pixels: np.ndarray, texts: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    import torch

    return {"image": torch.from_numpy(pixels), "ids": [torch.tensor(ids) for ids in tokenizer.encode(list(texts))]}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack images, and pad ids to the longest of the batch."""
    import torch

    ids = [turn for item in items for turn in item["ids"]]
    return {
        "images": torch.stack([item["image"] for item in items]),
        "ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "lengths": torch.tensor([len(turn) for turn in ids]),
    }


def _loaded(dataset: Any, *, workers: int, convert: Callable = collate) -> Iterator[Loaded]:
    import torch

    loader = torch.utils.data.DataLoader(
        dataset, batch_size=IMAGES_PER_BATCH, num_workers=workers, collate_fn=convert, persistent_workers=workers > 0
    )
    for batch in loader:
        yield Loaded(
            images=[batch["images"].numpy()], questions=len(batch["ids"]), ids=functools.partial(_trimmed, batch)
        )


def _trimmed(batch: Mapping[str, Any]) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(batch["ids"], batch["lengths"].tolist(), strict=True)]


def torch_files(work: Path, *, workers: int) -> Iterator[Loaded]:
    """PyTorch's DataLoader, image files."""
    return _loaded(Files(work), workers=workers)


def torch_shards(work: Path, *, workers: int) -> Iterator[Loaded]:
    """PyTorch's DataLoader, TFDS data source."""
    return _loaded(Shards(work), workers=workers)


def torch_pairs(work: Path, *, workers: int) -> Iterator[Loaded]:
    """PyTorch's DataLoader, image files, one sample per question, which decodes the image again for each question."""
    return _loaded(Files(work, "pairs.json"), workers=workers)


def hugging_face(work: Path, *, workers: int) -> Iterator[Loaded]:
    """`datasets` with images in an Arrow table, transformed on access, in a DataLoader, as in its documentation."""
    import datasets

    tokenizer = _processor()

    def transform(batch: Mapping[str, list]) -> dict[str, list]:
        items = [
            _item(square(image), texts, tokenizer) for image, texts in zip(batch["image"], batch["texts"], strict=True)
        ]
        return {key: [item[key] for item in items] for key in ("image", "ids")}

    table = datasets.load_from_disk(str(work / "arrow"))
    return _loaded(table.with_transform(transform), workers=workers)


LOADERS: Mapping[str, Callable[..., Iterator[Loaded]]] = {
    "EarthGPT-JAX": ours,
    "torch DataLoader, image files": torch_files,
    "torch DataLoader, TFDS data source": torch_shards,
    "datasets + torch DataLoader": hugging_face,
    "torch DataLoader, a sample for each question": torch_pairs,
}


def prepare(datasets: Path, work: Path, *, batches: int) -> None:
    """Write what the loaders read: `about.json`, `samples.json`, `pairs.json`, `images/`, `arrow/`."""
    import datasets as hf

    from earthgpt_jax.input.prompts.chat_template import chat_template

    sequences = packed_sequences(str(datasets))
    prompts = sequences.build.prompt_config
    template = chat_template(prompts.chat_template)
    (work / "images").mkdir(parents=True)
    samples, names = [], dict[str, str]()
    for number in range(batches * SEQUENCES_PER_BATCH):
        for sample in sequences.schedule[number]:
            source: Any = sequences.build.sources[sample.source]
            record = source[sample.record]
            questions = [prompts.question(record, *key, annotated=source.annotated) for key in sample.questions]
            name = names.setdefault(record.id, f"{len(names):06d}")
            if not (work / "images" / name).exists():
                (work / "images" / name).write_bytes(record.image)
            samples.append(
                {
                    "folder": os.path.abspath(source.directory), "split": source.split, "record": sample.record,
                    "file": name, "texts": [template.dialogue([(q.text, q.answer)])[0] for q in questions],
                }
            )  # fmt: skip
    pairs = [sample | {"texts": [text]} for sample in samples for text in sample["texts"]][: len(samples)]
    for name, value in (
        ("about.json", {"datasets": os.path.abspath(datasets), "batches": batches}),
        ("samples.json", samples),
        ("pairs.json", pairs),
    ):
        (work / name).write_text(json.dumps(value))

    def table_rows() -> Iterator[dict[str, Any]]:
        for sample in samples:
            yield {"image": {"bytes": (work / "images" / sample["file"]).read_bytes()}, "texts": sample["texts"]}

    features = hf.Features({"image": hf.Image(), "texts": hf.List(hf.Value("string"))})
    table = hf.Dataset.from_generator(table_rows, features=features, cache_dir=str(work / "cache"))
    table.save_to_disk(str(work / "arrow"))
