"""Is a native dataset complete, a built one undamaged; exit status 1 if not.

With --root: are native datasets complete? Are the files of the card's layout there, do the counts of
images, objects, questions, captions and splits agree with the card, what would a build quarantine, and
(--hashes) are the files the ones that somebody listed? A figure that the card marks as unverified is
shown, and convicts nobody.

Without --root: are dataset directories undamaged? Everything is read back: sums of the shards, images,
boxes, ids, digests. With --against, also what a released set says otherwise than its native source of
the same images.

Exit status: 0 all well, 1 something is wrong, 2 it could not be looked at.

examples:
  earthgpt data check hit_uav rsicd --root native
  earthgpt data check all --root native --write-hashes native.sha256
  earthgpt data check all --root native --hashes native.sha256      (sha256sum --check reads it too)
  earthgpt data check datasets
  earthgpt data check datasets/mmrs1m_caption --against datasets/rsicd
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_SHOWN = 20  # disagreements in full


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="+",
        help="with --root: names or files of cards, or `all` that lie there; without: dataset directories, or folders "
        "of several",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, help="the folder of the native datasets, or of the one to check")
    lists = parser.add_mutually_exclusive_group()
    lists.add_argument(
        "--hashes", type=Path, metavar="FILE", help="with --root: a list that sha256sum wrote, to compare"
    )
    lists.add_argument("--write-hashes", type=Path, metavar="FILE", help="with --root: write such a list")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="without --root: the dataset directory of the native source"
    )


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError

    if args.root is None:
        if args.hashes or args.write_hashes:
            raise EarthGPTError("--hashes and --write-hashes are of native files; name their folder with --root")
        return _agreement(args.what, args.against) if args.against else _built(args.what)
    if args.against:
        raise EarthGPTError("--against compares dataset directories; leave --root out")
    return _native(args.what, root=args.root, hashes=args.hashes, write_to=args.write_hashes)


def _native(names: Sequence[str], *, root: Path, hashes: Path | None, write_to: Path | None) -> int:
    from earthgpt_jax.common import digests
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.files import write_output
    from earthgpt_jax.datasets.cards import load_cards, select_cards
    from earthgpt_jax.datasets.inspect.completeness import check_native, covered_files, is_present

    if not root.is_dir():
        raise EarthGPTError(f"--root {root}: expected the folder of the native datasets; there is no such folder")
    chosen = tuple(card for card in load_cards().values() if is_present(card, root)) if "all" in names else ()
    if "all" in names and not chosen:
        raise EarthGPTError(f"--root {root}: holds none of the datasets; see `earthgpt data list`")
    chosen += select_cards(
        [name for name in dict.fromkeys(names) if name not in {"all", *(card.name for card in chosen)}]
    )
    listed = digests.read_sha256_list(hashes) if hashes else None
    reports = [check_native(card, root=root, listed=listed) for card in chosen]
    print("\n\n".join(report.text() for report in reports))
    if write_to:
        found: dict[str, str] = {}
        for report in reports:
            if not report.failure:
                new = [name for name in covered_files(report.card, root) if name not in found]
                found |= digests.sha256_files(root, new, title=report.card.name)
        write_output(write_to, digests.format_sha256_list(found).encode())
        print(f"wrote {write_to}: {len(found)} files", file=sys.stderr)
    return 0 if all(report.complete for report in reports) else 1


def _built(folders: Sequence[str]) -> int:
    from earthgpt_jax.datasets.inspect.validate import find_problems
    from earthgpt_jax.datasets.manifest import dataset_directories

    wrong = 0
    for directory in (each for folder in folders for each in dataset_directories(Path(folder))):
        found = find_problems(directory)
        wrong += len(found)
        for complaint in found:
            print(f"{directory}: {complaint}")
        if not found:
            print(f"{directory}: fine")
    return 1 if wrong else 0


def _agreement(folders: Sequence[str], native: Path) -> int:
    from earthgpt_jax.datasets.inspect.agreement import compare
    from earthgpt_jax.datasets.inspect.validate import iter_records
    from earthgpt_jax.datasets.manifest import dataset_directories

    found = {
        directory: compare(iter_records(directory), iter_records(native))
        for folder in folders
        for directory in dataset_directories(Path(folder))
    }
    for directory, agreement in found.items():
        print(f"{directory}: {agreement.same} images are in {native}, {len(agreement.only_released)} are not")
        print(_counted(agreement.counts()))
        for item in agreement.found[:_SHOWN]:
            print(f"  {item.released}, {item.native}: {item.kind}: {item.text}")
        if len(agreement.found) > _SHOWN:
            print(f"  and {len(agreement.found) - _SHOWN} more")
    return 1 if any(agreement.found for agreement in found.values()) else 0


def _counted(counts: Mapping[str, int]) -> str:
    return "\n".join(f"  {count}: {kind}" for kind, count in counts.items()) or "  nothing is said otherwise"
