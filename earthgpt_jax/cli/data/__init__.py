"""List, build, check, count and look at datasets.

Turns datasets in their native formats into dataset directories, OUT/<source>/, that training and
evaluation read. Each source has a card (data/sources/*.yaml) that says where its files lie and how
they are read. What cannot be used goes to quarantine.jsonl with its reason; the counts add up.

examples:
  earthgpt data list
  earthgpt data build synthetic --count 600 --out datasets
  earthgpt data build hit_uav dota --root native --out datasets
  earthgpt data build all --root native --out datasets
  earthgpt data preview datasets/hit_uav --out look.html
  earthgpt data audit datasets
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list | build | check | stats | preview | audit")
    listing = verbs.add_parser("list", help="the sources there are cards for")
    listing.add_argument("--root", type=Path, help="also say which of them lie below this folder")

    for name, module in _verbs().items():
        help_text = module.__doc__ or ""
        subparser = verbs.add_parser(name, help=help_text.partition("\n")[0], description=help_text)
        module.add_arguments(subparser)


def _verbs() -> Mapping[str, ModuleType]:
    """The verbs with many words, each a module with HELP, DESCRIPTION, add_arguments(parser) and run(args)."""
    from earthgpt_jax.cli.data import audit, build, check, preview, stats

    return {"build": build, "check": check, "stats": stats, "preview": preview, "audit": audit}


def run(args: argparse.Namespace) -> int:
    return {"list": _list, **{name: verb.run for name, verb in _verbs().items()}}[args.verb](args)


_SYNTHETIC = ("synthetic", "own", "all", "all", "procedural scenes, drawn by this program; needs no files")


def _list(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.tables import align_columns
    from earthgpt_jax.datasets.cards import load_cards

    found = load_cards()
    rows = [("source", "role", "sensor", "tasks", "what it is (folder)"), _SYNTHETIC]
    for name, card in found.items():
        there = ""
        if args.root:
            there = "  [there]" if (args.root / card.folder).is_dir() else "  [absent]"
        variants = f"; variants: {', '.join(card.variants)}" if card.variants else ""
        title = f"{card.title} ({card.folder}){variants}{there}"
        rows.append((name, card.role.value, card.sensor.value, ",".join(task.value for task in card.tasks), title))
    print("\n".join(align_columns(rows, left=len(_SYNTHETIC))))
    return 0
