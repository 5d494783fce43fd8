"""Paths of objects in Google Cloud Storage (`gs://`) and Amazon S3 (`s3://`).

`BucketPath` is a `pathlib.Path`, so that code which only reads, lists and joins paths works on buckets as it stands;
gcsfs and s3fs, which etils' epath uses too, make the requests. Code that hands a path to a library which opens local
files needs `earthgpt_jax.common.files`, which also makes paths from text.

Object stores have no folders: a folder exists while an object's name begins with it. An upload appears completely or
not at all, and requests see all uploads that ended before (both stores are strongly consistent). Listings are not
cached, because other processes write too.

Requests are repeated with exponential backoff if the service is overloaded (429, 503) or a connection breaks. Any other
failure, and one that lasts, becomes a `BucketError` that names the object and what is missing. Credentials are found
as Google's and Amazon's own programs find them and never appear in a message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import fnmatch
import functools
import importlib.util
import io
import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PosixPath
from typing import IO, Any, NoReturn

from earthgpt_jax.common.errors import EarthGPTError, RetryableError

RETRIES = 6  # attempts of each request; waits of 1 to 16 seconds in between make half a minute


class BucketError(EarthGPTError):
    """A request to an object store that cannot succeed until the user changes something."""


class BucketUnavailableError(BucketError, RetryableError):
    """An object store that does not answer, or is overloaded, even after `RETRIES` attempts."""


class Action(enum.Enum):
    """What a request does, for the name of the permission that it needs."""

    READ = "reading"
    LIST = "listing"
    WRITE = "writing"
    DELETE = "deleting"


@dataclasses.dataclass(frozen=True)
class _Service:
    """What differs between the object stores.

    Attributes:
        module, extra: the Python package that makes the requests, and our extra that installs it.
        permissions: the permission that each action needs.
        credentials: how to provide credentials.
        options: arguments of the fsspec file system.
    """

    name: str
    module: str
    extra: str
    permissions: Mapping[Action, str]
    credentials: str
    options: Mapping[str, Any]


SERVICES = {
    "gs": _Service(
        name="Google Cloud Storage",
        module="gcsfs",
        extra="gcs",
        permissions={
            Action.READ: "storage.objects.get",
            Action.LIST: "storage.objects.list",
            Action.WRITE: "storage.objects.create (and storage.objects.delete to replace an object)",
            Action.DELETE: "storage.objects.delete",
        },
        credentials="run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
        options={"use_listings_cache": False},
    ),
    "s3": _Service(
        name="Amazon S3",
        module="s3fs",
        extra="s3",
        permissions={
            Action.READ: "s3:GetObject",
            Action.LIST: "s3:ListBucket",
            Action.WRITE: "s3:PutObject",
            Action.DELETE: "s3:DeleteObject",
        },
        credentials="run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        options={
            "use_listings_cache": False,
            "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": RETRIES}},
        },
    ),
}


# ------------------------------------------------------------------------------------------ file systems
@functools.cache
def configure(scheme: str) -> None:
    """Set the options of a file system for everything in this process that uses fsspec, such as Orbax.

    Raises:
        EarthGPTError: the package for this scheme is not installed.
    """
    service = SERVICES[scheme]
    if importlib.util.find_spec(service.module) is None:
        raise EarthGPTError(
            f"{scheme}:// paths need the package {service.module}: install it with "
            f"`pip install 'earthgpt-jax[{service.extra}]'`"
        )
    os.environ.setdefault("EPATH_USE_TF", "false")  # etils' epath would use TensorFlow where it is installed
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks another service about each bucket
    import fsspec.config

    fsspec.config.conf.setdefault(scheme, {}).update(service.options)
    # They log the traceback of every failed request, also of those that are repeated or expected.
    for name in (service.module, "google.auth", "aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    if scheme == "s3":  # botocore repeats requests after 500 to 504, but S3-compatible services also answer 429
        import s3fs.core

        s3fs.core.set_custom_error_handler(lambda error: "429" in _codes([error]))


def file_system(scheme: str) -> Any:
    """Return the fsspec file system of a scheme, `gs` or `s3`; fsspec keeps one per process."""
    configure(scheme)
    import fsspec

    return fsspec.filesystem(scheme)


# ------------------------------------------------------------------------------------------------ errors
_NO_CREDENTIALS = re.compile(
    r"anonymous caller|invalid credentials|unable to locate credentials|could not automatically determine"
    r"|default credentials were not found|invalidaccesskeyid|expiredtoken|signaturedoesnotmatch"
    r"|unauthenticated|\b401\b",
    re.IGNORECASE,
)
_CREDENTIAL_ERRORS = ("NoCredentialsError", "DefaultCredentialsError", "RefreshError", "NonRetryableError",
                      "PartialCredentialsError", "TokenRetrievalError")  # fmt: skip
# The capital words are status codes of TensorStore, of which Python sees the text only.
_DENIED = re.compile("Forbidden|PERMISSION_DENIED")
_UNAVAILABLE = re.compile("UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED")
_UNAVAILABLE_CODES = {408, 429, *range(500, 505)}
_UNAVAILABLE_MODULES = ("aiohttp", "requests", "urllib3", "google.api_core")
_UNAVAILABLE_ERRORS = ("EndpointConnectionError", "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError",
                       "HTTPClientError", "ConnectionError", "FSTimeoutError", "ServerDisconnectedError")  # fmt: skip


@contextlib.contextmanager
def explain_errors(path: BucketPath, action: Action) -> Iterator[None]:
    """Turn errors of requests about `path` into a `FileNotFoundError` or a `BucketError`.

    Raises:
        FileNotFoundError: the object is missing, from a bucket that exists.
        BucketError: the bucket, a permission or the credentials are missing, or the service does not answer.
    """
    try:
        yield
    except EarthGPTError:
        raise
    except Exception as error:
        _raise_explained(error, path, action)


def _raise_explained(error: Exception, path: BucketPath, action: Action) -> NoReturn:
    service, what = SERVICES[path.scheme], f"{action.value} {path}"
    chain = list(_chain(error))
    text = " ".join(str(cause) for cause in chain)
    kinds = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    if isinstance(error, FileNotFoundError):
        if action is Action.WRITE or not _bucket_exists(path):
            raise BucketError(
                f"{what}: there is no bucket {path.scheme}://{path.bucket}; create it, or correct its name"
            ) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    if kinds & set(_CREDENTIAL_ERRORS) or _NO_CREDENTIALS.search(text):
        raise BucketError(
            f"{what}: {service.name} expected valid credentials and got none; {service.credentials}"
        ) from None
    if isinstance(error, PermissionError) or _DENIED.search(text):
        raise BucketError(
            f"{what}: {service.name} denied access to bucket {path.bucket}; grant this account the permission "
            f"{service.permissions[action]}"
        ) from None
    if _is_unavailable(chain, kinds) or _UNAVAILABLE.search(text):
        raise BucketUnavailableError(
            f"{what}: {service.name} did not answer, or was overloaded, after {RETRIES} attempts; run the same "
            "command again later"
        ) from None
    if isinstance(error, OSError) and error.filename is not None:
        raise error  # of a local file
    raise BucketError(f"{what}: {service.name} refused the request: {_one_line(error)}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _codes(chain: Iterable[BaseException]) -> set[str]:
    """Return the HTTP status codes in errors of gcsfs (`code`) and botocore (`response`)."""
    responses = [getattr(cause, "response", None) for cause in chain]
    return {str(getattr(cause, "code", "")) for cause in chain} | {
        str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        for response in responses
        if isinstance(response, dict)
    }


def _is_unavailable(chain: list[BaseException], kinds: set[str]) -> bool:
    return bool(
        _codes(chain) & {str(code) for code in _UNAVAILABLE_CODES}
        or kinds & set(_UNAVAILABLE_ERRORS)
        or any(type(cause).__module__.startswith(_UNAVAILABLE_MODULES) for cause in chain)
        or any(getattr(cause, "errno", None) in (errno.EBUSY, errno.EREMOTEIO) for cause in chain)
        or any(isinstance(cause, (ConnectionError, TimeoutError)) for cause in chain)
    )


def _one_line(error: Exception) -> str:
    """Return the message of an error without what may contain credentials: headers and query strings."""
    return re.sub(r"\?\S+", "?...", " ".join(str(error).split()))[:200] or type(error).__name__


def _bucket_exists(path: BucketPath) -> bool:
    """Return False if the service says that there is no such bucket."""
    try:
        fs = file_system(path.scheme)
        if path.scheme == "gs":
            fs.call("GET", "b/{}/o", path.bucket, maxResults=1, json_out=True)
        else:
            fs.call_s3("list_objects_v2", Bucket=path.bucket, MaxKeys=1)
    except FileNotFoundError:
        return False
    except Exception:
        return True  # for example no permission to list it; the first error says more
    return True


# ------------------------------------------------------------------------------------------------- paths
class BucketPath(PosixPath):
    """The path of an object or folder in a bucket, such as `gs://bucket/runs/1`.

    Methods that read or list have the meaning of `pathlib.Path`. `write_bytes` and `write_text` upload an object, which
    appears completely or not at all. Folders need not be made. There is nothing to rename or append to: write with
    `earthgpt_jax.common.files`.
    """

    __slots__ = ()

    # pathlib stores "gs://bucket/x" as the parts "gs:", "bucket", "x".
    def __str__(self) -> str:
        scheme, *names = self.parts or ("",)
        return f"{scheme}//{'/'.join(names)}"

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    @property
    def scheme(self) -> str:
        """`gs` or `s3`."""
        return self.parts[0].removesuffix(":")

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.parts[1] if len(self.parts) > 1 else ""

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return file_system(self.scheme)

    # ---------------------------------------------------------------------------------------- names
    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> BucketPath:
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        return self

    def expanduser(self) -> BucketPath:
        return self

    def as_posix(self) -> str:
        return str(self)

    def as_uri(self) -> str:
        return str(self)

    def relative_to(self, *other: Any, **options: Any) -> Path:  # type: ignore[override]
        return Path(*super().relative_to(*other, **options).parts)

    # -------------------------------------------------------------------------------------- reading
    def describe(self) -> dict[str, Any]:
        """Return what the service says about an object or folder: `type`, `size` in bytes, and more of its own.

        Raises:
            FileNotFoundError: there is no such object or folder.
            BucketError: see `explain_errors`.
        """
        with explain_errors(self, Action.READ):
            return self.fs.info(str(self))

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        info = self.describe()
        kind = stat.S_IFDIR | 0o755 if info["type"] == "directory" else stat.S_IFREG | 0o644
        time = info.get("mtime") or info.get("LastModified")
        seconds = time.timestamp() if time is not None else 0.0
        times = {"st_mtime": seconds, "st_ctime": seconds}
        times |= {f"{name}_ns": round(value * 1e9) for name, value in times.items()}
        return os.stat_result((kind, 0, 0, 1, 0, 0, info.get("size") or 0, *[int(seconds)] * 3), times)

    def _type(self) -> str | None:
        try:
            return self.describe()["type"]
        except FileNotFoundError:
            return None

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._type() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._type() == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._type() == "directory"

    def is_symlink(self) -> bool:
        return False

    def version_and_size(self) -> tuple[str, int]:
        """Return what changes whenever the object is replaced, its generation or entity tag, and its size in bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        info = self.describe()
        version = info.get("generation") or info.get("ETag") or info.get("etag") or info.get("mtime")
        return str(version).strip('"'), info["size"]

    def read_bytes(self) -> bytes:
        with explain_errors(self, Action.READ):
            return self.fs.cat_file(str(self))

    def read_range(self, start: int, stop: int) -> bytes:
        """Return bytes `start:stop` of the object."""
        with explain_errors(self, Action.READ):
            return self.fs.cat_file(str(self), start=start, end=stop) if stop > start else b""

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return bytes `start:stop` of the object for each range, requested at the same time."""
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        with explain_errors(self, Action.READ):
            return self.fs.cat_ranges([str(self)] * len(ranges), starts, stops, on_error="raise")

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        text = io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8", errors, newline)
        return text.read()

    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open an object for reading, by ranges as it is read.

        Raises:
            io.UnsupportedOperation: another mode than reading.
        """
        if mode.replace("t", "") not in ("r", "rb"):
            raise io.UnsupportedOperation(f"{self}: mode {mode!r}; objects are written with common.files")
        with explain_errors(self, Action.READ):
            raw = _Explained(self.fs.open(str(self), "rb"), self)
        file: Any = io.BufferedReader(raw)
        return file if "b" in mode else io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    def iterdir(self) -> Iterator[BucketPath]:  # type: ignore[override]
        with explain_errors(self, Action.LIST):
            names = self.fs.ls(str(self), detail=False)
        for name in sorted({name.rstrip("/") for name in names}):
            path = self._sibling(name)
            if path != self:  # an object with the folder's name and a slash, which some programs make
                yield path

    def walk_files(self) -> dict[BucketPath, dict[str, Any]]:
        """Return all objects below this folder, in order, with their `describe`; none if there is no such folder."""
        with explain_errors(self, Action.LIST):
            found = self.fs.find(str(self), detail=True)
        return {self._sibling(name): found[name] for name in sorted(found) if not name.endswith("/")}

    def glob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:  # type: ignore[override]
        with explain_errors(self, Action.LIST):
            names = self.fs.glob(f"{self}/{pattern}")
        yield from map(self._sibling, sorted(names))

    def rglob(self, pattern: str, **_: Any) -> Iterator[BucketPath]:  # type: ignore[override]
        """Yield all objects below this folder whose name matches; not folders."""
        yield from (path for path in self.walk_files() if fnmatch.fnmatchcase(path.name, pattern))

    def _sibling(self, name: str) -> BucketPath:
        """Return the path of a name as the file system lists it, without the scheme."""
        return type(self)(f"{self.scheme}://{name}")

    # -------------------------------------------------------------------------------------- writing
    def write_bytes(self, data: Any) -> int:
        with explain_errors(self, Action.WRITE):
            self.fs.pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def upload(self, source: Path) -> None:
        """Upload a local file. The object appears, or is replaced, when all of it has arrived."""
        with explain_errors(self, Action.WRITE):
            self.fs.put_file(str(source), str(self))

    def download(self, target: Path) -> None:
        """Download the object to a local file."""
        with explain_errors(self, Action.READ):
            self.fs.get_file(str(self), str(target))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        if not self.exists():
            self.write_bytes(b"")
        elif not exist_ok:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with explain_errors(self, Action.DELETE):
                self.fs.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Delete all objects below this folder."""
        paths = [str(path) for path in self.walk_files()]
        if paths:
            with explain_errors(self, Action.DELETE):
                self.fs.rm(paths)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists while an object's name begins with it."""

    def rmdir(self) -> None:
        """Do nothing: an empty folder does not exist."""

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Do nothing: objects have no permission bits."""

    def rename(self, target: Any) -> NoReturn:
        raise io.UnsupportedOperation(f"{self}: object stores cannot rename; write with common.files")

    replace = rename


if sys.version_info >= (3, 12):

    def _walk(self: BucketPath, *_: Any, **__: Any) -> NoReturn:
        raise io.UnsupportedOperation(f"{self}: use walk_files")

    BucketPath.walk = _walk  # type: ignore[assignment, method-assign]


class _Explained(io.RawIOBase):
    """A file of fsspec whose errors name the object."""

    def __init__(self, file: Any, path: BucketPath):
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with explain_errors(self._path, Action.READ):
            data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
