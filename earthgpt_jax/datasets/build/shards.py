"""The second half of a build: write chunks as ArrayRecord shards, and everything else in a dataset directory.

TFDS decides how many shards there are and describes them, so that `tfds.builder_from_directory` can read the directory.
A shard is written by a job, which lists pieces of chunks, in any process. It is finished once the file with its sha256
exists.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters, naming
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.splits import SplitDict, SplitInfo
from tensorflow_datasets.core.utils.shard_utils import ShardConfig, get_shard_boundaries

from earthgpt_jax import __version__
from earthgpt_jax.common.digests import fingerprint_json, sha256, sha256_file
from earthgpt_jax.common.files import atomic_path, move_folder, renames_folders, write_bytes, write_json, write_text
from earthgpt_jax.common.parallel import Engine
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.datasets import image_digests
from earthgpt_jax.datasets.build.chunks import ChunkIndex
from earthgpt_jax.datasets.build.counts import RecordCounts
from earthgpt_jax.datasets.examples import FEATURES, VERSION
from earthgpt_jax.datasets.manifest import MANIFEST, QUARANTINE, TFDS_NAME

FORMAT = file_adapters.FileFormat.ARRAY_RECORD
Piece = tuple[Path, array.array, array.array]
_TOOLS = ("array_record", "numpy", "pillow", "protobuf", "rasterio", "shapely", "tensorflow-datasets")


class Builder(FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Describe a dataset directory to TFDS; one class serves all datasets."""

    VERSION = tfds.core.Version(VERSION)
    name = TFDS_NAME

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Remote-sensing images with all their annotations.",
            features=tfds.features.FeaturesDict(FEATURES),
            disable_shuffling=True,  # keep the order of the native files; the input pipeline shuffles
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        raise NotImplementedError("written by `datasets.build.builder`")


@dataclasses.dataclass
class SplitLayout:
    """Where the serialised records of one split are in the chunks, in order.

    Attributes:
        pieces: (file of examples, starts u64[n], sizes u64[n]) of each chunk with records of the split.
        digests: the image digest of each record.
        counts: counts of the records.
    """

    pieces: list[Piece] = dataclasses.field(default_factory=list)
    digests: array.array = dataclasses.field(default_factory=lambda: array.array("Q"))
    counts: RecordCounts = dataclasses.field(default_factory=RecordCounts)

    @property
    def size(self) -> int:
        """The size of all records in bytes."""
        return sum(sum(sizes) for _, _, sizes in self.pieces)

    def divide(self) -> list[list[Piece]]:
        """Return the pieces of each shard. TFDS decides the number of shards (64 MiB to 1 GiB each)."""
        count = len(self.digests)
        ends = get_shard_boundaries(count, ShardConfig.calculate_number_shards(self.size, count))
        shards: list[list[Piece]] = [[] for _ in ends]
        position, shard = 0, 0
        for file, starts, sizes in self.pieces:
            taken = 0
            while taken < len(starts):
                take = min(len(starts) - taken, ends[shard] - position)
                if take:
                    shards[shard].append((file, starts[taken : taken + take], sizes[taken : taken + take]))
                taken, position = taken + take, position + take
                if position == ends[shard] and shard + 1 < len(ends):
                    shard += 1
        return shards


def _split_layouts(chunks: Iterable[tuple[Path, ChunkIndex]]) -> dict[str, SplitLayout]:
    """Return the layout of each split over all chunks."""
    splits: dict[str, SplitLayout] = collections.defaultdict(SplitLayout)
    for file, index in chunks:
        for split, part in index.splits.items():
            layout = splits[split]
            layout.pieces.append((file, part.starts, part.sizes))
            layout.digests.extend(part.digests)
            layout.counts.update(part.counts)
    return dict(splits)


def _write_jobs(folder: Path, splits: Mapping[str, SplitLayout]) -> dict[str, list[Path]]:
    """Write the jobs of each split, one per shard, and return their paths."""
    jobs: dict[str, list[Path]] = {}
    for split, layout in splits.items():
        jobs[split] = []
        for pieces in layout.divide():
            # Chunks with the same name have the same bytes, so shards of the same pieces do, too.
            data = pickle.dumps(pieces, protocol=pickle.HIGHEST_PROTOCOL)
            job = folder / f"{split}-{sha256(data)[:20]}.job"
            write_bytes(job, data, durable=True)
            jobs[split].append(job)
    return jobs


def _is_finished(job: Path) -> bool:
    return _shard_path(job).is_file() and _sum_path(job).is_file()


