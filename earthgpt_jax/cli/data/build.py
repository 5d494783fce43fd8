"""Build dataset directories OUT/<dataset>/ from native files.

Images and annotations are read and validated. Items that cannot be used are listed with their
reasons in OUT/<dataset>/quarantine.jsonl. An interrupted build keeps what is finished in
OUT/.<dataset>.building; run the same command again to resume it. The output does not depend on
the number of workers.

exit status:
  0  every native item was used
  1  built, but some items were quarantined (the summary lists the reasons)
  2  not built; one `error:` line explains the fix, for example that more items were quarantined
     than --max-quarantine allows

examples:
  earthgpt data build hit_uav dota --root native --out datasets
  earthgpt data build dior:rotated --root native --out datasets
  earthgpt data build mine/port.yaml --root mine --out datasets
  earthgpt data build all --root native --out datasets --workers 8
  earthgpt data build synthetic --splits train=600,val=50,test=300 --out datasets
  earthgpt data build all --root /nfs/native --out /nfs/datasets \\
      --beam --beam-options='--runner=FlinkRunner --flink_master=cluster:8081 --parallelism=64'
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from earthgpt_jax.common import files

if TYPE_CHECKING:
    from earthgpt_jax.common.parallel import Engine
    from earthgpt_jax.datasets.cards import Card

QUARANTINED = 1  # exit status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        help="names of cards, NAME:VARIANT, card files (.yaml), `synthetic`, or `all` (every card whose files exist "
        "below --root)",
    )
    parser.add_argument("--root", type=files.path, help="folder of all native datasets, or of the one to build")
    parser.add_argument("--out", type=files.output_path, required=True, help="folder for the dataset directories")
    parser.add_argument("--workers", type=int, help="number of processes on this machine (default: one per core)")
    parser.add_argument(
        "--max-quarantine",
        type=float,
        metavar="FRACTION",
        help="fail if more than this fraction of the images, objects, questions or captions cannot be used "
        "(default: 0.1)",
    )
    parser.add_argument(
        "--beam",
        action="store_true",
        help="run with Apache Beam (pip install 'earthgpt-jax[beam]') instead of processes on this machine; its "
        "workers must see --root and --out under the same paths",
    )
    parser.add_argument(
        "--beam-options",
        default="",
        metavar="OPTIONS",
        help="options for Beam, as in the example above (default: run Beam on this machine)",
    )
    parser.add_argument(
        "--count", type=int, help="synthetic: number of training records; val gets a tenth of it, test a fifth"
    )
    parser.add_argument("--splits", help="synthetic: number of records by split, e.g. train=600,val=50,test=300")
    parser.add_argument("--size", type=int, default=128, help="synthetic: side of the images in pixels (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="synthetic: random seed of the scenes (default: 0)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.build.builder import MAX_QUARANTINE, build, build_synthetic
    from earthgpt_jax.datasets.build.summary import BuildSummary, DatasetSummary

    names = list(dict.fromkeys(args.source))
    if "synthetic" not in names and (args.count is not None or args.splits):
        raise EarthGPTError("--count and --splits are for `build synthetic`; native datasets are always built in full")
    native = [name for name in names if name != "synthetic"]
    if native and args.root is None:
        raise EarthGPTError(f"build {' '.join(native)}: give the folder of the native datasets with --root")
    datasets: tuple[DatasetSummary, ...] = ()
    with _engine(args) as engine:
        if "synthetic" in names:
            splits = _synthetic_splits(args.count, args.splits)
            datasets += build_synthetic(splits, size=args.size, seed=args.seed, out=args.out, engine=engine).datasets
        if native:
            limit = MAX_QUARANTINE if args.max_quarantine is None else args.max_quarantine
            chosen = _select(native, args.root)
            datasets += build(chosen, root=args.root, out=args.out, engine=engine, max_quarantine=limit).datasets
    summary = BuildSummary(datasets)
    print(summary.table())
    return QUARANTINED if summary.quarantined else 0


@contextlib.contextmanager
def _engine(args: argparse.Namespace) -> Iterator[Engine]:
    from earthgpt_jax.common.errors import EarthGPTError

    if args.beam:
        if args.workers is not None:
            raise EarthGPTError("--workers is for processes on this machine; set Beam's with --beam-options")
        from earthgpt_jax.datasets.build.beam import Beam

        yield Beam(shlex.split(args.beam_options))
        return
    if args.beam_options:
        raise EarthGPTError("--beam-options requires --beam")
    from earthgpt_jax.common.parallel import LocalEngine, cores

    with LocalEngine(cores() if args.workers is None else args.workers) as engine:
        yield engine


def _select(names: list[str], root: Path) -> tuple[Card, ...]:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.cards import load_cards, select_cards

    if "all" not in names:
        return select_cards(names)
    chosen = tuple(card for card in load_cards().values() if _is_present(root, card))
    if not chosen:
        raise EarthGPTError(f"--root {root}: contains none of the datasets; see `earthgpt data list`")
    return chosen


def _is_present(root: Path, card: Card) -> bool:
    """Return whether the card's folder has all files of at least one part of the layout; cards may share a folder."""
    from earthgpt_jax.datasets.readers import missing_paths

    base = root / card.folder
    absent = set(missing_paths(base, card))
    return base.is_dir() and any(not absent & set(part.values()) for part in card.parts)


def _synthetic_splits(count: int | None, text: str | None) -> dict[str, int]:
    from earthgpt_jax.common.errors import EarthGPTError

    if (count is None) == (text is None):
        raise EarthGPTError("build synthetic: give either --count N or --splits train=N,val=N,test=N")
    if count is not None:
        if count < 1:
            raise EarthGPTError(f"--count: expected at least 1, got {count}")
        return {"train": count, "val": count // 10, "test": count // 5}
    splits = {}
    for word in (text or "").split(","):
        split, equals, number = word.strip().partition("=")
        if not equals or not number.isdigit():
            raise EarthGPTError(f"--splits {text}: expected SPLIT=COUNT, got {word!r}")
        splits[split] = int(number)
    return splits
