"""Chunks of examples -> a dataset directory: ArrayRecord shards, as TFDS divides and describes them.

A shard is a file written from a list of places in chunks, in any process, and is finished when the file of its
sha256 is there.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import json
import os
import pickle
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, naming
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.splits import SplitDict, SplitInfo
from tensorflow_datasets.core.utils.shard_utils import ShardConfig, get_shard_boundaries
from tqdm import tqdm

from earthgpt_jax import __version__
from earthgpt_jax.common.digests import fingerprint_json, sha256, sha256_file
from earthgpt_jax.common.files import atomic_path, write_bytes, write_text
from earthgpt_jax.common.parallel import Engine
from earthgpt_jax.datasets import image_digests
from earthgpt_jax.datasets.build import chunks
from earthgpt_jax.datasets.build.counts import RecordCounts
from earthgpt_jax.datasets.examples import FEATURES, VERSION
from earthgpt_jax.datasets.manifest import MANIFEST, QUARANTINE, TFDS_NAME

FORMAT = file_adapters.FileFormat.ARRAY_RECORD
_TOOLS = ("array_record", "numpy", "pillow", "protobuf", "shapely", "tensorflow-datasets")


class Builder(FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """What TFDS knows of a dataset directory; the name comes with the instance, since one class serves every source."""

    VERSION = tfds.core.Version(VERSION)
    name = TFDS_NAME

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Records of remote sensing images with everything known of them.",
            features=tfds.features.FeaturesDict(FEATURES),
            disable_shuffling=True,  # the sources' own order; the input pipeline shuffles
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        raise NotImplementedError("written by `datasets.build.builder`")


@dataclasses.dataclass
class SplitLayout:
    """Where the examples of one split lie, over all chunks, in order.

    Attributes:
        runs: (file of examples, starts u64[n], sizes u64[n]) of each chunk that has some.
    """

    runs: list[tuple[Path, array.array, array.array]] = dataclasses.field(default_factory=list)
    digests: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    holdings: RecordCounts = dataclasses.field(default_factory=RecordCounts)

    @property
    def size(self) -> int:
        return sum(sum(sizes) for _, _, sizes in self.runs)

    def cut(self) -> list[list[tuple[Path, array.array, array.array]]]:
        """The runs of each shard; how many shards there are is TFDS's rule (64 MiB to 1 GiB each)."""
        count = len(self.digests)
        ends = get_shard_boundaries(count, ShardConfig.calculate_number_shards(self.size, count))
        shards: list[list] = [[] for _ in ends]
        position, which = 0, 0
        for file, starts, sizes in self.runs:
            taken = 0
            while taken < len(starts):
                take = min(len(starts) - taken, ends[which] - position)
                if take:
                    shards[which].append((file, starts[taken : taken + take], sizes[taken : taken + take]))
                taken, position = taken + take, position + take
                if position == ends[which] and which + 1 < len(ends):
                    which += 1
        return shards


def split_layouts(found: Iterable[tuple[Path, chunks.ChunkIndex]]) -> dict[str, SplitLayout]:
    """Split -> layout, of (file of examples, index) of every chunk in order."""
    splits: dict[str, SplitLayout] = collections.defaultdict(SplitLayout)
    for file, index in found:
        for split, part in index.parts.items():
            layout = splits[split]
            layout.runs.append((file, part.starts, part.sizes))
            layout.digests.extend(part.digests)
            layout.holdings.update(part.holdings)
    return dict(splits)


def write_jobs(folder: Path, splits: Mapping[str, SplitLayout]) -> dict[str, list[Path]]:
    """Split -> a job for each of its shards."""
    jobs: dict[str, list[Path]] = {}
    for split, layout in splits.items():
        jobs[split] = []
        for runs in layout.cut():
            # Chunks of the same name hold the same bytes, so a shard of the same places does too.
            data = pickle.dumps(runs, protocol=pickle.HIGHEST_PROTOCOL)
            job = folder / f"{split}-{sha256(data)[:20]}.job"
            write_bytes(job, data, durable=True)
            jobs[split].append(job)
    return jobs


def finished(job: Path) -> bool:
    return _shard(job).is_file() and _sum(job).is_file()


