"""List, build, check, count, view and audit datasets.

`earthgpt data build` turns datasets in their native formats into dataset directories, OUT/<dataset>/,
which training and evaluation read. A card (data/sources/*.yaml) describes each dataset: where its
files are and how to read them. Items that cannot be used are listed in quarantine.jsonl with their
reasons: native = kept + quarantined + dropped.

examples:
  earthgpt data list
  earthgpt data build synthetic --count 600 --out datasets
  earthgpt data build hit_uav dota --root native --out datasets
  earthgpt data build all --root native --out datasets
  earthgpt data preview datasets/hit_uav --out preview.html
  earthgpt data audit datasets
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import ModuleType

from earthgpt_jax.cli.help_text import add_parser, summary
from earthgpt_jax.common import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    modules = _modules()
    commands = parser.add_subparsers(dest="verb", required=True, metavar=" | ".join(["list", *modules]))
    list_parser = add_parser(commands, "list", _list, help=summary(_list))
    list_parser.add_argument("--root", type=files.path, help="also show which of the datasets are in this folder")
    for name, module in modules.items():
        module.add_arguments(add_parser(commands, name, module, help=summary(module)))


def _modules() -> Mapping[str, ModuleType]:
    """Return the modules of the subcommands, each with a docstring for --help, add_arguments(parser) and run(args)."""
    from earthgpt_jax.cli.data import audit, build, check, preview, split, stats

    return {"split": split, "build": build, "check": check, "stats": stats, "preview": preview, "audit": audit}


def run(args: argparse.Namespace) -> int:
    return _list(args) if args.verb == "list" else _modules()[args.verb].run(args)


_SYNTHETIC = ("synthetic", "own", "all", "all", "procedural scenes with exact ground truth; needs no files")


def _list(args: argparse.Namespace) -> int:
    """List the datasets that have a card: role, sensor, tasks, title and folder.

    examples:
      earthgpt data list
      earthgpt data list --root native
    """
    from earthgpt_jax.common.tables import align_columns
    from earthgpt_jax.datasets.cards import load_cards

    cards = load_cards()
    rows = [("name", "role", "sensor", "tasks", "title (folder)"), _SYNTHETIC]
    for name, card in cards.items():
        status = ""
        if args.root:
            status = "  [found]" if (args.root / card.folder).is_dir() else "  [missing]"
        variants = f"; variants: {', '.join(card.variants)}" if card.variants else ""
        title = f"{card.title} ({card.folder}){variants}{status}"
        rows.append((name, card.role.value, card.sensor.value, ",".join(task.value for task in card.tasks), title))
    print("\n".join(align_columns(rows, left=len(_SYNTHETIC))))
    return 0
