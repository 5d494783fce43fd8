"""Lists of sha256 sums in `sha256sum`'s format, so that `sha256sum --check` reads ours and we read its."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from earthgpt_jax.common.errors import EarthGPTError

_LINE = re.compile(r"(?P<escaped>\\?)(?P<sum>[0-9a-f]{64}) [ *](?P<name>.+)")
_BLOCK = 1 << 20


def sums(root: Path, names: Iterable[str], *, title: str) -> dict[str, str]:
    """Name below `root` -> sha256 of the file.

    Raises:
        EarthGPTError: a file cannot be read.
    """
    paths = {name: root / name for name in names}
    found = {}
    try:
        total = sum(path.stat().st_size for path in paths.values())
        with tqdm(total=total, desc=f"{title}: sha256", unit="B", unit_scale=True, leave=False) as bar:
            for name, path in paths.items():
                digest = hashlib.sha256()
                with path.open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                        bar.update(len(block))
                found[name] = digest.hexdigest()
    except OSError as error:
        raise EarthGPTError(f"{error.filename}: cannot be read: {error.strerror}; see to its rights") from error
    return found


def write(listed: Mapping[str, str]) -> str:
    """The text of a list, ordered by name."""
    lines = []
    for name, value in sorted(listed.items()):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"{'' if escaped == name else chr(92)}{value}  {escaped}\n")
    return "".join(lines)


def read(path: Path) -> dict[str, str]:
    """The inverse of `write`, of a file.

    Raises:
        EarthGPTError: it cannot be read, or a line is none of such a list.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EarthGPTError(f"{path}: expected a list of sha256 sums, it cannot be read: {error}") from error
    return parse(text, where=str(path))


def parse(text: str, *, where: str) -> dict[str, str]:
    """The inverse of `write`.

    Args:
        where: the text is from, for the message.

    Raises:
        EarthGPTError: a line is none of such a list.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise EarthGPTError(
                f"{where}, line {number}: expected `<sha256>  <file>` as sha256sum writes, got {line!r:.60}"
            )
        name = match["name"]
        if match["escaped"]:
            name = re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], name)
        found[name.removeprefix("./")] = match["sum"]
    return found