def run_job(job: Path) -> None:
    """Writes a job's shard and its sha256; does nothing if it is finished."""
    if finished(job):
        return
    with atomic_path(_shard(job), durable=True) as path:
        file_adapters.ADAPTER_FOR_FORMAT[FORMAT].write_examples(path, _examples(pickle.loads(job.read_bytes())))
        digest = sha256_file(path)
    write_text(_sum(job), digest, durable=True)


def _examples(runs: Sequence[tuple[Path, array.array, array.array]]) -> Iterator[tuple[int, bytes]]:
    for path, starts, sizes in runs:
        with path.open("rb") as file:
            for start, size in zip(starts, sizes, strict=True):
                file.seek(start)
                yield 0, file.read(size)


def _shard(job: Path) -> Path:
    return job.with_suffix(".shard")


def _sum(job: Path) -> Path:
    return job.with_suffix(".sha256")


def write_directory(
    work: Path,
    found: Iterable[tuple[Path, chunks.ChunkIndex]],
    *,
    engine: Engine,
    out: Path,
    name: str,
    manifest: Mapping[str, Any],
    quarantine: Iterable[Mapping[str, Any]] = (),
    order: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> None:
    """Writes the shards of all chunks and everything beside them, then gives the whole its name, `out`.

    Args:
        work: a folder on the disk of `out`; what is made on the way stays there.
        found: (file of examples, index) of every chunk, in order.
        manifest: more to be said in manifest.json.
        quarantine: one mapping an entry.
        order: of the splits; others come behind.
        files: more files of `work`, which are moved.

    Raises:
        OSError: the disk is full, or `out` came into being meanwhile.
    """
    splits = split_layouts(found)
    splits = {s: splits[s] for s in sorted(splits, key=lambda s: (*order, s).index(s))}
    shards_folder, staged = work / "shards", work / "dataset"
    shards_folder.mkdir(exist_ok=True)
    jobs = write_jobs(shards_folder, splits)
    open_jobs = [job for of_split in jobs.values() for job in of_split if not finished(job)]
    described = {"desc": f"{name}: shards", "unit": "shard", "leave": False, "disable": len(open_jobs) < 2}
    for _ in tqdm(engine.run(run_job, open_jobs), total=len(open_jobs), **described):
        pass
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir()
    sums = _stage(staged, splits, jobs)
    with (staged / QUARANTINE).open("w") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in quarantine)
    image_digests.write_image_digests(staged, {split: layout.digests for split, layout in splits.items()})
    for path in files:
        os.replace(path, staged / path.name)
    values = {
        "name": name,
        "version": VERSION,
        "fingerprint": fingerprint_json(sums),
        "counts": {split: layout.holdings.plain() for split, layout in splits.items()},
        "shards": sums,
        "sizes": {shard: (staged / shard).stat().st_size for shard in sums},
        "versions": versions(),
        **manifest,
    }
    (staged / MANIFEST).write_text(json.dumps(values, indent=1) + "\n")
    os.replace(staged, out)


def _stage(staged: Path, splits: Mapping[str, SplitLayout], jobs: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Moves the shards under the names that TFDS looks for, and writes its descriptions; name -> sha256."""
    builder = Builder(data_dir=staged.parent, file_format=FORMAT)
    sums, infos = {}, []
    for split, layout in splits.items():
        template = naming.ShardedFileTemplate(
            data_dir=staged, dataset_name=TFDS_NAME, split=split, filetype_suffix=FORMAT.value
        )
        lengths = []
        for position, job in enumerate(jobs[split]):
            path = Path(template.sharded_filepath(shard_index=position, num_shards=len(jobs[split])))
            lengths.append(sum(len(starts) for _, starts, _ in pickle.loads(job.read_bytes())))
            sums[path.name] = _sum(job).read_text()
            os.replace(_shard(job), path)
        infos.append(SplitInfo(name=split, shard_lengths=lengths, num_bytes=layout.size, filename_template=template))
    builder.info.set_splits(SplitDict(infos))
    builder.info.write_to_directory(staged)
    return dict(sorted(sums.items()))


def versions() -> dict[str, str]:
    """Of what the bytes of a dataset may depend on."""
    return {"earthgpt-jax": __version__, "python": platform.python_version()} | {tool: version(tool) for tool in _TOOLS}