def run_job(job: Path) -> None:
    """Write the shard of a job and its sha256, unless they are finished."""
    if _is_finished(job):
        return
    with atomic_path(_shard_path(job), durable=True) as path:
        file_adapters.ADAPTER_FOR_FORMAT[FORMAT].write_examples(path, _read_examples(pickle.loads(job.read_bytes())))
        digest = sha256_file(path)
    write_text(_sum_path(job), digest, durable=True)


def _read_examples(pieces: Sequence[Piece]) -> Iterator[tuple[int, bytes]]:
    """Yield (key, serialised record); TFDS ignores the key for this file format."""
    for path, starts, sizes in pieces:
        with path.open("rb") as file:
            for start, size in zip(starts, sizes, strict=True):
                file.seek(start)
                yield 0, file.read(size)


def _shard_path(job: Path) -> Path:
    return job.with_suffix(".shard")


def _sum_path(job: Path) -> Path:
    return job.with_suffix(".sha256")


def write_directory(
    work: Path,
    chunks: Iterable[tuple[Path, ChunkIndex]],
    *,
    engine: Engine,
    out: Path,
    name: str,
    manifest: Mapping[str, Any],
    quarantine: Iterable[Mapping[str, Any]] = (),
    order: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> None:
    """Write all files of a dataset directory in `work`, then rename the complete directory to `out`, or upload it.

    Args:
        work: a folder on the same file system as `out`, or a local one for a bucket; finished shards stay there if the
            build is interrupted.
        chunks: (file of examples, index) of each chunk, in order.
        name: the dataset's name.
        manifest: more entries of manifest.json.
        quarantine: the lines of quarantine.jsonl.
        order: the order of the splits; splits that are not listed follow.
        files: files in `work` to move into the directory.

    Raises:
        OSError: the disk is full, or `out` has been created in the meantime.
    """
    splits = _split_layouts(chunks)
    splits = {split: splits[split] for split in sorted(splits, key=lambda split: (*order, split).index(split))}
    shards_folder, staged = work / "shards", work / "dataset"
    shards_folder.mkdir(exist_ok=True)
    jobs = _write_jobs(shards_folder, splits)
    unfinished = [job for split_jobs in jobs.values() for job in split_jobs if not _is_finished(job)]
    with Bar(
        total=len(unfinished), desc=f"{name}: shards", unit="shard", leave=False, disable=len(unfinished) < 2
    ) as bar:
        for _ in engine.run(run_job, unfinished):
            bar.update()
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir()
    # A copy that is interrupted needs the finished shards again, under their own names.
    sums = _stage(staged, splits, jobs, move=os.replace if renames_folders(out) else os.link)
    write_text(staged / QUARANTINE, "".join(json.dumps(entry) + "\n" for entry in quarantine))
    image_digests.write_image_digests(staged, {split: layout.digests for split, layout in splits.items()})
    for path in files:
        os.replace(path, staged / path.name)
    values = {
        "name": name,
        "version": VERSION,
        "fingerprint": fingerprint_json(sums),
        "counts": {split: layout.counts.to_dict() for split, layout in splits.items()},
        "shards": sums,
        "sizes": {shard: (staged / shard).stat().st_size for shard in sums},
        "versions": versions(),
        **manifest,
    }
    write_json(staged / MANIFEST, values)
    move_folder(staged, out, key_file=MANIFEST, content=fingerprint_json(values))


def _stage(
    staged: Path, splits: Mapping[str, SplitLayout], jobs: Mapping[str, Sequence[Path]], *,
    move: Callable[[Path, Path], None],
) -> dict[str, str]:  # fmt: skip
    """Move the shards to the names that TFDS expects, write TFDS's description, and return sha256 by shard name."""
    builder = Builder(data_dir=staged.parent, file_format=FORMAT)
    sums, infos = {}, []
    for split, layout in splits.items():
        template = naming.ShardedFileTemplate(
            data_dir=staged, dataset_name=TFDS_NAME, split=split, filetype_suffix=FORMAT.value
        )
        lengths = []
        for index, job in enumerate(jobs[split]):
            path = Path(template.sharded_filepath(shard_index=index, num_shards=len(jobs[split])))
            lengths.append(sum(len(starts) for _, starts, _ in pickle.loads(job.read_bytes())))
            sums[path.name] = _sum_path(job).read_text()
            move(_shard_path(job), path)
        infos.append(SplitInfo(name=split, shard_lengths=lengths, num_bytes=layout.size, filename_template=template))
    builder.info.set_splits(SplitDict(infos))
    builder.info.write_to_directory(staged)
    return dict(sorted(sums.items()))


def versions() -> dict[str, str]:
    """Return the versions of everything that the bytes of a dataset may depend on."""
    return {"earthgpt-jax": __version__, "python": platform.python_version()} | {tool: version(tool) for tool in _TOOLS}
