"""SHA-256 digests of bytes, text, files and JSON values, and the list format of the program `sha256sum`.

A digest is 64 hexadecimal digits. A *fingerprint* is its first 16, short enough for a log line or a file name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import read_ranges

FINGERPRINT_DIGITS = 16

_LINE = re.compile(r"(?P<escaped>\\?)(?P<sum>[0-9a-f]{64}) [ *](?P<name>.+)")
_BLOCK = 1 << 20  # bytes read at once


def sha256(*parts: bytes | str) -> str:
    """Return the digest of the concatenated parts; text is encoded as UTF-8."""
    return _hash(parts).hexdigest()


def sha256_json(value: Any, *, default: Callable[[Any], Any] | None = None) -> str:
    """Return the digest of a value as JSON with sorted keys.

    Args:
        default: converts what JSON cannot represent, as in `json.dumps`.
    """
    return sha256(json.dumps(value, sort_keys=True, default=default))


def sha256_file(path: Path, *, progress: Callable[[int], object] | None = None) -> str:
    """Return the digest of a file, reading 1 MiB at a time.

    Args:
        progress: called with the size in bytes of each block read.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def sample_digest(path: Path, *, blocks: int = 256, size: int = 4096) -> str:
    """Return a digest of the size and of evenly spaced blocks of a file, which tells versions of large files apart.

    It reads 1 MiB of any file. Files of different contents can have the same digest, for example if a single value
    differs.

    Raises:
        OSError: the file cannot be read.
    """
    total = path.stat().st_size
    last = max(0, total - size)
    starts = [last * number // max(1, blocks - 1) for number in range(blocks)]
    return sha256(str(total), *read_ranges(path, [(start, min(start + size, total)) for start in starts]))


def sha256_int(data: bytes | str, *, size: int, byteorder: Literal["little", "big"]) -> int:
    """Return the first `size` bytes of the digest as an unsigned integer, for seeds and hash keys."""
    return int.from_bytes(_hash((data,)).digest()[:size], byteorder)


def fingerprint(*parts: bytes | str) -> str:
    """Return the first 16 hexadecimal digits of `sha256(*parts)`."""
    return fingerprint_stream(parts)


def fingerprint_stream(parts: Iterable[bytes | str]) -> str:
    """Return the fingerprint of parts that are generated one at a time, so that never all of them are in memory."""
    return _hash(parts).hexdigest()[:FINGERPRINT_DIGITS]


def fingerprint_json(value: Any) -> str:
    """Return the first 16 hexadecimal digits of `sha256_json(value)`."""
    return sha256_json(value)[:FINGERPRINT_DIGITS]


def _hash(parts: Iterable[bytes | str]) -> Any:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest


# --------------------------------------------------------------------------------------- lists of sha256sum
def sha256_files(root: Path, names: Iterable[str], *, title: str) -> dict[str, str]:
    """Return the digest of each file, `{name relative to root: digest}`, with a progress bar named `title`.

    Raises:
        EarthGPTError: a file cannot be read.
    """
    # Imported here: the model and its training step import this module and need no progress bar.
    from earthgpt_jax.common.progress import Bar

    paths = {name: root / name for name in names}
    try:
        total = sum(path.stat().st_size for path in paths.values())
        with Bar(total=total, desc=f"{title}: sha256", unit="B", unit_scale=True, leave=False) as bar:
            return {name: sha256_file(path, progress=bar.update) for name, path in paths.items()}
    except OSError as error:
        raise EarthGPTError(f"{error.filename}: cannot be read: {error.strerror}; check its permissions") from error


def format_sha256_list(digests: Mapping[str, str]) -> str:
    """Return `{file name: digest}` as the text that `sha256sum --check` reads, sorted by name."""
    lines = []
    for name, digest in sorted(digests.items()):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n")
    return "".join(lines)


def parse_sha256_list(text: str, *, where: str) -> dict[str, str]:
    """Return `{file name: digest}` from the output of `sha256sum`; the inverse of `format_sha256_list`.

    Args:
        where: origin of the text, for the error message.

    Raises:
        EarthGPTError: a line does not have the format `<digest>  <file>`.
    """
    digests = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise EarthGPTError(
                f"{where}, line {number}: expected `<sha256>  <file>` as sha256sum writes, got {line!r:.60}"
            )
        name = match["name"]
        if match["escaped"]:
            name = re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], name)
        digests[name.removeprefix("./")] = match["sum"]
    return digests


def read_sha256_list(path: Path) -> dict[str, str]:
    """Return `{file name: digest}` from a file that `sha256sum` wrote.

    Raises:
        EarthGPTError: the file cannot be read, or a line has another format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EarthGPTError(f"{path}: expected a list of sha256 sums, it cannot be read: {error}") from error
    return parse_sha256_list(text, where=str(path))
