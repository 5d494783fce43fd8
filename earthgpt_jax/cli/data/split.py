"""Split a dataset that has no official splits, with near-duplicates on one side.

Images are grouped if their perceptual hashes agree, also after a flip or a rotation by 90 degrees: frames of one
video, augmented copies, resized copies. A hash assigns each group to train (70 %), val (10 %) or test (20 %). With
--like, a group that contains images of other datasets, which are built already, takes their split; with
--names-like, also an image that has the same name as one of theirs, of which it may show another part.

Writes the lists of ids that the card's layout names (`train`, `val`, `test`), below the dataset's folder. Lists that
exist are kept; delete them to split again.

examples:
  earthgpt data split sar_acd rsscn7:groups --root native
  earthgpt data split rsivqa:rsicd --root native --like datasets/rsicd
  earthgpt data split aid --root native --names-like datasets/rsicd
"""

from __future__ import annotations

import argparse

from earthgpt_jax.common import files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="+", help="names or files of cards whose layout names split lists")
    parser.add_argument("--root", type=files.path, required=True, help="folder of all native datasets, or of this one")
    parser.add_argument(
        "--like", type=files.path, nargs="+", default=[], metavar="DIR", help="dataset directories whose splits count"
    )
    parser.add_argument(
        "--names-like", type=files.path, nargs="+", default=[], metavar="DIR",
        help="dataset directories whose splits count for images of the same name",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, help="number of processes that decode images (default: one per core)")


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.datasets.cards import SPLITS, select_cards
    from earthgpt_jax.datasets.overlap.group_splits import list_paths, split_by_groups, without_lists, write_lists
    from earthgpt_jax.datasets.readers import locate

    for card in select_cards(args.what):
        base, paths = locate(args.root, without_lists(card)), list_paths(card)
        if all((base / path).is_file() for path in paths.values()):
            print(f"{card.name}: {', '.join(paths.values())} exist already")
            continue
        split = split_by_groups(
            args.root, card, like=args.like, names_like=args.names_like, workers=args.workers
        )  # fmt: skip
        write_lists(base, card, split)
        counts = ", ".join(f"{len(split.ids[name])} {name}" for name in SPLITS)
        print(
            f"{card.name}: {counts}; {split.groups} groups, the largest of {split.largest} images; "
            f"{split.inherited} images have the split of another dataset"
        )
    return 0
