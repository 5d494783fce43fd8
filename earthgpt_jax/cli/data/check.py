"""Check that native datasets are complete, or that built datasets are undamaged.

With --root: check native datasets before a build. Do the files of the card's layout exist? Do the
numbers of images, objects, questions, captions and the sizes of splits agree with the card? What
would a build quarantine? With --hashes: are the files those of a sha256 list? Counts that the card
marks as unverified are reported, but never cause a failure.

Without --root: check dataset directories. Every record is read back: sha256 of the shards, images,
boxes, ids, digests. With --against: also compare a released dataset with the native source of the
same images.

exit status: 0 no problem found, 1 problems found, 2 the check could not run

examples:
  earthgpt data check hit_uav rsicd --root native
  earthgpt data check all --root native --write-hashes native.sha256
  earthgpt data check all --root native --hashes native.sha256      (sha256sum --check reads it, too)
  earthgpt data check datasets
  earthgpt data check datasets/mmrs1m_caption --against datasets/rsicd
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from earthgpt_jax.common import files

_MAX_LISTED = 20  # disagreements that are printed in full


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="+",
        help="with --root: names or files of cards, or `all` (every card with files below --root); without --root: "
        "dataset directories, or folders of them",
    )
    parser.add_argument("--root", type=files.path, help="folder of all native datasets, or of the one to check")
    lists = parser.add_mutually_exclusive_group()
    lists.add_argument(
        "--hashes", type=files.path, metavar="FILE", help="with --root: compare with this list of sha256sum"
    )
    lists.add_argument("--write-hashes", type=files.output_path, metavar="FILE", help="with --root: write such a list")
    parser.add_argument(
        "--against", type=files.path, metavar="DIR", help="without --root: dataset directory of the native source"
    )


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError

    if args.root is None:
        if args.hashes or args.write_hashes:
            raise EarthGPTError("--hashes and --write-hashes check native files; give their folder with --root")
        return _compare(args.what, args.against) if args.against else _check_built(args.what)
    if args.against:
        raise EarthGPTError("--against compares dataset directories; omit --root")
    return _check_native(args.what, root=args.root, hashes=args.hashes, write_to=args.write_hashes)


def _check_native(names: Sequence[str], *, root: Path, hashes: Path | None, write_to: Path | None) -> int:
    from earthgpt_jax.common import digests
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.common.files import write_output
    from earthgpt_jax.datasets.cards import load_cards, select_cards
    from earthgpt_jax.datasets.inspect.completeness import check_native, covered_files, is_present

    if not root.is_dir():
        raise EarthGPTError(f"--root {root}: expected the folder of the native datasets; there is no such folder")
    chosen = tuple(card for card in load_cards().values() if is_present(card, root)) if "all" in names else ()
    if "all" in names and not chosen:
        raise EarthGPTError(f"--root {root}: contains none of the datasets; see `earthgpt data list`")
    chosen += select_cards(
        [name for name in dict.fromkeys(names) if name not in {"all", *(card.name for card in chosen)}]
    )
    sums = digests.read_sha256_list(hashes) if hashes else None
    reports = [check_native(card, root=root, sums=sums) for card in chosen]
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


def _check_built(folders: Sequence[str]) -> int:
    from earthgpt_jax.datasets.inspect.validate import find_problems
    from earthgpt_jax.datasets.manifest import dataset_directories

    failed = False
    for folder in folders:
        for directory in dataset_directories(files.path(folder)):
            problems = find_problems(directory)
            failed |= bool(problems)
            print("\n".join(f"{directory}: {problem}" for problem in problems or ["no problems found"]))
    return 1 if failed else 0


def _compare(folders: Sequence[str], native: Path) -> int:
    from earthgpt_jax.datasets.inspect.agreement import compare
    from earthgpt_jax.datasets.inspect.validate import iter_records
    from earthgpt_jax.datasets.manifest import dataset_directories

    failed = False
    for folder in folders:
        for directory in dataset_directories(files.path(folder)):
            agreement = compare(iter_records(directory), iter_records(native))
            failed |= bool(agreement.disagreements)
            print(f"{directory}: {agreement.shared} images are in {native}, {len(agreement.only_released)} are not")
            counts = [f"  {count}: {category}" for category, count in agreement.counts().items()]
            print("\n".join(counts or ["  no disagreements"]))
            for item in agreement.disagreements[:_MAX_LISTED]:
                print(f"  {item.released}, {item.native}: {item.category}: {item.details}")
            if len(agreement.disagreements) > _MAX_LISTED:
                print(f"  and {len(agreement.disagreements) - _MAX_LISTED} more")
    return 1 if failed else 0
