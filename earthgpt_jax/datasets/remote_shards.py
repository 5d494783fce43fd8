"""Read the shards of a dataset in a bucket from local copies, each downloaded when it is first needed."""

from __future__ import annotations

import bisect
import collections
import itertools
import logging
import resource
import threading
from collections.abc import Sequence

from array_record.python.array_record_module import ArrayRecordReader

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.file_cache import LIMIT_VARIABLE, CacheFullError, LocalCopy, open_copy

_OPTIONS = "readahead_buffer_size:0"  # for random access, as TFDS opens shards


class RemoteExamples(Sequence[bytes]):
    """The serialised examples of several shards, one shard after the other.

    All local copies stay in use while they fit into the limit of the file cache. If they do not, those that were opened
    first are given up for others, and downloaded again later. A process also opens no more of them at a time than a
    quarter of the files that it may have open.

    Args:
        shards: the objects, in order.
        lengths: number of examples of each.
        sizes: bytes of each.
    """

    def __init__(self, shards: Sequence[BucketPath], *, lengths: Sequence[int], sizes: Sequence[int]):
        self._shards, self._sizes = shards, sizes
        self._ends = list(itertools.accumulate(lengths))
        self._open: collections.OrderedDict[int, _OpenShard] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._most = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._warned = False

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        number = bisect.bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        return self._shard(number).reader.read([index - first])[0]

    def _shard(self, number: int) -> _OpenShard:
        found = self._open.get(number)
        if found is not None:
            return found
        with self._lock:  # other threads wait only if they need a shard that is not open either
            while number not in self._open:
                if len(self._open) >= self._most:
                    self._open.popitem(last=False)
                try:
                    self._open[number] = _OpenShard(open_copy(self._shards[number], size=self._sizes[number]))
                except CacheFullError:
                    if not self._open:
                        raise
                    self._open.popitem(last=False)
                    self._warn()
            return self._open[number]

    def _warn(self) -> None:
        if not self._warned:
            logging.getLogger(__name__).warning(
                "data %s: its local copies do not fit into the limit and are downloaded several times; set %s to allow "
                "more", self._shards[0].parent, LIMIT_VARIABLE,
            )  # fmt: skip
            self._warned = True


class _OpenShard:
    """A local copy and its reader, closed when the last thread has read its example."""

    def __init__(self, copy: LocalCopy):
        self.copy = copy
        self.reader = ArrayRecordReader(str(copy.path), _OPTIONS)
