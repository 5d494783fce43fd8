"""`earthgpt data`: list, build, check, count and look at datasets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

NAME = "data"
HELP = "list, build, check, count and look at datasets"
DESCRIPTION = """\
Turns datasets in their native formats into dataset directories, OUT/<source>/, that training and
evaluation read. Each source has a card (data/sources/*.yaml) that says where its files lie and how
they are read. What cannot be used goes to quarantine.jsonl with its reason; the counts add up.

examples:
  earthgpt data list
  earthgpt data build synthetic --count 600 --out datasets
  earthgpt data build hit_uav dota --root native --out datasets
  earthgpt data build all --root native --out datasets
  earthgpt data preview datasets/hit_uav --out sheet.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | build | check | stats | preview")
    listing = verbs.add_parser("list", help="the sources there are cards for")
    listing.add_argument("--root", type=Path, help="also say which of them lie below this folder")

    build = verbs.add_parser("build", help="write OUT/<source>/ from native files")
    build.add_argument("source", nargs="+", help="names of cards, `synthetic`, or `all` that lie below --root")
    build.add_argument("--root", type=Path, help="the folder of the native datasets, or of the one to build")
    build.add_argument("--out", type=Path, required=True, help="where the dataset directories go")
    build.add_argument("--count", type=int, help="synthetic: training records; val a tenth, test a fifth of it")
    build.add_argument("--splits", help="synthetic: records a split instead, e.g. train=600,val=50,test=300")
    build.add_argument("--size", type=int, default=128, help="synthetic: side of the images, px (default: 128)")
    build.add_argument("--seed", type=int, default=0, help="synthetic: another seed is another set (default: 0)")

    for name, verb in _verbs().items():
        below = verbs.add_parser(name, help=verb.HELP, description=verb.DESCRIPTION)
        verb.add_arguments(below)


def _verbs() -> Mapping[str, ModuleType]:
    """The verbs that look at data, each a module with HELP, DESCRIPTION, add_arguments(parser) and run(args)."""
    from earthgpt_jax.cli.data import check, preview, stats

    return {"check": check, "stats": stats, "preview": preview}


def run(args: argparse.Namespace) -> int:
    return {"list": _list, "build": _build, **{name: verb.run for name, verb in _verbs().items()}}[args.verb](args)


def _list(args: argparse.Namespace) -> int:
    from earthgpt_jax.mmrs.cards import cards

    found = cards()
    width = max(map(len, found))
    print(f"{'synthetic':<{width}}  all sensors  all tasks; drawn by this program, needs no files")
    for name, card in found.items():
        tasks = ",".join(task.value for task in card.tasks)
        there = ""
        if args.root:
            there = "  [there]" if (args.root / card.folder).is_dir() else "  [absent]"
        print(f"{name:<{width}}  {card.sensor.value:<11}  {tasks:<14}  {card.title} ({card.folder}){there}")
    return 0


def _build(args: argparse.Namespace) -> int:
    from earthgpt_jax.errors import EarthGPTError
    from earthgpt_jax.mmrs.build import Built, Summary, build, build_synthetic
    from earthgpt_jax.mmrs.cards import cards, select

    names = list(dict.fromkeys(args.source))
    if "synthetic" not in names and (args.count is not None or args.splits):
        raise EarthGPTError("--count and --splits are for `build synthetic`; native sources are read whole")
    native = [name for name in names if name != "synthetic"]
    if native and args.root is None:
        raise EarthGPTError(f"build {' '.join(native)}: name the folder of the native datasets with --root")
    built: tuple[Built, ...] = ()
    if "synthetic" in names:
        splits = _synthetic_splits(args.count, args.splits)
        built += build_synthetic(splits, size=args.size, seed=args.seed, out=args.out).sources
    if "all" in native:
        chosen = tuple(card for card in cards().values() if _lies_below(args.root, card))
        if not chosen:
            raise EarthGPTError(f"--root {args.root}: holds none of the datasets; see `earthgpt data list`")
    else:
        chosen = select(native)
    built += build(chosen, root=args.root, out=args.out).sources if chosen else ()
    print(Summary(built).table())
    return 0


def _lies_below(root: Path, card) -> bool:
    """The folder and at least one whole part of the layout: a card may share its folder with others."""
    from earthgpt_jax.mmrs.readers import absent_parts

    base = root / card.folder
    absent = set(absent_parts(base, card))
    return base.is_dir() and any(not absent & set(part.values()) for part in card.parts)


def _synthetic_splits(count: int | None, text: str | None) -> dict[str, int]:
    from earthgpt_jax.errors import EarthGPTError

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
