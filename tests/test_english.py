"""Plain English of the field: idioms and private words that would puzzle a new colleague stay out.

`python tests/test_english.py PATH...` lists what is found in some files.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".sh", ".yaml", ".html", ".j2", ".toml", ".cff", ".ipynb", ""}
HERE = "tests/test_english.py"

UNIT = "(row|core|chip|image|step|process|device|question|record|batch|token|layer|second|host|epoch|class|dataset)"

# Pattern -> what to write instead.
IDIOMS = {
    r"\banew\b": "again",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bso many\b": "N, or the number of",
    r"\bsee(s|n)? to\b": "check, handle",
    r"\b(for )?want of\b": "because of a lack of",
    r"\bof one mind\b": "consistent",
    r"\bof itself\b|\bby themselves\b": "automatically, separately",
    r"\btold to\b|\btells of\b|\bis told\b": "requested, describes, receives",
    r"\blearnt\b|\btaught\b": "trained",
    r"\bconvicts?\b": "causes a failure",
    r"\bbehind\b": "after",
    r"\bbeside\b|\bbesides\b": "next to, compared with, also",
    r"\bwhatever (surrounds|is|stands)\b": "name the thing",
    r"\blest\b": "so that ... not",
    r"\bupright\b": "axis-aligned, horizontal (HBB)",
    rf"\b(one|once|twice|times) an? {UNIT}\b": "per ...",
    rf"\b(images|records|tokens|bytes|rows|questions|GiB|MB|seconds|samples|boxes) an? {UNIT}\b": "per ...",
    r"\bgoes on\b|\bgo on\b|\bwent on\b": "continues",
    r"\bwherever\b": "name the place",
    r"\brights\b": "permissions",
    r"\byardstick\b|\boccupancy\b|\btally\b": "FLOPs reference, packing efficiency, counts",
    r"\bleaks?\b|\bleaked\b": "train/test overlap",
    r"\bcomes? (off|upon)\b|\bat hand\b|\bin the way of\b": "plain verb",
}  # fmt: skip

# File -> the phrases in it that are meant: quoted text, other people's names.
ALLOWED: dict[str, tuple[str, ...]] = {
    "earthgpt_jax/input/augment.py": ("| behind |",),
    "tests/input/test_augment.py": ('"behind it"',),
    "CHANGELOG.md": ("(was `orientation: upright|rotated`)",),  # a former value
}

_PATTERN = {name: re.compile(name, re.IGNORECASE) for name in IDIOMS}


def findings(path: Path) -> list[str]:
    """`file:line: "phrase"; write ...` for each idiom in a file."""
    name = path.relative_to(ROOT).as_posix() if path.is_absolute() else path.as_posix()
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for idiom, pattern in _PATTERN.items():
            for match in pattern.finditer(line):
                if not any(phrase in line for phrase in ALLOWED.get(name, ())):
                    found.append(f"{name}:{number}: {match[0]!r} in {line.strip()[:90]!r}; write: {IDIOMS[idiom]}")
    return found


def _files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [
        path
        for path in paths
        if path.is_file() and path.suffix in SUFFIXES and path.name not in ("LICENSE", Path(HERE).name)
        and "templates" not in path.parts
    ]  # fmt: skip


def test_the_text_is_plain_english() -> None:
    found = [line for path in _files() for line in findings(path)]
    assert found == [], f"{len(found)} idioms:\n" + "\n".join(found[:50])


def test_an_idiom_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("It is computed anew.\nTwo images a row.\nIt is computed again, two images per row.\n")
    text = page.read_text()
    assert [bool(any(p.search(line) for p in _PATTERN.values())) for line in text.splitlines()] == [True, True, False]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        start = Path(argument)
        for each in [start] if start.is_file() else sorted(start.rglob("*")):
            if each.is_file() and each.suffix in SUFFIXES - {""}:
                sys.stdout.writelines(f"{line}\n" for line in findings(each.resolve()))
