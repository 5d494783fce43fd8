"""Write OUT/<source>/ from native files.

Reads native datasets and writes one dataset directory each. What is finished of a build that was
stopped, however it was stopped, is kept in OUT/.<source>.building: the same command goes on from
there and writes the same bytes. The number of workers changes nothing but the time.

exit status: 0 everything was used; 1 built, but something is in quarantine (the summary says what);
2 not built, for a reason that you can mend, such as more in quarantine than --max-quarantine.

examples:
  earthgpt data build hit_uav dota --root native --out datasets
  earthgpt data build all --root native --out datasets --workers 8
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

if TYPE_CHECKING:
    from earthgpt_jax.common.parallel import Engine
    from earthgpt_jax.datasets.cards import Card

QUARANTINED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="+",
        help="names of cards, NAME:VARIANT, files of cards, `synthetic`, or `all` cards whose files lie below --root",
    )
    parser.add_argument("--root", type=Path, help="the folder of the native datasets, or of the one to build")
    parser.add_argument("--out", type=Path, required=True, help="where the dataset directories go")
    parser.add_argument("--workers", type=int, help="processes of this machine (default: one a core)")
    parser.add_argument(
        "--max-quarantine",
        type=float,
        metavar="SHARE",
        help="a build fails where more than this share of the images, objects, questions or captions cannot be "
        "used (default: 0.1)",
    )
    parser.add_argument(
        "--beam",
        action="store_true",
        help="run by Apache Beam (pip install 'earthgpt-jax[beam]') instead of processes of this machine; its "
        "workers must see --root and --out under the same paths",
    )
    parser.add_argument(
        "--beam-options", default="", metavar="OPTIONS", help="what Beam is told, as above (default: run it here)"
    )
    parser.add_argument("--count", type=int, help="synthetic: training records; val a tenth, test a fifth of it")
    parser.add_argument("--splits", help="synthetic: records a split instead, e.g. train=600,val=50,test=300")
    parser.add_argument("--size", type=int, default=128, help="synthetic: side of the images, px (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="synthetic: another seed is another set (default: 0)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.build.builder import MAX_QUARANTINE, build, build_synthetic
    from earthgpt_jax.datasets.build.summary import BuildSummary, DatasetSummary

    names = list(dict.fromkeys(args.source))
    if "synthetic" not in names and (args.count is not None or args.splits):
        raise EarthGPTError("--count and --splits are for `build synthetic`; native sources are read whole")
    native = [name for name in names if name != "synthetic"]
    if native and args.root is None:
        raise EarthGPTError(f"build {' '.join(native)}: name the folder of the native datasets with --root")
    built: tuple[DatasetSummary, ...] = ()
    with _engine(args) as engine:
        if "synthetic" in names:
            splits = _synthetic_splits(args.count, args.splits)
            built += build_synthetic(splits, size=args.size, seed=args.seed, out=args.out, engine=engine).datasets
        if native:
            share = MAX_QUARANTINE if args.max_quarantine is None else args.max_quarantine
            chosen = _chosen(native, args.root)
            built += build(chosen, root=args.root, out=args.out, engine=engine, max_quarantine=share).datasets
    summary = BuildSummary(built)
    print(summary.table())
    return QUARANTINED if summary.quarantined else 0


@contextlib.contextmanager
def _engine(args: argparse.Namespace) -> Iterator[Engine]:
    from earthgpt_jax.common.errors import EarthGPTError

    if args.beam:
        if args.workers is not None:
            raise EarthGPTError("--workers is for processes of this machine; tell Beam by --beam-options")
        from earthgpt_jax.datasets.build.beam import Beam

        yield Beam(shlex.split(args.beam_options))
        return
    if args.beam_options:
        raise EarthGPTError("--beam-options are for --beam; add it, or leave them out")
    from earthgpt_jax.common.parallel import LocalEngine, cores

    with LocalEngine(cores() if args.workers is None else args.workers) as engine:
        yield engine


def _chosen(names: list[str], root: Path) -> tuple[Card, ...]:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.cards import load_cards, select_cards

    if "all" not in names:
        return select_cards(names)
    chosen = tuple(card for card in load_cards().values() if _lies_below(root, card))
    if not chosen:
        raise EarthGPTError(f"--root {root}: holds none of the datasets; see `earthgpt data list`")
    return chosen


def _lies_below(root: Path, card: Card) -> bool:
    """The folder and at least one whole part of the layout: a card may share its folder with others."""
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
